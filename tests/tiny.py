"""A toy corpus and toy settings: seconds of training on one core, for tests of the machinery, not of accuracy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import yaml
from lhotse import MonoCut, Recording, SupervisionSegment

from kdtrans.config import TokenizerConfig
from kdtrans.data.manifest import write_cuts
from kdtrans.data.tokenizer import train_tokenizer

WORDS = ["one", "two", "three", "four", "five"]

TEACHER = {
    "encoder": "random",
    "random": {"dim": 16, "layers": 1, "heads": 2, "ffn_dim": 16, "conv_dim": 8},
    "predictor": {"dim": 8},
    "joiner_dim": 8,
    "training": {"updates": 4, "max_duration_s": 4.0, "evaluate_every": 4, "log_every": 2, "checkpoint_every": 2},
}
STUDENT = {
    "encoder": {"dim": 16, "layers": 1, "heads": 2, "ffn_dim": 16, "conv_kernel": 3, "subsampling_channels": 4},
    "predictor": {"dim": 8},
    "joiner_dim": 8,
    "unlabelled": True,
    "kd": {"weight": 0.5},
    "training": {
        "optimizer": "muon",
        "updates": 12,
        "max_duration_s": 4.0,
        "evaluate_every": 6,
        "log_every": 2,
        "checkpoint_every": 2,
    },
}
TARGETS = {"top_k": 4, "search": {"max_symbols": 1}, "max_duration_s": 4.0}


class Workspace:
    """A folder with audio, manifests, a tokenizer and configuration files."""

    def __init__(self, folder: Path, utterances: int = 12) -> None:
        self.folder = folder
        random = np.random.default_rng(0)
        cuts = []
        for i in range(utterances):
            words = [WORDS[j] for j in random.integers(len(WORDS), size=random.integers(1, 4))]
            labelled = i % 3 != 2
            cuts.append(self._cut(f"utt{i:02d}", 0.5 + 0.4 * len(words), " ".join(words) if labelled else None, random))
        self.train, self.dev = folder / "data" / "cuts.00000.jsonl.gz", folder / "dev.jsonl.gz"
        self.teacher = folder / "teacher" / "model.pt"
        self.part, self.index = folder / "targets" / "part-00000.parquet", folder / "targets" / "index.json"
        write_cuts(cuts, self.train)
        write_cuts([cut for cut in cuts if cut.supervisions[0].text][:3], self.dev)
        self.cuts = cuts
        self.tokenizer = folder / "tokenizer.model"
        train_tokenizer([" ".join(WORDS)], TokenizerConfig(type="char"), self.tokenizer)
        for name, values in (("teacher", TEACHER), ("student", STUDENT), ("targets", TARGETS)):
            self.config(name).write_text(yaml.safe_dump(values))

    def config(self, name: str) -> Path:
        """Configuration file of a stage."""
        return self.folder / f"{name}.yaml"

    def teacher_command(self, out: Path) -> list[str]:
        """Command line that trains the toy teacher."""
        return self._training("teacher", out)

    def dump_command(self, teacher: Path, out: Path) -> list[str]:
        """Command line that dumps targets of the training split."""
        options = {"config": self.config("targets"), "model": teacher, "cuts": self.train, "tokenizer": self.tokenizer}
        return ["dump", *_flags(options), "--out", str(out)]

    def verify_command(self, teacher: Path, folder: Path) -> list[str]:
        """Command line that checks a folder with the targets of the training split and writes its index."""
        options = {"cuts": self.train.parent, "model": teacher, "tokenizer": self.tokenizer}
        return ["verify", str(folder), *_flags(options), "--out", str(folder / "index.json")]

    def student_command(self, index: Path, out: Path) -> list[str]:
        """Command line that trains the toy student."""
        return [*self._training("student", out), *_flags({"index": index})]

    def _training(self, kind: str, out: Path) -> list[str]:
        options = {"config": self.config(kind), "train": self.train, "dev": self.dev, "tokenizer": self.tokenizer}
        return [f"train-{kind}", *_flags(options | {"checkpoints": out.parent / "checkpoints", "out": out})]

    def _cut(self, utt_id: str, seconds: float, text: str | None, random: np.random.Generator) -> MonoCut:
        path = self.folder / f"{utt_id}.flac"
        soundfile.write(path, random.normal(scale=0.1, size=int(16000 * seconds)), 16000)
        supervision = SupervisionSegment(utt_id, utt_id, 0.0, seconds, text=text, speaker="speaker")
        return MonoCut(utt_id, 0.0, seconds, 0, [supervision], recording=Recording.from_file(path))


def _flags(options: dict[str, Path]) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]
