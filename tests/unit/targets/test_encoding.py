"""What is stored of a node's classes, against a loop over classes; and that the divergence it costs is small."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdtrans.stages.target_sizes import main as target_sizes
from kdtrans.targets.encoding import FIRST_BITS, encode
from kdtrans.targets.sizes import encoded, losses_of, ordered_by_id
from tests.tiny import TARGETS, Workspace
from tests.unit.targets.test_shards import target_of


def distributions(nodes: int, vocab: int, sharpness: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids (N, V) and log-probabilities (N, V), most probable first."""
    logits = np.random.default_rng(seed).normal(scale=sharpness, size=(nodes, vocab))
    logp = (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)
    ids = np.argsort(-logp, axis=1, kind="stable")
    return ids, np.take_along_axis(logp, ids, 1)


def slow_encode(logp_K: list[float], least: float, step: float) -> list[float]:
    """One node: round all but the first down, give it what they lose, round it down in binary digits."""
    stored = [-math.inf] * len(logp_K)
    lost = 0.0
    for k, logp in enumerate(logp_K[1:], 1):
        if math.exp(logp) >= least:
            stored[k] = math.floor(logp / step) * step if step else logp
            lost += math.exp(logp) - math.exp(stored[k])
    stored[0] = min(math.log(math.exp(logp_K[0]) + lost), 0.0) if step else logp_K[0]
    if step and stored[0] < 0:
        spacing = 2.0 ** (math.floor(math.log2(-stored[0])) - FIRST_BITS)
        stored[0] = max([math.floor(stored[0] / spacing) * spacing, *stored[1:2]])
    return stored


@settings(deadline=None, max_examples=60)
@given(
    vocab=st.integers(1, 40),
    top_k=st.integers(1, 40),
    sharpness=st.sampled_from([0.0, 0.3, 2.0, 8.0]),
    least=st.sampled_from([0.0, 1e-5, 1e-3, 0.2]),
    step=st.sampled_from([0.0, 1 / 64, 1 / 16, 0.1, 0.25]),
    seed=st.integers(0, 1000),
)
@example(vocab=9, top_k=2, sharpness=0.0, least=0.2, step=1 / 64, seed=0)  # the second is left out, and bounds nothing
def test_encoding_is_that_of_a_loop_and_keeps_its_promises(
    vocab: int, top_k: int, sharpness: float, least: float, step: float, seed: int
) -> None:
    ids, logp = (values[:, :top_k] for values in distributions(6, vocab, sharpness, seed))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stored_ids, stored = encode(ids, logp, least, step)
    assert (stored_ids.dtype, stored.dtype) == (np.uint16, np.float16)
    slow = np.array([slow_encode(node, least, step) for node in logp.astype(float).tolist()])
    np.testing.assert_allclose(stored.astype(float), slow, rtol=1e-3, atol=1e-6)
    out = np.isneginf(stored)
    assert (stored_ids == np.where(out, 0, ids)).all()
    assert not out[:, 0].any()
    assert (out[:, 1:] == (np.exp(logp[:, 1:].astype(float)) < least)).all()
    assert (stored[:, 1:] <= stored[:, :-1]).all()  # most probable first, those left out last
    mass, given_mass = np.exp(stored.astype(float)).sum(1), np.where(out, 0, np.exp(logp.astype(float))).sum(1)
    if step:
        assert (mass <= given_mass + 1e-3).all()  # fp16, of steps that are no powers of 2
        assert (mass <= 1 + 1e-3).all()
        # Only the first's last rounding goes to the tail: 2^-6 of its log-probability.
        assert (mass >= given_mass - 2.0**-FIRST_BITS * -np.log(given_mass.clip(max=1)).min() - 0.02).all()
    else:
        np.testing.assert_allclose(stored, np.where(out, -np.inf, logp), rtol=1e-3, atol=1e-6)


def test_sums_of_binary_steps_never_exceed_one() -> None:
    for sharpness in (0.0, 1.0, 4.0, 20.0):
        ids, logp = distributions(2000, 12, sharpness, 1)
        _, stored = encode(ids, logp, 1e-6, 1 / 16)
        assert np.exp(stored.astype(float)).sum(1).max() <= 1 + 1e-6  # the teacher's own sums are fp32's


def test_rounding_costs_little_at_confident_nodes() -> None:
    """Rounded to the nearest step, a first class of p = 0.99 would take the tail's mass or twice as much."""
    ids, logp = distributions(3000, 30, 6.0, 2)
    full = [target_of("a", logp, ids)]
    exact, rounded = (losses_of(full, encoded(full, 8, 1e-4, step)) for step in (0.0, 1 / 16))
    assert exact["kl_taught"] < 2e-5
    assert rounded["kl_taught"] < 1e-3
    assert rounded["tail_mass"] == pytest.approx(exact["tail_mass"], abs=1e-3)
    assert rounded["classes"] == exact["classes"] < 8


def test_losses_are_those_of_a_loop_over_classes() -> None:
    ids, logp = distributions(40, 9, 1.5, 3)
    full = [target_of("a", logp[:25], ids[:25]), target_of("b", logp[25:], ids[25:])]
    for setting in ((3, 0.0, 0.0), (5, 0.05, 0.25), (9, 0.0, 0.0), (9, 0.05, 0.0), (1, 0.0, 0.1)):
        stored = encoded(full, *setting)
        taught, whole, tails = 0.0, 0.0, 0.0
        for p, q in zip(
            np.exp(np.concatenate([t.topk_logp for t in full]).astype(float)),
            np.exp(np.concatenate([t.topk_logp for t in stored]).astype(float)),
            strict=True,
        ):
            p = p / p.sum()
            left = [k for k in range(9) if k >= len(q) or q[k] == 0]
            tail = max(1 - q.sum(), 1e-7) if left else 0.0
            norm = q.sum() + tail
            inside = sum(p[k] * math.log(p[k] / (q[k] / norm)) for k in range(9) if k not in left)
            p_tail = sum(p[k] for k in left)
            taught += inside + (p_tail * math.log(p_tail / (tail / norm)) if left else 0.0)
            whole += inside + sum(p[k] * math.log(p[k] / (tail / norm / len(left))) for k in left)
            tails += tail
        found = losses_of(full, stored)
        assert found["kl_taught"] == pytest.approx(taught / 40, abs=1e-9)
        assert found["kl_full"] == pytest.approx(whole / 40, abs=1e-9)
        assert found["tail_mass"] == pytest.approx(tails / 40, abs=1e-9)
        assert found["kl_full"] >= found["kl_taught"] - 1e-12


def test_another_order_holds_the_same_classes() -> None:
    ids, logp = distributions(5, 9, 2.0, 4)
    [stored] = encoded([target_of("a", logp, ids)], 6, 0.02, 0.0)
    moved = ordered_by_id(stored)
    for n in range(5):
        kept = {
            int(i): float(p) for i, p in zip(stored.topk_ids[n], stored.topk_logp[n], strict=True) if np.isfinite(p)
        }
        there = [
            (int(i), float(p)) for i, p in zip(moved.topk_ids[n], moved.topk_logp[n], strict=True) if np.isfinite(p)
        ]
        assert there == sorted(kept.items())


def test_the_study_runs_on_any_teacher(toy: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, config = tmp_path / "sizes.json", tmp_path / "targets.yaml"
    config.write_text(yaml.safe_dump(TARGETS | {"logp_step": 0.0625}))
    target_sizes(config, toy.teacher, toy.train, toy.tokenizer, out, utterances=4)
    found = json.loads(out.read_text())
    assert found["utterances"] == 4
    for row in found["settings"]:
        columns = dict(row["mb_per_hour"])
        assert columns.pop("total") == pytest.approx(sum(columns.values()), abs=1e-2)
        if (row["top_k"], row["min_probability"], row["logp_step"]) == (found["vocab_size"], 0, 0):
            assert row["kl_full"] < 1e-6
    text = capsys.readouterr().out
    assert "| k | min_probability |" in text
    assert "| as written |" in text
    assert "1/16" in text
    config.write_text(yaml.safe_dump(TARGETS | {"search": {"type": "beam", "lm": "ngram"}, "lm_weight": 0.3}))
    with pytest.raises(ValueError, match=r"search\.lm is ngram"):
        target_sizes(config, toy.teacher, toy.train, toy.tokenizer, out)
