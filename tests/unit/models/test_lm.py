"""The LSTM language model against its own full forward pass, both models against the protocol, and refusals."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdtrans.config import LstmLmConfig, SearchConfig
from kdtrans.contracts import ContractError
from kdtrans.models.lm import load_fusion, load_lm, score_labels
from kdtrans.models.lstm_lm import LstmLm, write_lstm_lm
from kdtrans.models.ngram import Ngram
from kdtrans.models.ngram_estimate import estimate, write_arpa

PIECES = ["<blank>", "<unk>", "a", "b", "c"]
TOKENIZER = SimpleNamespace(pieces=PIECES, sha256="a" * 64)


def make(layers: int = 1, seed: int = 0) -> LstmLm:
    torch.manual_seed(seed)
    return LstmLm(len(PIECES), LstmLmConfig(dim=8, layers=layers)).eval()


def stepped(model: LstmLm, tokens_NU: Tensor) -> Tensor:
    """(N, U + 1, V) scores, a token at a time."""
    state = model.start(len(tokens_NU))
    rows = [model.score(state)]
    for token_N in tokens_NU.T:
        state = model.advance(state, token_N)
        rows.append(model.score(state))
    return torch.stack(rows, dim=1)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 9), st.integers(0, 99))
@torch.no_grad()
def test_steps_score_as_the_whole_sentence(layers: int, sentences: int, length: int, seed: int) -> None:
    model = make(layers, seed)
    tokens_NU = torch.randint(1, len(PIECES), (sentences, length))
    whole = model(tokens_NU)
    torch.testing.assert_close(whole.exp().sum(-1), torch.ones(whole.shape[:2]))  # the sentence end is one of them
    steps = stepped(model, tokens_NU)
    torch.testing.assert_close(steps[..., 1:], whole[..., 1:], atol=1e-5, rtol=1e-5)
    assert (steps[..., 0] == 0).all()


@torch.no_grad()
def test_a_sentence_costs_its_tokens_and_its_end_whatever_the_padding() -> None:
    model = make()
    sentences = [[2, 3, 4, 2], [], [4]]
    padded = torch.full((3, 4), 3)  # any token: what lies past the end must not count
    for i, sentence in enumerate(sentences):
        padded[i, : len(sentence)] = torch.tensor(sentence, dtype=torch.long)
    found = model.nll(padded, torch.tensor([4, 0, 1]))
    for nll, sentence in zip(found, sentences, strict=True):
        rows = model(torch.tensor([sentence], dtype=torch.long))[0]
        expected = -sum(rows[u, token] for u, token in enumerate([*sentence, 0]))
        torch.testing.assert_close(nll, torch.as_tensor(expected))


def write_lm(kind: str, path: Path) -> Path:
    if kind == "ngram":
        write_arpa(estimate([["a", "b"], ["b", "c", "a"], ["a"]], 3), path)
    else:
        write_lstm_lm(path, make(layers=2), TOKENIZER.sha256, 3.0)
    return path


@pytest.mark.parametrize("density_ratio", [0.0, 0.7])
@pytest.mark.parametrize("kind", ["ngram", "lstm"])
@torch.no_grad()
def test_all_models_keep_the_protocol(tmp_path: Path, kind: str, density_ratio: float) -> None:
    search = SearchConfig(type="beam", lm=kind, density_ratio=density_ratio)  # type: ignore[arg-type]
    paths = [write_lm(kind, tmp_path / "lm")]
    if density_ratio:
        write_arpa(estimate([["c", "c"], ["b", "c"]], 2), tmp_path / "source")
        paths.append(tmp_path / "source")
    model = load_fusion(search, paths, TOKENIZER)
    assert not model.training
    state = model.start(3)
    for token_N in (torch.tensor([2, 3, 4]), torch.tensor([2, 2, 3])):
        score_NV = model.score(state)
        assert score_NV.shape == (3, len(PIECES))
        assert (score_NV[:, 0] == 0).all()
        if not density_ratio:
            assert (score_NV[:, 1:].exp().sum(1) < 1).all()  # the rest is the sentence end
        assert state.shape[0] == 3
        before = state.clone()
        after = model.advance(state, token_N)
        assert torch.equal(state, before)
        order = torch.tensor([2, 0, 1])  # a search reorders states by indexing them
        torch.testing.assert_close(model.advance(state[order], token_N[order]), after[order])
        state = after


@pytest.mark.parametrize("kind", ["ngram", "lstm"])
def test_a_density_ratio_takes_the_source_out_of_every_label(tmp_path: Path, kind: str) -> None:
    path, source = write_lm(kind, tmp_path / "lm"), tmp_path / "source"
    write_arpa(estimate([["c", "c", "a"], ["b", "c"]], 3), source)
    search = SearchConfig(type="beam", lm=kind, density_ratio=0.7)  # type: ignore[arg-type]
    sentences = [[2, 3, 4, 4, 2], [], [4, 4], [1, 3]]
    found = score_labels(load_fusion(search, [path, source], TOKENIZER), sentences)
    own = score_labels(load_lm(kind, path, TOKENIZER), sentences)  # type: ignore[arg-type]
    transcripts = score_labels(Ngram(source, TOKENIZER), sentences)
    assert found == pytest.approx([a - 0.7 * b for a, b in zip(own, transcripts, strict=True)], abs=1e-5)
    for paths in ([path], [path, source, source]):
        with pytest.raises(ValueError, match=f"is of 2 files, but --lm names {len(paths)}"):
            load_fusion(search, paths, TOKENIZER)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    model = make(layers=2)
    write_lstm_lm(tmp_path / "lstm.pt", model, TOKENIZER.sha256, 3.0)
    read = load_lm("lstm", tmp_path / "lstm.pt", TOKENIZER)
    assert isinstance(read, LstmLm)
    assert read.config == model.config
    assert all(torch.equal(value, read.state_dict()[name]) for name, value in model.state_dict().items())


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "lstm.pt"
    with pytest.raises(ContractError, match=r"lstm.pt does not exist: run the stage `lstm-lm`"):
        load_lm("lstm", path, TOKENIZER)
    path.write_text("\\data\\\n")
    with pytest.raises(ContractError, match=r"lstm.pt is no LSTM language model"):
        load_lm("lstm", path, TOKENIZER)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ContractError, match=r"lstm.pt is no LSTM language model: give the file"):
        load_lm("lstm", path, TOKENIZER)
    write_lstm_lm(path, make(), "b" * 64, 3.0)
    with pytest.raises(ContractError, match="trained with tokenizer bbbbbbbbbbbb, this run uses aaaaaaaaaaaa"):
        load_lm("lstm", path, TOKENIZER)
    write_lstm_lm(path, make(), TOKENIZER.sha256, 3.0)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ContractError, match="is no LSTM language model"):
        load_lm("lstm", path, TOKENIZER)
