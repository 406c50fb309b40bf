"""Tokenizer, language model, weight and hypotheses of an untrained model: the stages' files fit together."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
import yaml
from lhotse import MonoCut, Recording, SupervisionSegment

from kdtrans.__main__ import main
from kdtrans.artifacts import read_json, write_json
from kdtrans.config import ConformerConfig, LstmLmConfig, PredictorConfig, StreamingConfig, StudentConfig
from kdtrans.contracts import HYPOTHESES, read_footer, read_table
from kdtrans.data.manifest import write_cuts
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.models.build import build_student
from kdtrans.models.lm import load_lm, score_labels
from kdtrans.models.lstm_lm import LstmLm, write_lstm_lm
from kdtrans.training.checkpoint import save_model

TEXTS = ["the cat sat", "a dog ran", None, "the dog sat on the cat"]
SECONDS = [0.8, 1.5, 0.5, 1.1]
SEARCHES = {
    "greedy": {},
    "beam_lm": {"type": "beam", "lm": "ngram"},
    "beam_lstm": {"type": "beam", "lm": "lstm"},
    "ratio": {"type": "beam", "lm": "ngram", "density_ratio": 0.5},
    "short": {"chunk_ms": 160},
    "fsa": {"type": "fsa", "lm": "ngram"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cuts, configurations, a tokenizer, untrained students (model.pt, streaming.pt) and language model (lstm.pt)."""
    folder = tmp_path_factory.mktemp("decode")
    cuts = []
    for i, (text, seconds) in enumerate(zip(TEXTS, SECONDS, strict=True)):
        noise = np.random.default_rng(i).normal(scale=0.1, size=int(16000 * seconds))
        soundfile.write(folder / f"u{i}.wav", noise, 16000)
        supervision = SupervisionSegment(f"u{i}", f"u{i}", 0.0, seconds, text=text, speaker="s")
        recording = Recording.from_file(folder / f"u{i}.wav")
        cuts.append(MonoCut(f"u{i}", 0.0, seconds, 0, [supervision], recording=recording))
    write_cuts(cuts, folder / "cuts.jsonl.gz")
    (folder / "lm.txt").write_text("the cat ran\nsix zebras\n\n")
    configs = {
        "tokenizer": {"vocab_size": 40},
        "lm": {"order": 3, "texts": [str(folder / "lm.txt")]},
        "decode": {"lm_weights": [0.5, 0.0], "max_duration_s": 2.5, "searches": SEARCHES},
    }
    for name, values in configs.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    assert run(folder, "tokenizer", "--cuts", "cuts.jsonl.gz", "--out", "tokenizer.model") == 0
    tokenizer = Tokenizer(folder / "tokenizer.model")
    for name, streaming in (("model.pt", None), ("streaming.pt", StreamingConfig(chunk_ms=320))):
        encoder = ConformerConfig(
            dim=16, layers=1, heads=2, ffn_dim=16, conv_kernel=3, subsampling_channels=4, streaming=streaming
        )
        student = StudentConfig(encoder=encoder, predictor=PredictorConfig(dim=8), joiner_dim=8)
        state = build_student(student, tokenizer.vocab_size).state_dict()
        save_model(folder / name, "student", student, state, tokenizer, step=0, dev_wer=100.0)
    write_lstm_lm(folder / "lstm.pt", LstmLm(tokenizer.vocab_size, LstmLmConfig(dim=8)), tokenizer.sha256, 9.0)
    return folder


def run(folder: Path, stage: str, *options: str) -> int:
    """Run a stage with the folder's configuration; options that name a file of the folder are completed."""
    full = [str(folder / option) if "." in option else option for option in options]
    config = folder / f"{'decode' if stage in ('decode', 'tune-lm') else stage}.yaml"
    return main([stage, "--config", str(config), *full])


def test_the_stages_fit_together(folder: Path) -> None:
    common = ["--cuts", "cuts.jsonl.gz", "--tokenizer", "tokenizer.model"]
    assert run(folder, "lm", *common, "--texts", "lm.txt", "--out", "lm.arpa") == 0
    record = read_json(folder / "lm.arpa.run.json")
    assert (record["sentences"], record["unknown"]) == (5, 2)  # 3 transcripts, the same file twice

    common += ["--model", "model.pt"]
    tuning = ["--search", "beam_lm", "--lm", "lm.arpa"]
    assert run(folder, "tune-lm", *common, *tuning, "--out", "lm_weight.json") == 0
    tuned = read_json(folder / "lm_weight.json")
    assert list(tuned["tried"]) == ["0.0", "0.5"]
    assert tuned["tried"][str(tuned["lm_weight"])] == min(tuned["tried"].values())

    assert run(folder, "decode", *common, "--search", "greedy", "--out", "greedy.parquet") == 0
    fusion = [*tuning, "--lm-weight", "lm_weight.json"]
    assert run(folder, "decode", *common, *fusion, "--out", "beam.parquet") == 0
    tokenizer = Tokenizer(folder / "tokenizer.model")
    for name in ("greedy", "beam"):
        rows = read_table(folder / f"{name}.parquet", HYPOTHESES).to_pylist()
        assert list(dict.fromkeys(row["utt_id"] for row in rows)) == ["u0", "u1", "u2", "u3"]
        assert [row["utt_id"] for row in rows if row["rank"] == 0] == ["u0", "u1", "u2", "u3"]
        for row in rows:
            assert row["text"] == tokenizer.decode(row["tokens"])
            assert len(row["tokens"]) == len(row["token_frames"]) == len(row["token_logp"])
            assert 0 < row["num_frames"] <= 25 * row["seconds"] + 1
    footer = read_footer(folder / "beam.parquet")
    assert footer["tokenizer_sha256"] == tokenizer.sha256
    assert float(footer["audio_seconds"]) == pytest.approx(sum(SECONDS))
    assert float(footer["lm_weight"]) == tuned["lm_weight"]
    assert {"search", "model_fingerprint", "parameters", "decode_seconds", "vocab_size"} <= footer.keys()

    # Half of the same model is taken out of it, which leaves half of its score.
    ratio = ["--search", "ratio", "--lm", "lm.arpa", "lm.arpa"]
    assert run(folder, "tune-lm", *common, *ratio, "--out", "ratio.json") == 0
    write_json(folder / "ratio.json", {"lm_weight": 0.5})
    assert run(folder, "decode", *common, *ratio, "--lm-weight", "ratio.json", "--out", "ratio.parquet") == 0
    lm = load_lm("ngram", folder / "lm.arpa", tokenizer)
    for row in read_table(folder / "ratio.parquet", HYPOTHESES).to_pylist():
        assert row["lm_score"] == pytest.approx(0.5 * score_labels(lm, [row["tokens"]])[0], abs=1e-4)


@pytest.mark.parametrize(
    ("stage", "search", "message"),
    [
        ("decode", "beam_lm", "has lm: ngram: give --lm and --lm-weight"),
        ("tune-lm", "ratio", "with density_ratio: 0.5 is of 2 files, but --lm names 1"),
        ("decode", "short", "has chunk_ms: 160, but this model does not stream"),
        ("decode", "viterbi", "the searches are beam_lm, beam_lstm, fsa, greedy, ratio, short"),
        ("tune-lm", "greedy", "needs lm in the search 'greedy'"),
    ],
)
def test_refusals(folder: Path, capsys: pytest.CaptureFixture[str], stage: str, search: str, message: str) -> None:
    options = ["--cuts", "cuts.jsonl.gz", "--tokenizer", "tokenizer.model", "--model", "model.pt", "--search", search]
    options += ["--lm", "lm.arpa"] if stage == "tune-lm" else []
    assert run(folder, stage, *options, "--out", "refused.parquet") == 1
    assert message in capsys.readouterr().err
    assert not (folder / "refused.parquet").exists()


@pytest.mark.parametrize(
    ("k2", "messages"),
    [
        (None, ["k2: ", "; to install it: conda env create"]),
        (ModuleType("k2"), ["model.pt, search 'fsa': type: fsa needs predictor.type: stateless", "LstmPredictor"]),
    ],
)
def test_what_k2s_search_needs_is_said_before_anything_is_decoded(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    k2: ModuleType | None,
    messages: list[str],
) -> None:
    monkeypatch.setitem(sys.modules, "k2", k2)  # None: cannot be imported
    (folder / "some_weight.json").write_text('{"lm_weight": 0.5}')
    options = ["--cuts", "cuts.jsonl.gz", "--tokenizer", "tokenizer.model", "--model", "model.pt", "--search", "fsa"]
    options += ["--lm", "lm.txt", "--out", "refused.parquet"]  # which is not read any more
    for stage, more in (("decode", ["--lm-weight", "some_weight.json"]), ("tune-lm", [])):
        assert run(folder, stage, *options, *more) == 1
        said = capsys.readouterr().err
        assert all(message in said for message in messages)
        assert not (folder / "refused.parquet").exists()


def test_the_lstm_takes_the_ngrams_place(folder: Path) -> None:
    common = ["--cuts", "cuts.jsonl.gz", "--tokenizer", "tokenizer.model", "--model", "model.pt"]
    common += ["--search", "beam_lstm", "--lm", "lstm.pt"]
    assert run(folder, "tune-lm", *common, "--out", "lstm_weight.json") == 0
    (folder / "lstm_weight.json").write_text('{"lm_weight": 0.5}')
    assert run(folder, "decode", *common, "--lm-weight", "lstm_weight.json", "--out", "lstm.parquet") == 0
    rows = read_table(folder / "lstm.parquet", HYPOTHESES).to_pylist()
    assert any(row["lm_score"] < 0 for row in rows)
    for row in rows:
        assert row["score"] == pytest.approx(row["am_score"] + 0.5 * row["lm_score"], abs=1e-3)


@pytest.mark.parametrize("content", ["{}", "[0.3]", '{"lm_weight": "high"}', '{"lm_weight": -1}', "0.3 %"])
def test_a_wrong_weight_file_is_named(folder: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    (folder / "wrong.json").write_text(content)
    options = ["--cuts", "cuts.jsonl.gz", "--tokenizer", "tokenizer.model", "--model", "model.pt"]
    options += ["--search", "beam_lstm", "--lm", "lstm.pt", "--lm-weight", "wrong.json"]
    assert run(folder, "decode", *options, "--out", "refused.parquet") == 1
    assert "wrong.json " in capsys.readouterr().err


def test_a_search_sets_the_chunk_of_a_streaming_system(folder: Path) -> None:
    common = ["--cuts", "cuts.jsonl.gz", "--tokenizer", "tokenizer.model"]
    latency = {}
    for model, search in (("streaming", "short"), ("streaming", "greedy"), ("model", "greedy")):
        options = ["--model", f"{model}.pt", "--search", search, "--out", "stream.parquet"]
        assert run(folder, "decode", *common, *options) == 0
        latency[model, search] = read_footer(folder / "stream.parquet")["latency_ms"]
    # The chunk, and half of what a filterbank's window is wider than its shift.
    assert list(latency.values()) == ["168", "328", ""]


def test_existing_models_are_checked_and_copied(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = folder / "given.arpa"
    piece = Tokenizer(folder / "tokenizer.model").pieces[-1]
    given.write_text(f"\\data\\\nngram 1=3\n\n\\1-grams:\n-99\t<s>\n-1\t</s>\n-0.1\t{piece}\n\n\\end\\\n")
    (folder / "lm.yaml").write_text(yaml.safe_dump({"arpa": str(given)}))
    options = ["--cuts", "cuts.jsonl.gz", "--tokenizer", "tokenizer.model"]
    assert run(folder, "lm", *options, "--out", "copy.arpa") == 0
    assert (folder / "copy.arpa").read_bytes() == given.read_bytes()
    given.write_text(given.read_text().replace(f"\t{piece}\n", "\tTHE\n"))
    assert run(folder, "lm", *options, "--out", "refused.arpa") == 1
    assert "'THE' and 0 more" in capsys.readouterr().err
    (folder / "tokenizer.yaml").write_text(yaml.safe_dump({"model": str(folder / "tokenizer.model")}))
    assert run(folder, "tokenizer", "--cuts", "cuts.jsonl.gz", "--out", "copy.model") == 0
    assert (folder / "copy.model").read_bytes() == (folder / "tokenizer.model").read_bytes()
