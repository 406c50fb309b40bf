"""Sound things to be broken: a small corpus in each layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import yaml

from kdtrans.data.manifest import read_cuts

PARTS = ("train", "dev", "test")
SPEAKERS = ("anna", "ben")


@dataclass(frozen=True)
class SoundCorpus:
    """A corpus of two utterances by each of two speakers in each part; `lists` are the text files to break."""

    name: str
    root: Path
    lists: list[Path]
    audio: list[Path]

    def command(self, out: Path, **changes: object) -> list[str | Path]:
        """`kdtrans prepare` of the corpus into a folder, with changes to the corpus section."""
        config = self.root.parent / f"{self.name}.yaml"
        roles = {"labelled": ["train"], "unlabelled": [], "dev": ["dev"], "test": {"test": ["test"]}}
        config.write_text(yaml.safe_dump({"name": self.name, **roles, **changes}))
        return ["prepare", "--config", config, "--root", self.root, "--out-dir", out]


def write_audio(path: Path, seconds: float = 0.5, rate: int = 16000, channels: int = 1, **options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(0).normal(0, 0.1, (int(seconds * rate), channels))
    soundfile.write(path, samples, rate, **options)
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def folder_corpus(root: Path) -> SoundCorpus:
    """Folders with a TSV each."""
    lists, audio = [], []
    for part in PARTS:
        rows = [f"{part}/{speaker}/{i}.wav" for speaker in SPEAKERS for i in range(2)]
        audio += [write_audio(root / row) for row in rows]
        lines = [f"{row}\tONE TWO\t{row.split('/')[1]}\t{part}-{row.split('/')[1]}-{row[-5]}\n" for row in rows]
        lists.append(write(root / f"{part}.tsv", "".join(["path\ttext\tspeaker\tid\n", *lines])))
    return SoundCorpus("folder", root, lists[:1], audio)


def kaldi_corpus(root: Path) -> SoundCorpus:
    """Data folders with a recording a speaker, cut by segments."""
    lists, audio = [], []
    for part in PARTS:
        audio += [write_audio(root / f"audio/{part}-{speaker}.wav", 1.2) for speaker in SPEAKERS]
        utts = [(f"{speaker}-{part}-{i}", speaker, i) for speaker in SPEAKERS for i in range(2)]
        contents = {
            "wav.scp": "".join(f"{speaker} audio/{part}-{speaker}.wav\n" for speaker in SPEAKERS),
            "utt2spk": "".join(f"{utt} {speaker}\n" for utt, speaker, _ in utts),
            "text": "".join(f"{utt} ONE TWO\n" for utt, *_ in utts),
            "segments": "".join(f"{utt} {speaker} {0.5 * i:g} {0.5 * i + 0.6:g}\n" for utt, speaker, i in utts),
        }
        lists += [write(root / part / name, text) for name, text in contents.items()]
    return SoundCorpus("kaldi", root, lists[:4], audio)


def librispeech_corpus(root: Path) -> SoundCorpus:
    """Chapters with their transcripts."""
    lists, audio = [], []
    for number, part in enumerate(PARTS):
        for speaker in (10 + number, 20 + number):
            folder, ids = root / part / f"{speaker}" / "1", [f"{speaker}-1-{i:04d}" for i in range(2)]
            audio += [write_audio(folder / f"{utt}.flac") for utt in ids]
            lists.append(write(folder / f"{speaker}-1.trans.txt", "".join(f"{utt} ONE TWO\n" for utt in ids)))
    return SoundCorpus("librispeech", root, lists[:2], audio)


def an4_corpus(root: Path) -> SoundCorpus:
    """Lists of file ids and transcriptions."""
    lists, audio = [], []
    for part in PARTS:
        ids = [f"{speaker}/{i}-{speaker}-{part}" for speaker in SPEAKERS for i in range(2)]
        audio += [write_audio(root / "wav" / f"{fileid}.wav") for fileid in ids]
        lists.append(write(root / f"etc/an4_{part}.fileids", "".join(f"{fileid}\n" for fileid in ids)))
        lines = "".join(f"<s> ONE TWO </s> ({fileid.split('/')[1]})\n" for fileid in ids)
        lists.append(write(root / f"etc/an4_{part}.transcription", lines))
    return SoundCorpus("an4", root, lists[:2], audio)


LAYOUTS = {"folder": folder_corpus, "kaldi": kaldi_corpus, "librispeech": librispeech_corpus, "an4": an4_corpus}


def is_sound_preparation(out: Path) -> bool:
    """Whether what `prepare` wrote reads back: named speakers, clean text, and audio that is there."""
    cuts = [cut for name in PARTS for cut in read_cuts([out / f"{name}.jsonl.gz"])]
    texts = [cut.supervisions[0].text for cut in cuts]
    return (
        all(cut.id and cut.supervisions[0].speaker and Path(cut.recording.sources[0].source).is_file() for cut in cuts)
        and all(text is None or (text == " ".join(text.split()) and "\0" not in text) for text in texts)
        and all(cut.load_audio().shape == (1, cut.num_samples) for cut in cuts)
    )
