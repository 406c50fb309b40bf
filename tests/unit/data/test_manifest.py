from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment

from kdtrans.contracts import ContractError
from kdtrans.data.manifest import read_cuts, speaker_of, text_of, write_cuts


def make_cut(utt_id: str, text: str | None = "ONE", speaker: str = "s", seconds: float = 1.0) -> MonoCut:
    samples = int(16000 * seconds)
    sources = [AudioSource("file", [0], f"/nowhere/{utt_id}.wav")]
    recording = Recording(utt_id, sources, sampling_rate=16000, num_samples=samples, duration=seconds)
    supervision = SupervisionSegment(utt_id, utt_id, 0.0, seconds, text=text, speaker=speaker)
    return MonoCut(utt_id, 0.0, seconds, 0, supervisions=[supervision], recording=recording)


def test_round_trip_keeps_text_speaker_and_odd_characters(tmp_path: Path) -> None:
    cuts = [make_cut("a", "ÉTÉ\u2028TWO"), make_cut("b", None, "t"), make_cut("c", "")]
    write_cuts(cuts, tmp_path / "x.jsonl.gz")
    back = read_cuts([tmp_path / "x.jsonl.gz"])
    assert back == cuts
    assert [text_of(cut) for cut in back] == ["ÉTÉ\u2028TWO", None, ""]
    assert [speaker_of(cut) for cut in back] == ["s", "t", "s"]


def test_same_cuts_same_bytes(tmp_path: Path) -> None:
    for name in ("x", "y"):
        write_cuts([make_cut("a"), make_cut("b")], tmp_path / f"{name}.jsonl.gz")
    assert (tmp_path / "x.jsonl.gz").read_bytes() == (tmp_path / "y.jsonl.gz").read_bytes()


def test_refuses_what_is_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    with pytest.raises(ContractError, match=r"x\.jsonl\.gz does not exist"):
        read_cuts([path])
    write_cuts([make_cut(str(i)) for i in range(50)], path)
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 1, 5):
        path.write_bytes(whole[:size])
        with pytest.raises(ContractError, match=r"x\.jsonl\.gz is not a whole manifest"):
            read_cuts([path])
    path.write_bytes(whole[:60] + bytes(8) + whole[68:])
    with pytest.raises(ContractError, match=r"x\.jsonl\.gz"):
        read_cuts([path])


def test_refuses_repeated_ids_over_files(tmp_path: Path) -> None:
    write_cuts([make_cut("a"), make_cut("b")], tmp_path / "x.jsonl.gz")
    write_cuts([make_cut("b")], tmp_path / "y.jsonl.gz")
    with pytest.raises(ContractError, match=r"y\.jsonl\.gz:1: id 'b' is already in .*x\.jsonl\.gz"):
        read_cuts([tmp_path / "x.jsonl.gz", tmp_path / "y.jsonl.gz"])


@pytest.mark.parametrize("line", ["not json", "[]", json.dumps({"type": "MonoCut", "id": "a"})])
def test_refuses_what_is_no_cut(tmp_path: Path, line: str) -> None:
    with gzip.open(tmp_path / "x.jsonl.gz", "wt") as file:
        file.write(line + "\n")
    with pytest.raises(ContractError, match=r"x\.jsonl\.gz:1"):
        read_cuts([tmp_path / "x.jsonl.gz"])


def test_refuses_another_sampling_rate(tmp_path: Path) -> None:
    write_cuts([make_cut("a").resample(8000)], tmp_path / "x.jsonl.gz")
    with pytest.raises(ContractError, match=r"x\.jsonl\.gz:1: cut 'a' is at 8000 Hz, expected 16000"):
        read_cuts([tmp_path / "x.jsonl.gz"])


def test_refuses_a_cut_without_exactly_one_supervision(tmp_path: Path) -> None:
    cut = make_cut("a")
    cut.supervisions = []
    write_cuts([cut], tmp_path / "x.jsonl.gz")
    with pytest.raises(ContractError, match="one supervision"):
        read_cuts([tmp_path / "x.jsonl.gz"])


def test_a_folder_stands_for_its_shards_in_order(tmp_path: Path) -> None:
    made = [make_cut(f"u{i}") for i in range(3)]
    for number in (2, 0, 1):
        write_cuts([made[number]], tmp_path / f"cuts.{number:05d}.jsonl.gz")
    (tmp_path / "summary.json").write_text("{}")
    assert [c.id for c in read_cuts([tmp_path])] == ["u0", "u1", "u2"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ContractError, match=r"empty has no cuts\.NNNNN\.jsonl\.gz"):
        read_cuts([tmp_path / "empty"])
