"""A folder of target shards of an imagined teacher, with their manifests and tokenizer: sound, and quickly made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from lhotse import MonoCut, SupervisionSegment

from kdtrans.artifacts import sha256_file, write_json
from kdtrans.config import TokenizerConfig
from kdtrans.contracts import MODEL_KEYS, TargetsFooter
from kdtrans.data.manifest import write_cuts
from kdtrans.data.tokenizer import Tokenizer, train_tokenizer
from kdtrans.targets.shards import Target, write_shard

WORDS = ["one", "two", "three", "four", "five"]
TEACHER = "a" * 64


class ShardSet:
    """data/cuts.NNNNN.jsonl.gz, targets/part-NNNNN.parquet with records, tokenizer.model and model.pt."""

    def __init__(self, folder: Path, shards: int = 3, utterances: int = 4, top_k: int = 4) -> None:
        self.folder, self.targets, self.data = folder, folder / "targets", folder / "data"
        train_tokenizer([" ".join(WORDS)], TokenizerConfig(type="char"), folder / "tokenizer.model")
        self.tokenizer = Tokenizer(folder / "tokenizer.model")
        self.model = folder / "model.pt"
        facts = {"fingerprint": TEACHER, "tokenizer_sha256": self.tokenizer.sha256}
        torch.save(dict.fromkeys(MODEL_KEYS) | facts, self.model)
        random = np.random.default_rng(0)
        self.rows: list[list[Target]] = []
        for shard in range(shards):
            texts = [" ".join(random.choice(WORDS, 2)) for _ in range(utterances)]
            cuts = [self._cut(f"utt{shard}-{i}", None if i % 2 else text) for i, text in enumerate(texts)]
            write_cuts(cuts, self.manifest(shard))
            self.rows.append([self._target(cuts[i].id, text, i, top_k, random) for i, text in enumerate(texts)])
        self.footer = TargetsFooter(
            teacher_sha256=TEACHER,
            tokenizer_sha256=self.tokenizer.sha256,
            vocab_size=self.tokenizer.vocab_size,
            top_k=top_k,
            frame_offset=0,
            manifest_sha256="",
            min_probability=1e-2,
            logp_step=1 / 64,
        )
        for shard in range(shards):
            self.write(shard)

    def part(self, shard: int) -> Path:
        return self.targets / f"part-{shard:05d}.parquet"

    def manifest(self, shard: int) -> Path:
        return self.data / f"cuts.{shard:05d}.jsonl.gz"

    def write(self, shard: int, rows: list[Target] | None = None, **footer: object) -> None:
        """Write a shard and its record, as it is or with other rows or another footer."""
        entries = {"manifest_sha256": sha256_file(self.manifest(shard)), **footer}
        self.part(shard).parent.mkdir(exist_ok=True)
        write_shard(self.rows[shard] if rows is None else rows, replace(self.footer, **entries), self.part(shard))  # type: ignore[arg-type]
        self.record(shard)

    def record(self, shard: int) -> None:
        write_json(f"{self.part(shard)}.run.json", {"sha256": sha256_file(self.part(shard))})

    def verify_command(self, *more: str) -> list[str]:
        files = {"--cuts": self.data, "--model": self.model, "--tokenizer": self.folder / "tokenizer.model"}
        return ["verify", str(self.targets), *(str(part) for item in files.items() for part in item), *more]

    def files(self) -> dict[str, str]:
        """Hashes of what lies beside the shards, and theirs."""
        return {path.name: sha256_file(path) for path in sorted(self.targets.iterdir())}

    @staticmethod
    def _cut(utt_id: str, text: str | None) -> MonoCut:
        return MonoCut(utt_id, 0.0, 1.0, 0, [SupervisionSegment(utt_id, utt_id, 0.0, 1.0, text=text, speaker="s")])

    def _target(self, utt_id: str, text: str, number: int, top_k: int, random: np.random.Generator) -> Target:
        labels = self.tokenizer.encode(text)
        num_frames = int(random.integers(10, 20))
        path = random.permutation(np.array([1] * len(labels) + [0] * (num_frames - 1)))
        path[path == 1] = labels
        path = np.append(path, 0)
        logits = 3 * random.normal(size=(len(path), self.tokenizer.vocab_size))
        logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        path_logp = float(np.take_along_axis(logp, path[:, None], 1).sum())
        ids = np.argsort(-logp, 1)[:, :top_k]
        best = np.round(np.take_along_axis(logp, ids, 1) * 64) / 64
        left_out = np.exp(best) < 1e-2
        return Target(
            utt_id=utt_id,
            rank=0,
            weight=1.0,
            origin="greedy" if number % 2 else "viterbi",
            num_frames=num_frames,
            path=path.astype(np.uint16),
            topk_ids=np.where(left_out, 0, ids).astype(np.uint16),
            topk_logp=np.where(left_out, -np.inf, best).astype(np.float16),
            path_logp=path_logp,
            total_logp=path_logp + 0.5,
            text=text,
        )
