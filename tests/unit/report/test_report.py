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
from kdtrans.report.columns import align
from kdtrans.report.curves import curve, read_metrics, training_figures
from kdtrans.report.diagnostics import pseudo_labels
from kdtrans.report.results import read_results
from kdtrans.report.tables import millions, signed, text_table
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
    assert max(map(len, table.splitlines()[2:])) <= 120
    assert re.search(
        r"kd_unlabelled +1.13 M +\d+\.\d\d \[[\d., ]+\] +3: \d+\.\d\d-\d+\.\d\d +-\d+ \[-\d+, -\d+\]", table
    )
    assert re.search(r"\nkd +1.13 M .* ns\n", table), "no significant difference to hard"
    assert re.search(r"streaming_kd +test +640 +\+240 \(\+3[26]0\)", table)
    assert re.search(r"\nkd +test +whole utterance +\+40 ", table)
    assert "streaming ones alone: streaming_baseline." in table
    assert table.splitlines()[0].startswith("kd_unlabelled: ")
    assert re.search(r"\d\.\d times the teacher's errors, at 1/9 of the teacher's size\.", table.splitlines()[0])

    summary = json.loads((folder / "summary.json").read_text())
    assert len(summary["rows"]) == 7 * 3
    by_system = {row["system"]: row for row in summary["rows"] if (row["testset"], row["search"]) == ("test", "greedy")}
    assert by_system["baseline"]["against_baseline"] is None
    gain = by_system["kd_unlabelled"]["against_baseline"]
    assert gain["werr"] == pytest.approx(100 * (1 - by_system["kd_unlabelled"]["wer"] / by_system["baseline"]["wer"]))
    assert gain["werr_low"] < gain["werr"] < gain["werr_high"]
    assert gain["p"] < 0.05
    assert by_system["teacher"]["against_teacher"] is None
    assert by_system["streaming_kd"]["against_teacher"]["system"] == "teacher"
    assert by_system["kd"]["against_control"]["system"] == "hard"
    assert by_system["kd"]["against_control"]["werr_low"] < 0 < by_system["kd"]["against_control"]["werr_high"]
    assert by_system["streaming_kd"]["against_baseline"]["system"] == "streaming_baseline"
    assert by_system["streaming_kd"]["against_control"] is None, "there is no streaming_hard, and hard does not stream"
    assert (by_system["streaming_kd"]["streaming"], by_system["kd"]["streaming"]) == (True, False)
    assert (by_system["baseline"]["seeds"], by_system["kd"]["seeds"]) == ([1, 2, 3], None)
    assert [run["run"] for run in by_system["hard"]["runs"]] == ["hard-seed1", "hard-seed2"]
    assert by_system["streaming_kd"]["delay_ms"]["p50"] == 240
    assert by_system["teacher"]["delay_ms"] is None

    page = (folder / "index.html").read_text()
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    for part in ("Word error rate", "Training", "Data", "Targets", "errs most", "Provenance", "too short for labels"):
        assert part in page
    assert "Speakers that two splits share: 2 in train &amp; dev." in page
    assert "at each of its speeds, 0.9, 1;" in page
    assert page.count("<polyline") == 3 * 13
    colours = re.findall(r"stroke: (var\(--c\d\))[^>]*><title>kd_unlabelled-seed\d", page)
    assert len(colours) == 3 * 3
    assert len(set(colours)) == 1
    assert '<th class="number">lm</th>' in page
    assert "found by beam_lm" in page
    assert '<span class="change unsure">' in page
    assert "WER of the pseudo text" in page
    assert not re.search(r"https?://|<script|<link|src=|url\(|@import", page), "the page must be self-contained"
    assert (folder / "index.html.run.json").exists()


def test_page_without_optional_parts(made_run: dict[str, Any]) -> None:
    made_run["scores"] = [path for path in made_run["scores"] if "hard" not in str(path)]
    optional = {"indices": None, "unlabelled_text": None, "alignments": None, "metrics": made_run["metrics"][:1]}
    main(**{**made_run, **optional})
    page = (made_run["out_dir"] / "index.html").read_text()
    assert "vs baseline" in page
    assert "vs hard" not in page + (made_run["out_dir"] / "table.txt").read_text()
    assert "emission delay" not in page
    assert "<h2>Targets</h2>" not in page
    assert "<h3>Teacher</h3>" in page


def test_text_is_escaped(tmp_path: Path, made_run: dict[str, Any], score_writer: Callable[..., Path]) -> None:
    scores = [score_writer(tmp_path, "baseline", "greedy", "test", [("a <b> & c", "a <i> c"), ("d", "d")])]
    main(**{**made_run, "scores": scores, "alignments": None})
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
    assert best.system == "baseline"
    best = read_results([path for path in scores if "dev" not in path.name], "baseline").best_student()
    assert best is not None
    assert best.system == "kd"


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
    assert results.rows[0].baseline is None
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


def test_seeds_are_pooled(tmp_path: Path, score_writer: Callable[..., Path]) -> None:
    said = {
        "baseline-seed1": [("a b c d", "a b c d"), ("e f", "x y")],
        "baseline-seed2": [("a b c d", "a b x y"), ("e f", "x f")],
        "kd": [("a b c d", "a b c d"), ("e f", "e x")],
    }
    scores = [score_writer(tmp_path, run, "greedy", "test", pairs) for run, pairs in said.items()]
    baseline, kd = read_results(scores, "baseline", "kd").rows
    assert baseline.wer == pytest.approx(100 * (2 + 3) / 2 / 6)  # errors of both seeds, halved, over 6 words
    assert baseline.spread == pytest.approx((100 * 2 / 6, 100 * 3 / 6))
    assert (baseline.total("sub"), baseline.total("words")) == (5, 12)
    assert baseline.wer_low <= baseline.wer <= baseline.wer_high
    assert kd.baseline is not None
    assert kd.baseline.comparison.werr == pytest.approx(100 * (1 - 1 / 2.5))
    assert baseline.control is not None
    assert baseline.control.comparison.difference == pytest.approx(-kd.baseline.comparison.difference)
    assert (kd.control, baseline.baseline) == (None, None)
    # The tables say the same.
    table = text_table(read_results(scores, "baseline", "kd"))
    assert re.search(r"baseline +\S+ M +41.67 \[\S+, \S+\]  2: 33.33-50.00 +- +\+150 ", table)
    assert re.search(r"kd +\S+ M +16.67 \[\S+, \S+\] +- +-60 \[\S+, \S+\] +-\n", table)


def test_seeds_of_other_utterances_are_refused(tmp_path: Path, score_writer: Callable[..., Path]) -> None:
    one = score_writer(tmp_path, "kd-seed1", "greedy", "test", [("a", "a"), ("b", "b")])
    two = score_writer(tmp_path, "kd-seed2", "greedy", "test", [("a", "a")])
    with pytest.raises(ContractError, match=r"kd-seed2.*\(1 utterances\) and .*kd-seed1.*\(2\) differ in utt_id"):
        read_results([one, two], "baseline")


def test_delays(tmp_path: Path, score_writer: Callable[..., Path], alignment_writer: Callable[..., Path]) -> None:
    runs = {"teacher": [3, 9], "kd-seed1": [4, 9], "kd-seed2": [5, 12]}
    scores = [score_writer(tmp_path, run, "greedy", "test", [("a b", "a b")]) for run in runs]
    files = [alignment_writer(tmp_path / run / "test.parquet", {"u": frames}) for run, frames in runs.items()]
    delays = read_results(scores, "baseline", alignments=files).delays
    assert list(delays) == [("kd", "test")]
    assert delays["kd", "test"].mean == pytest.approx(40 * (1 + 0 + 2 + 3) / 4)
    assert read_results(scores, "baseline", alignments=files[1:]).delays == {}, "no teacher to compare with"
    with pytest.raises(ContractError, match="the run 'kd-seed2' was not scored"):
        read_results(scores[:2], "baseline", alignments=files)


def test_streaming_systems_are_compared_with_their_twin(tmp_path: Path, score_writer: Callable[..., Path]) -> None:
    pairs = [("a b c d", "a b c x"), ("e f", "e f")]
    names = ["baseline", "streaming_baseline", "streaming_kd", "kd"]
    scores = [score_writer(tmp_path, name, "greedy", "test", pairs) for name in names]
    against = {row.system: row.baseline and row.baseline.system for row in read_results(scores, "baseline").rows}
    expected = {"baseline": None, "streaming_baseline": None, "streaming_kd": "streaming_baseline", "kd": "baseline"}
    assert against == expected
    twin_alone = read_results(scores[1:3], "none", control="baseline").row("streaming_kd", ("test", "greedy"))
    assert twin_alone is not None
    assert twin_alone.control is not None
    assert twin_alone.control.system == "streaming_baseline"
    without = read_results([scores[0], scores[2]], "baseline").row("streaming_kd", ("test", "greedy"))
    assert without is not None
    assert without.baseline is not None
    assert without.baseline.system == "baseline"


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


def test_teachers_have_figures_of_their_own() -> None:
    rows = [{"step": 1, "dev_wer": 9.0}, {"step": 2, "dev_wer": 4.0}]
    students, teachers = training_figures(dict.fromkeys(["teacher", "teachers/second", "kd"], rows), {}).split("<h3>")
    assert ("kd</span>" in students, "second" in students) == (True, False)
    assert ("kd" in teachers, "teachers/second</span>" in teachers) == (False, True)
    assert teachers.startswith("Teachers</h3>")
    assert "<h3>Teacher</h3>" in training_figures({"teacher": rows, "kd": rows}, {})


def test_numbers() -> None:
    assert [millions(n) for n in (1_134_567, 12_345_678, 317_000_000)] == ["1.13 M", "12.3 M", "317 M"]
    assert [signed(v) for v in (-0.4, 3.6, -12.0)] == ["0", "+4", "−12"]
    assert align(["a", "b"], [["xx", "1"], ["y", "22"]]).splitlines() == ["a    b", "------", "xx   1", "y   22"]
