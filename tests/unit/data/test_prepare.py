from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrans.__main__ import main
from kdtrans.config import SplitConfig, TokenizerConfig
from kdtrans.data.batches import load_features
from kdtrans.data.corpora import Utterance
from kdtrans.data.corpora.audio import open_cut
from kdtrans.data.manifest import read_cuts, speaker_of, text_of
from kdtrans.data.prepare import shared_speakers, split_by_speaker
from kdtrans.data.tokenizer import Tokenizer, train_tokenizer
from kdtrans.stages.check import at_speed, shard, write_shards
from tests.unit.data.test_manifest import make_cut

WORDS = ["ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder corpus, four utterances a speaker: train (6 speakers), more (2, no text), dev (2) and eval (2)."""
    rng = np.random.default_rng(0)
    for part, speakers in (("train", "abcdef"), ("more", "gh"), ("dev", "ij"), ("eval", "kl")):
        for speaker in speakers:
            for number in range(4):
                path = tmp_path / part / speaker / f"{part}-{speaker}{number}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, rng.normal(0, 0.1, 16000 + 1600 * number), 16000)
                if part != "more":
                    path.with_suffix(".txt").write_text(f"{WORDS[number]} {WORDS[-number]}\n")
    return tmp_path


@pytest.fixture
def run(corpus: Path) -> Callable[..., dict[str, Any]]:
    """Runs `prepare` with what differs from a plain configuration; returns the summary."""

    def prepare(status: int = 0, **differences: Any) -> dict[str, Any]:
        values = {
            "name": "folder",
            "labelled": ["train"],
            "unlabelled": ["more"],
            "dev": ["dev"],
            "test": {"final": ["eval"]},
            "num_shards": 3,
        }
        (corpus / "corpus.yaml").write_text(yaml.safe_dump(values | differences))
        out = corpus / "out"
        arguments = ["--config", corpus / "corpus.yaml", "--root", corpus, "--out-dir", out]
        assert main(["prepare", *map(str, arguments)]) == status
        return json.loads((out / "summary.json").read_text()) if status == 0 else {}

    return prepare


def ids(path: Path) -> list[str]:
    return [cut.id for cut in read_cuts([path])]


def test_prepare_writes_every_split_and_hides_unlabelled_text(corpus: Path, run: Callable[..., Any]) -> None:
    summary = run(split={"labelled_fraction": 0.5}, dev=["dev"])
    sizes = {name: (entry["utterances"], entry["speakers"]) for name, entry in summary["splits"].items()}
    assert sizes == {"train-labelled": (12, 3), "train-unlabelled": (20, 5), "dev": (8, 2), "final": (8, 2)}
    assert summary["shared_speakers"] == {}
    train = read_cuts([corpus / "out" / "train.jsonl.gz"])
    unlabelled = [cut for cut in train if text_of(cut) is None]
    assert len(unlabelled) == 20
    hidden = [json.loads(line) for line in (corpus / "out" / "unlabelled_text.jsonl").read_text().splitlines()]
    assert {row["utt_id"] for row in hidden} == {cut.id for cut in unlabelled if "more" not in cut.id}
    assert all(row["text"] for row in hidden)
    assert summary["splits"]["train-labelled"]["hours"] == round(3 * 4.6 / 3600, 4)
    assert (corpus / "out" / "summary.json.run.json").is_file()


def test_prepare_again_gives_the_same_bytes(corpus: Path, run: Callable[..., Any]) -> None:
    names = ("train.jsonl.gz", "dev.jsonl.gz", "final.jsonl.gz", "unlabelled_text.jsonl", "summary.json")
    runs = []
    for _ in range(2):
        run(split={"labelled_fraction": 0.5})
        runs.append({name: (corpus / "out" / name).read_bytes() for name in names})
    assert runs[0] == runs[1]


def spoil(corpus: Path, what: str) -> Path:
    path = corpus / "train" / "a" / "train-a1.wav"
    if what == "unreadable_audio":
        path.write_bytes(path.read_bytes()[:9000])
    elif what == "empty_audio":
        soundfile.write(path, np.zeros(0), 16000)
    elif what == "duplicate_id":
        path = path.rename(path.with_name("train-a0.flac"))
        soundfile.write(path, np.zeros(16000), 16000)
        path.with_suffix(".txt").write_text("TWO")
    elif what == "empty_text":
        path.with_suffix(".txt").write_text(" \n")
    elif what == "out_of_duration":
        soundfile.write(path, np.zeros(160), 16000)
    return path


REASONS = ["unreadable_audio", "empty_audio", "duplicate_id", "empty_text", "out_of_duration"]


@pytest.mark.parametrize("reason", REASONS)
def test_bad_utterance_is_dropped_and_counted(corpus: Path, run: Callable[..., Any], reason: str) -> None:
    spoil(corpus, reason)
    entry = run(checks={reason: "drop"})["splits"]["train-labelled"]
    assert list(entry["dropped"]) == [reason]
    assert entry["dropped"][reason]["utterances"] == 1
    assert (entry["utterances"], entry["found"]["utterances"]) == (23, 24)


@pytest.mark.parametrize("reason", REASONS)
def test_bad_utterance_stops_the_stage(
    corpus: Path, run: Callable[..., Any], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = spoil(corpus, reason)
    run(status=1, checks={reason: "fail"})
    message = capsys.readouterr().err
    assert str(path) in message
    assert f"corpus.checks.{reason}: drop" in message
    assert not (corpus / "out" / "summary.json").exists()


def test_length_does_not_thin_out_test_sets(run: Callable[..., Any]) -> None:
    summary = run(max_duration_s=1.15)["splits"]
    assert summary["train-labelled"]["dropped"]["out_of_duration"]["utterances"] == 12
    for name in ("dev", "final"):
        assert summary[name]["utterances"] == 8
        assert summary[name]["dropped"] == {}
        assert summary[name]["counted"]["out_of_duration"]["utterances"] == 4


def test_other_rates_are_counted(corpus: Path, run: Callable[..., Any]) -> None:
    path = corpus / "dev" / "i" / "dev-i0.wav"
    soundfile.write(path, np.zeros(8000), 8000)
    assert run()["splits"]["dev"]["resampled"] == 1
    cut = next(cut for cut in read_cuts([corpus / "out" / "dev.jsonl.gz"]) if cut.id == "i/dev-i0")
    assert cut.load_audio().shape == (1, 16000)


def test_a_split_with_nothing_left_is_refused(run: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    run(status=1, min_duration_s=5.0)
    assert "nothing is left of train-labelled" in capsys.readouterr().err
    run(status=1, test={"train-labelled": ["eval"]})
    assert "may not be called 'train-labelled'" in capsys.readouterr().err


@settings(deadline=None)
@given(speakers=st.integers(2, 40), dev=st.floats(0, 0.5), labelled=st.floats(0, 0.5), seed=st.integers(0, 5))
def test_split_by_speaker(speakers: int, dev: float, labelled: float, seed: int) -> None:
    utterances = [Utterance(f"{n}", f"s{n % speakers}", Path("x"), "T") for n in range(3 * speakers)]
    split = SplitConfig(seed=seed, dev_fraction=dev, labelled_fraction=labelled)
    groups = split_by_speaker(utterances, split)
    assert sorted(u.id for group in groups for u in group) == sorted(u.id for u in utterances)
    voices = [{u.speaker for u in group} for group in groups]
    assert sum(map(len, voices)) == speakers
    assert len(voices[1]) == (max(1, round(dev * speakers)) if dev > 0 else 0)
    assert abs(len(voices[0]) - labelled * speakers) <= 2
    assert groups == split_by_speaker(utterances[::-1][::-1], split)
    more = split_by_speaker(utterances, SplitConfig(seed=seed, dev_fraction=dev, labelled_fraction=0.5))
    assert voices[0] <= {u.speaker for u in more[0]}


def test_whole_corpus_is_labelled_by_default() -> None:
    utterances = [Utterance(f"{n}", f"s{n}", Path("x"), "T") for n in range(7)]
    assert split_by_speaker(utterances, SplitConfig()) == (utterances, [], [])
    _, dev, rest = split_by_speaker(utterances, SplitConfig(dev_fraction=0.1, labelled_fraction=0.9))
    assert (len(dev), len(rest)) == (1, 0)


def test_shared_speakers() -> None:
    splits = {
        "train": [make_cut("a", speaker="x"), make_cut("b", speaker="y")],
        "dev": [make_cut("c", speaker="y")],
        "test": [make_cut("d", speaker="x"), make_cut("e", speaker="y"), make_cut("f", speaker="z")],
    }
    assert shared_speakers(splits) == {"train & dev": 1, "train & test": 2, "dev & test": 1}


# --------------------------------------------------------------------------------------------------------------- check
@given(labelled=st.integers(0, 30), unlabelled=st.integers(0, 30), num_shards=st.integers(1, 7), seed=st.integers(0, 3))
@settings(deadline=None, max_examples=40)
def test_shards_are_even(labelled: int, unlabelled: int, num_shards: int, seed: int) -> None:
    texts = [make_cut(f"l{n}") for n in range(labelled)]
    bare = [make_cut(f"u{n}", None) for n in range(unlabelled)]
    if labelled + unlabelled < num_shards:
        with pytest.raises(ValueError, match=f"num_shards is {num_shards}"):
            shard(texts, bare, num_shards, seed)
        return
    shards = shard(texts, bare, num_shards, seed)
    assert sorted(cut.id for cuts in shards for cut in cuts) == sorted(cut.id for cut in texts + bare)
    for kind in ("l", "u"):
        counts = [sum(cut.id[0] == kind for cut in cuts) for cuts in shards]
        assert max(counts) - min(counts) <= 1
    assert all(shards)
    assert shards == shard(texts, bare, num_shards, seed)


def test_stale_shards_are_removed(tmp_path: Path) -> None:
    write_shards([[make_cut(str(n))] for n in range(4)], tmp_path)
    write_shards([[make_cut(str(n))] for n in range(2)], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cuts.00000.jsonl.gz", "cuts.00001.jsonl.gz"]


def test_check_counts_drops_and_shards(corpus: Path, run: Callable[..., Any]) -> None:
    train_tokenizer([" ".join(WORDS)] * 20, TokenizerConfig(type="char"), corpus / "char.model")
    (corpus / "train" / "a" / "train-a1.txt").write_text("ÑANDÚ")
    (corpus / "train" / "b" / "train-b1.txt").write_text("ONE " * 40)
    (corpus / "dev" / "i" / "dev-i1.txt").write_text("ÑANDÚ")
    run(split={"labelled_fraction": 0.5, "seed": 3}, checks={"unknown_characters": "drop"})
    prepared = {cut.id: cut for cut in read_cuts([corpus / "out" / "train.jsonl.gz"])}
    labelled = {utt_id for utt_id, cut in prepared.items() if text_of(cut) is not None}
    bad = labelled & {"a/train-a1", "b/train-b1"}

    command = ["check", "--config", corpus / "corpus.yaml", "--prepared", corpus / "out"]
    command += ["--tokenizer", corpus / "char.model", "--out-dir", corpus / "data"]
    assert main([*map(str, command)]) == 0
    shards = [corpus / "data" / "train" / f"cuts.{n:05d}.jsonl.gz" for n in range(3)]
    cuts = read_cuts(shards)
    assert {cut.id for cut in cuts} == prepared.keys() - bad
    assert {speaker_of(cut) for cut in cuts} == {speaker_of(cut) for cut in prepared.values()}
    assert len(ids(corpus / "data" / "dev" / "cuts.00000.jsonl.gz")) == 8
    assert len(ids(corpus / "data" / "final" / "cuts.00000.jsonl.gz")) == 8
    splits = json.loads((corpus / "data" / "summary.json").read_text())["splits"]
    assert splits["train-labelled"]["utterances"] == 12 - len(bad)
    assert sum(entry["utterances"] for entry in splits["train-labelled"]["dropped"].values()) == len(bad)
    assert splits["dev"]["counted"]["unknown_characters"]["utterances"] == 1
    assert splits["dev"]["utterances"] == 8


# -------------------------------------------------------------------------------------------------------------- speeds
def check(corpus: Path) -> dict[str, Any]:
    command = ["check", "--config", corpus / "corpus.yaml", "--prepared", corpus / "out"]
    command += ["--tokenizer", corpus / "char.model", "--out-dir", corpus / "data"]
    assert main([*map(str, command)]) == 0
    summary: dict[str, Any] = json.loads((corpus / "data" / "summary.json").read_text())
    assert summary["speeds"] == yaml.safe_load((corpus / "corpus.yaml").read_text())["speeds"]
    return summary["splits"]


def test_training_cuts_are_written_at_every_speed(corpus: Path, run: Callable[..., Any]) -> None:
    train_tokenizer([" ".join(WORDS)] * 20, TokenizerConfig(type="char"), corpus / "char.model")
    run(speeds=[0.9, 1.0, 1.1], min_duration_s=0.95)
    before = {cut.id: cut for cut in read_cuts([corpus / "out" / "train.jsonl.gz"])}
    splits = check(corpus)
    cuts = {cut.id: cut for cut in read_cuts(sorted((corpus / "data" / "train").glob("cuts.*.jsonl.gz")))}

    expected = {utt_id + suffix for utt_id in before for suffix in ("", "-sp0.9", "-sp1.1")}
    fast = {utt_id for utt_id in expected if utt_id.endswith("0-sp1.1")}  # 1 s becomes 0.91 s
    assert cuts.keys() == expected - fast
    for utt_id, cut in cuts.items():
        name, _, speed = utt_id.partition("-sp")
        assert cut.supervisions[0].id == utt_id
        assert text_of(cut) == text_of(before[name])
        assert cut.duration == pytest.approx(before[name].duration / float(speed or 1), abs=1e-4)
    labelled = [cut for cut in cuts.values() if text_of(cut) is not None]
    assert splits["train-labelled"]["utterances"] == len(labelled)
    assert splits["train-labelled"]["hours"] == pytest.approx(sum(c.duration for c in labelled) / 3600, abs=1e-4)
    assert splits["train-labelled"]["dropped"]["out_of_duration"]["utterances"] == 6
    assert splits["train-unlabelled"]["dropped"]["out_of_duration"]["utterances"] == 2
    assert len(ids(corpus / "data" / "dev" / "cuts.00000.jsonl.gz")) == 8


def test_text_checks_hold_for_each_copy(corpus: Path, run: Callable[..., Any]) -> None:
    train_tokenizer([" ".join(WORDS)] * 20, TokenizerConfig(type="char"), corpus / "char.model")
    tokenizer = Tokenizer(corpus / "char.model")
    text = "ONE TWO THREE FOUR FIVE SIX ONE TWO"[:25]
    (corpus / "train" / "a" / "train-a1.txt").write_text(text)
    frames = {0.9: 30, 1.0: 27, 1.1: 25}  # of its 1.1 s
    run(speeds=list(frames))
    dropped = sum(count < len(tokenizer.encode(text.strip())) for count in frames.values())
    assert 0 < dropped < 3
    assert check(corpus)["train-labelled"]["dropped"]["too_short_for_labels"]["utterances"] == dropped


@pytest.mark.parametrize("speed", [0.9, 1.1, 1.25])
def test_audio_at_a_speed_is_resampled_the_same_each_time(corpus: Path, run: Callable[..., Any], speed: float) -> None:
    run()
    for cut in read_cuts([corpus / "out" / "train.jsonl.gz"])[:4]:
        segment = cut.truncate(offset=0.3, duration=0.5)
        for original in (cut, segment):
            played = at_speed(original, speed)
            audio, again = (load_features(played, lambda samples: samples[:, None]) for _ in range(2))
            assert torch.equal(audio, again)
            assert len(audio) == played.num_samples
            assert played.num_samples == pytest.approx(original.num_samples / speed, abs=1)
    assert at_speed(cut, 1.0) is cut


@pytest.mark.parametrize("speed", [0.9, 1.1])
def test_a_tone_at_a_speed_is_the_higher_tone(tmp_path: Path, speed: float) -> None:
    def tone(hertz: float, samples: int) -> np.ndarray:
        return 0.5 * np.sin(2 * np.pi * hertz / 16000 * np.arange(samples))

    soundfile.write(tmp_path / "tone.wav", tone(200.0, 16000), 16000)
    cut = open_cut(Utterance("tone", "s", tmp_path / "tone.wav", "T"))
    audio = load_features(at_speed(cut, speed), lambda samples: samples[:, None])[:, 0].numpy()
    np.testing.assert_allclose(audio[200:-200], tone(200.0 * speed, len(audio))[200:-200], atol=5e-3)
