"""`kdtrans report` on a made-up run: the table, the JSON, the page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from kdtrans.contracts import ContractError
from kdtrans.report.curves import curve, read_metrics
from kdtrans.report.diagnostics import pseudo_labels
from kdtrans.report.results import read_results
from kdtrans.report.tables import align, millions, signed, text_table
from kdtrans.stages.report import main

VOID = {"meta"}


class Balance(HTMLParser):
    """Checks that every tag is closed by its own."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_writes_table_summary_and_page(made_run: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    main(**made_run)
    folder: Path = made_run["out_dir"]
    table = (folder / "table.txt").read_text()
    assert table == capsys.readouterr().out
    assert table.isascii()
    assert re.search(r"kd_unlabelled +1.13 M +\d+\.\d\d \[", table)
    assert table.splitlines()[0].startswith("kd_unlabelled: ")
    assert "fewer errors than baseline, at 1/9 of the teacher's size." in table

    summary = json.loads((folder / "summary.json").read_text())
    assert len(summary["rows"]) == 15
    by_system = {row["system"]: row for row in summary["rows"] if (row["testset"], row["search"]) == ("test", "greedy")}
    assert by_system["baseline"]["against_baseline"] is None
    gain = by_system["kd_unlabelled"]["against_baseline"]
    assert gain["werr"] == pytest.approx(100 * (1 - by_system["kd_unlabelled"]["wer"] / by_system["baseline"]["wer"]))
    assert gain["werr_low"] < gain["werr"] < gain["werr_high"]
    assert gain["p"] < 0.05

    page = (folder / "index.html").read_text()
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    for part in ("Word error rate", "Training", "Data", "Targets", "errs most", "Provenance", "too short for labels"):
        assert part in page
    assert "Speakers that two splits share: 2 in train &amp; dev." in page
    assert page.count("<polyline") == 2 * 5
    assert "WER of the pseudo text" in page
    assert not re.search(r"https?://|<script|<link|src=|url\(|@import", page), "the page must be self-contained"
    assert (folder / "index.html.run.json").exists()


def test_page_without_optional_parts(made_run: dict[str, Any]) -> None:
    optional = {"index": None, "unlabelled_text": None, "targets": None, "metrics": made_run["metrics"][:1]}
    main(**{**made_run, **optional})
    page = (made_run["out_dir"] / "index.html").read_text()
    assert "<h2>Targets</h2>" not in page
    assert "<h3>Teacher</h3>" in page


def test_text_is_escaped(tmp_path: Path, made_run: dict[str, Any], score_writer: Callable[..., Path]) -> None:
    scores = [score_writer(tmp_path, "baseline", "greedy", "test", [("a <b> & c", "a <i> c"), ("d", "d")])]
    main(**{**made_run, "scores": scores})
    page = (made_run["out_dir"] / "index.html").read_text()
    assert "&lt;b&gt;" in page
    assert "<i> c" not in page


def test_best_student_is_chosen_on_dev(tmp_path: Path, score_writer: Callable[..., Path]) -> None:
    good, bad = [("a b", "a b"), ("c d", "c x")], [("a b", "x"), ("c d", "x y")]
    scores = [
        score_writer(tmp_path, system, "greedy", testset, pairs)
        for system, dev, test in (("baseline", good, bad), ("kd", bad, good), ("teacher", good, good))
        for testset, pairs in (("dev", dev), ("test", test))
    ]
    best = read_results(scores, "baseline").best_student()
    assert best is not None
    assert best.score.system == "baseline"
    best = read_results([path for path in scores if "dev" not in path.name], "baseline").best_student()
    assert best is not None
    assert best.score.system == "kd"


def test_worse_systems_and_missing_scores(tmp_path: Path, score_writer: Callable[..., Path]) -> None:
    pairs = [("a b c d", "a b c x"), ("e f", "e f")]
    worse = [("a b c d", "x y z d"), ("e f", "e x")]
    scores = [
        score_writer(tmp_path, "baseline", "greedy", "test", pairs),
        score_writer(tmp_path, "kd", "greedy", "test", worse),
        score_writer(tmp_path, "kd", "beam", "test", worse),
    ]
    results = read_results(scores[1:2], "baseline")
    assert results.headline() == "kd: 66.7 % WER on test."
    assert results.rows[0].comparison is None
    table = text_table(read_results(scores, "baseline"))
    assert "+300" in table
    assert re.search(r"baseline +1.00 M|baseline +1.13 M", table)


def test_refuses_scores_that_do_not_fit(tmp_path: Path, score_writer: Callable[..., Path]) -> None:
    first = score_writer(tmp_path, "baseline", "greedy", "test", [("a", "a"), ("b", "b")])
    fewer = score_writer(tmp_path, "kd", "greedy", "test", [("a", "a")])
    with pytest.raises(ContractError, match=r"kd.*\(1 utterances\) and .*baseline.*\(2\) differ in utt_id"):
        read_results([first, fewer], "baseline")
    other = score_writer(tmp_path, "hard", "greedy", "test", [("a", "a"), ("c", "b")])
    with pytest.raises(ContractError, match="differ in reference"):
        read_results([first, other], "baseline")
    with pytest.raises(ContractError, match="is already in"):
        read_results([first, first], "baseline")
    (tmp_path / "x.score.json").write_text("{}")
    with pytest.raises(ContractError, match="not a score summary"):
        read_results([tmp_path / "x.score.json"], "baseline")


def test_pseudo_labels_count_only_what_a_search_made(tmp_path: Path, target_writer: Callable[..., None]) -> None:
    lines = [{"utt_id": "u1", "text": "a b"}, {"utt_id": "u2", "text": "c d"}, {"utt_id": "u3", "text": "e f"}]
    hidden = tmp_path / "text.jsonl"
    hidden.write_text("".join(json.dumps(line) + "\n" for line in lines))
    target_writer(tmp_path / "one.parquet", {"u1": "a b", "u2": "c x", "labelled": "z"})
    target_writer(tmp_path / "two.parquet", {"u3": "wrong words"}, "viterbi")
    found = pseudo_labels(hidden, [tmp_path / "one.parquet", tmp_path / "two.parquet"])
    assert found is not None
    assert (found.utterances, found.words, found.wer, found.exact) == (2, 4, 25.0, 50.0)
    assert pseudo_labels(hidden, [tmp_path / "two.parquet"]) is None
    hidden.write_text("{}")
    with pytest.raises(ContractError, match=r"text.jsonl:1: not a JSON line with utt_id and text"):
        pseudo_labels(hidden, [])


def test_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 2, "loss": 3}\n{"step": 1, "loss": 9}\n{"step": 2, "loss": 4}\n{"step": 2, "dev_wer": 50}\n'
    )
    rows = read_metrics([f"kd={path}"])["kd"]
    assert curve(rows, "loss") == [(1, 9.0), (2, 4.0)]
    assert curve(rows, "dev_wer") == [(2, 50.0)]
    with pytest.raises(ValueError, match="expected NAME=path"):
        read_metrics([str(path)])
    path.write_text('{"step": 1')
    with pytest.raises(ValueError, match=r"metrics.jsonl:1 is not JSON"):
        read_metrics([f"kd={path}"])


def test_numbers() -> None:
    assert [millions(n) for n in (1_134_567, 12_345_678, 317_000_000)] == ["1.13 M", "12.3 M", "317 M"]
    assert [signed(v) for v in (-0.4, 3.6, -12.0)] == ["0", "+4", "−12"]
    assert align(["a", "b"], [["xx", "1"], ["y", "22"]]).splitlines() == ["a    b", "------", "xx   1", "y   22"]
