from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrans.lattice.recursion import forward_backward_scores, forward_scores, total_score, viterbi
from kdtrans.losses.transducer import node_log_probs
from tests.unit.lattice.twins import every_path, path_score, total_by_enumeration

VOCAB = 5


def grids(seed: int, frames: list[int], lengths: list[int], scale: float = 3.0) -> tuple[torch.Tensor, ...]:
    """Random logits of a padded batch, with its labels and lengths."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(
        len(frames), max(frames), max(lengths) + 1, VOCAB, generator=generator, dtype=torch.float64
    )
    labels = torch.randint(1, VOCAB, (len(frames), max(lengths)), generator=generator)
    return logits, labels, torch.tensor(frames), torch.tensor(lengths)


shapes = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=3)


@settings(deadline=None, max_examples=30)
@given(shapes, st.integers(0, 1000))
def test_total_and_viterbi_equal_enumeration(shape: list[tuple[int, int]], seed: int) -> None:
    logits, labels, frames, lengths = grids(seed, [t for t, _ in shape], [u for _, u in shape])
    blank, label = node_log_probs(logits, labels)
    totals = total_score(forward_scores(blank, label), blank, frames, lengths)
    _, beta = forward_backward_scores(blank, label, frames, lengths)
    paths, scores = viterbi(blank, label, labels, frames, lengths)
    for b, (num_frames, length) in enumerate(shape):
        log_probs = logits[b].log_softmax(-1)
        spelled = labels[b, :length].tolist()
        torch.testing.assert_close(totals[b], total_by_enumeration(log_probs[:num_frames], spelled))
        torch.testing.assert_close(beta[b, 0, 0], totals[b])
        best = max(every_path(num_frames, spelled), key=lambda path: float(path_score(log_probs, path)))
        assert paths[b, : num_frames + length].tolist() == best
        torch.testing.assert_close(scores[b], path_score(log_probs, best))


def test_every_cut_of_the_lattice_carries_the_whole_mass() -> None:
    """sum over u of alpha x blank x beta is P(y|x) at every frame: each path leaves each frame once."""
    logits, labels, frames, lengths = grids(7, [30, 22], [9, 12])
    blank, label = node_log_probs(logits, labels)
    alpha, beta = forward_backward_scores(blank, label, frames, lengths)
    totals = total_score(alpha, blank, frames, lengths)
    for b in range(2):
        for t in range(int(frames[b])):
            columns = slice(0, int(lengths[b]) + 1)
            crossing = alpha[b, t, columns] + blank[b, t, columns] + beta[b, t + 1, columns]
            torch.testing.assert_close(crossing.logsumexp(0), totals[b])


def test_long_and_confident_grids_stay_finite() -> None:
    logits, labels, frames, lengths = grids(3, [300], [120], scale=40.0)
    blank, label = node_log_probs(logits, labels)
    alpha, beta = forward_backward_scores(blank, label, frames, lengths)
    total = total_score(alpha, blank, frames, lengths)
    torch.testing.assert_close(beta[:, 0, 0], total)
    path, score = viterbi(blank, label, labels, frames, lengths)
    assert torch.isfinite(total).all()
    assert float(score) <= float(total)
    torch.testing.assert_close(score[0], path_score(logits[0].log_softmax(-1), path[0].tolist()))
