"""Manifests read without lhotse, hypotheses matched to them, and no torch anywhere near."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from kdtrans.contracts import ContractError
from kdtrans.scoring.references import Reference, match_hypotheses, read_references

REFERENCES = {"u1": Reference("a b", "s1", 1.5), "u2": Reference("c", "s2", 2.0)}


def write_manifest(path: Path, cuts: list[dict[str, object]]) -> Path:
    with gzip.open(path, "wt") as file:
        file.write("".join(json.dumps(cut) + "\n" for cut in cuts))
    return path


def cut(utt_id: str, text: str | None) -> dict[str, object]:
    supervision = {"id": utt_id, "speaker": "s1", **({} if text is None else {"text": text})}
    return {"id": utt_id, "start": 0, "duration": 1.5, "supervisions": [supervision], "type": "MonoCut"}


def table(*rows: tuple[str, int, str]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(("utt_id", "rank", "text"), row, strict=True)) for row in rows])


def test_reads_manifests(tmp_path: Path) -> None:
    first = write_manifest(tmp_path / "a.jsonl.gz", [cut("u1", "a b")])
    second = write_manifest(tmp_path / "b.jsonl.gz", [cut("u2", None)])
    assert read_references([first, second]) == {"u1": Reference("a b", "s1", 1.5), "u2": Reference(None, "s1", 1.5)}


def test_reads_what_lhotse_writes(tmp_path: Path) -> None:
    from lhotse import MonoCut, Recording, SupervisionSegment

    from kdtrans.data.manifest import write_cuts

    recording = Recording("u1", sources=[], sampling_rate=16000, num_samples=32000, duration=2.0)
    supervision = SupervisionSegment("u1", "u1", start=0.0, duration=2.0, text="a b", speaker="s1")
    write_cuts([MonoCut("u1", 0.0, 2.0, 0, [supervision], recording=recording)], tmp_path / "cuts.jsonl.gz")
    assert read_references([tmp_path / "cuts.jsonl.gz"]) == {"u1": Reference("a b", "s1", 2.0)}


def test_refuses_bad_manifests(tmp_path: Path) -> None:
    good = write_manifest(tmp_path / "a.jsonl.gz", [cut("u1", "a")])
    with pytest.raises(ContractError, match=r"'u1' appears twice"):
        read_references([good, good])
    with pytest.raises(ContractError, match="does not exist"):
        read_references([tmp_path / "none.jsonl.gz"])
    (tmp_path / "cut.jsonl.gz").write_bytes(good.read_bytes()[:-9])
    with pytest.raises(ContractError, match="not a whole manifest"):
        read_references([tmp_path / "cut.jsonl.gz"])
    with pytest.raises(ContractError, match=r"b.jsonl.gz:1: not a cut"):
        read_references([write_manifest(tmp_path / "b.jsonl.gz", [{"id": "u1", "duration": 1.0, "supervisions": []}])])


def test_takes_the_best_hypothesis_in_the_order_of_the_references() -> None:
    found = match_hypotheses(table(("u2", 0, "c"), ("u1", 1, "x"), ("u1", 0, "a")), REFERENCES, Path("h.parquet"))
    assert list(found.items()) == [("u1", "a"), ("u2", "c")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("u1", 0, "a")], r"1 utterances have no hypothesis \(u2\)"),
        ([("u1", 0, "a"), ("u2", 1, "c")], r"have no hypothesis \(u2\)"),
        ([("u1", 0, "a"), ("u2", 0, "c"), ("u3", 0, "")], r"are not in the manifest \(u3\)"),
        ([("u1", 0, "a"), ("u2", 0, "c"), ("u2", 0, "d")], r"have two best hypotheses \(u2\)"),
    ],
)
def test_refuses_hypotheses_that_do_not_match(rows: list[tuple[str, int, str]], message: str) -> None:
    with pytest.raises(ContractError, match=f"h.parquet: .*{message}"):
        match_hypotheses(table(*rows), REFERENCES, Path("h.parquet"))


def test_refuses_unlabelled_references() -> None:
    with pytest.raises(ContractError, match=r"have no reference text \(u1\)"):
        match_hypotheses(table(("u1", 0, "a")), {"u1": Reference(None, "s1", 1.0)}, Path("h.parquet"))


def test_scoring_and_report_leave_torch_alone() -> None:
    names = [
        "scoring.wer",
        "scoring.bootstrap",
        "scoring.references",
        "report.page",
        "report.describe",
        "report.tables",
    ]
    names += ["stages.score", "stages.report", "stages.inspect", "stages.gate", "stages.schema"]
    imports = "\n".join(f"import kdtrans.{name}" for name in names)
    code = f"{imports}\nimport sys\nprint('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "False"
