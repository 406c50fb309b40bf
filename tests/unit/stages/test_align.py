"""`kdtrans align` on an untrained model: the frames are those of the best of all paths that spell the labels."""

from __future__ import annotations

from itertools import combinations_with_replacement
from pathlib import Path

import pytest
import torch

from kdtrans.artifacts import read_json
from kdtrans.config import PredictorConfig, StudentConfig
from kdtrans.contracts import ALIGNMENTS, BLANK, read_footer, read_table
from kdtrans.data.manifest import text_of, write_cuts
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.models.build import build_student
from kdtrans.models.transducer import Transducer
from kdtrans.stages import align
from kdtrans.training.checkpoint import save_model
from tests.tiny import STUDENT, Workspace


def slow_frames(model: Transducer, enc_TE: torch.Tensor, labels: list[int]) -> tuple[list[int], float]:
    """Twin: the score of every way to put the labels on frames."""
    pred = model.project_predictor(model.predictor(torch.tensor([labels])))
    logp = model.grid(model.project_encoder(enc_TE[None]), pred)[0].double().log_softmax(-1)
    best: tuple[list[int], float] = ([], -float("inf"))
    for frames in combinations_with_replacement(range(len(enc_TE)), len(labels)):
        score = 0.0
        for u, (frame, label) in enumerate(zip(frames, labels, strict=True)):
            score += float(logp[frame, u, label])
        for t in range(len(enc_TE)):
            score += float(logp[t, sum(frame <= t for frame in frames), BLANK])
        if score > best[1]:
            best = list(frames), score
    return best


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    work = Workspace(tmp_path_factory.mktemp("align"), utterances=6)
    tokenizer = Tokenizer(work.tokenizer)
    config = StudentConfig.model_validate({**STUDENT, "predictor": PredictorConfig(dim=8).model_dump()})
    torch.manual_seed(0)
    model = build_student(config, tokenizer.vocab_size)
    save_model(work.folder / "model.pt", "student", config, model.state_dict(), tokenizer, step=0, dev_wer=100.0)
    (work.folder / "decode.yaml").write_text("max_duration_s: 3.0\n")
    return work


def test_the_frames_are_those_of_the_best_path() -> None:
    torch.manual_seed(1)
    config = StudentConfig.model_validate(STUDENT)
    model = build_student(config, 6).eval()
    for num_frames, labels in ((5, [2, 3, 3]), (4, [5]), (1, [4, 2])):
        enc_TE = 3 * torch.randn(num_frames, model.encoder.dim)
        with torch.inference_mode():
            frames, logp = align.emission_frames(model, enc_TE, labels)
            expected, expected_logp = slow_frames(model, enc_TE, labels)
        assert frames == expected
        assert logp == pytest.approx(expected_logp, abs=1e-4)


def test_alignments_of_a_test_set(work: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    cuts = list(work.cuts)
    cuts[1].supervisions[0].text = "one žžž"  # the tokenizer lacks it
    write_cuts(cuts, work.folder / "cuts.jsonl.gz")
    folder, out = work.folder, work.folder / "kd" / "test.parquet"
    align.main(folder / "decode.yaml", folder / "model.pt", [folder / "cuts.jsonl.gz"], work.tokenizer, out)
    tokenizer = Tokenizer(work.tokenizer)
    kept = {cut.id: text for i, cut in enumerate(cuts) if (text := text_of(cut)) and i != 1}
    rows = read_table(out, ALIGNMENTS).to_pylist()
    assert [row["utt_id"] for row in rows] == list(kept)
    for row in rows:
        assert row["tokens"] == tokenizer.encode(kept[row["utt_id"]])
        assert row["token_frames"] == sorted(row["token_frames"])
        assert max(row["token_frames"]) < row["num_frames"]
        assert row["path_logp"] < 0
    footer = read_footer(out)
    assert footer["tokenizer_sha256"] == tokenizer.sha256
    assert len(footer["model_fingerprint"]) == 64
    assert footer["left_out"] == str(len(cuts) - len(kept)) == "3"
    assert read_json(Path(f"{out}.run.json"))["utterances"] == len(kept)
    assert "3 utterances aligned, 3 left out" in capsys.readouterr().out
