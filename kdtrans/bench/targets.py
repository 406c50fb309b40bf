"""How small and true target shards are, what making them costs, how fast they are read: `kdtrans bench targets`.

Shapes: B utterances, F feature frames, C channels, N path nodes, V vocabulary, K stored classes a node.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse import MonoCut, SupervisionSegment
from torch import Tensor

from kdtrans.bench import reading
from kdtrans.bench.table import Bench, Measurement
from kdtrans.config import PredictorConfig, TargetsConfig, TeacherConfig, TokenizerConfig
from kdtrans.contracts import FRAME_SHIFT_MS, TargetsFooter
from kdtrans.data.batches import inference_batches
from kdtrans.data.manifest import read_cuts
from kdtrans.data.tokenizer import Tokenizer, train_tokenizer
from kdtrans.models.build import build_teacher
from kdtrans.models.transducer import Transducer
from kdtrans.targets.encoding import encode
from kdtrans.targets.make import make_targets
from kdtrans.targets.shards import Target, read_shard, row_to_target, write_shard
from kdtrans.training.checkpoint import load_model

SAMPLE = Path(__file__).parents[2] / "assets" / "an4-targets" / "full.parquet"
LIMITS = {
    "mb_per_hour": "<= 2.5",
    "tail_mass": "< 0.01",
    "kl_nats_per_node": "< 0.01",
    "dump_overhead": "<= 0.10 of the encoder's time",
    "read_x_realtime": ">= 1000",
    "start_s": "< 2",
    "rss_growth_mb": "< 200",
}
WHISPER_BASE = {  # what of it sets the time of its encoder
    "model_type": "whisper",
    "architectures": ["WhisperEncoder"],
    **{"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048},
    **{"num_mel_bins": 80, "max_source_positions": 1500},
}
LEAST = 1.0e-7  # of a tail, before its logarithm is taken
Batches = list[tuple[list[MonoCut], Tensor, Tensor]]


@dataclass(frozen=True)
class Material:
    """Real targets with the whole vocabulary at every node, and where they are from."""

    name: str
    footer: TargetsFooter
    targets: list[Target]

    @property
    def hours(self) -> float:
        return sum(target.num_frames for target in self.targets) * FRAME_SHIFT_MS / 3.6e6


def bench_targets(quick: bool, results: Path | None) -> Bench:
    """Run all three parts.

    Args:
        quick: end within a minute on two idle cores.
        results: a results folder whose teacher and training cuts are measured; None: the project's sample of AN4.

    Raises:
        ValueError: when there is no sample where the project is not run from its own folder.
    """
    config = TargetsConfig()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if results is None:
            material, teacher, tokenizer, batches = _from_sample(folder, config)
        else:
            material, teacher, tokenizer, batches = _from_results(results, config, 60 if quick else 240)
        rows, ratios = measure_encoding(material, config, folder)
        made, overhead = measure_dump(teacher, tokenizer, batches[: 2 if quick else 4], config, folder, repeats=5)
        read, speed = measure_reading(folder, quick)
    return Bench("targets", rows + made + read, ratios | overhead | speed, LIMITS)


# ------------------------------------------------------------------------------------------------------------ encoding
def measure_encoding(
    material: Material, config: TargetsConfig, folder: Path
) -> tuple[list[Measurement], dict[str, float]]:
    """Size and truth of targets as `config` has them written, against the whole distributions."""
    k = min(config.top_k, material.footer.vocab_size)
    targets = [encoded(target, config) for target in material.targets]
    footer = replace(
        material.footer, top_k=k, min_probability=config.min_probability, logp_step=config.logp_step, schema_version=3
    )
    write_shard(targets, footer, folder / "encoded.parquet")
    size = (folder / "encoded.parquet").stat().st_size
    whole_NV = np.concatenate([spread(t.topk_ids, t.topk_logp, t.topk_ids.shape[1]) for t in material.targets])
    stored_NV = np.concatenate([spread(t.topk_ids, t.topk_logp, whole_NV.shape[1]) for t in targets])
    tail_N = np.concatenate([1 - np.exp(t.topk_logp.astype(np.float64)).sum(1) for t in targets]).clip(0)
    ratios = {
        "mb_per_hour": size / 1e6 / material.hours,
        "tail_mass": float(tail_N.mean()),
        "kl_nats_per_node": float(divergence(whole_NV, stored_NV).mean()),
    }
    conditions: dict[str, str | int | float] = {
        "from": material.name,
        "utterances": len(targets),
        "minutes": round(material.hours * 60, 1),
        "V": whole_NV.shape[1],
        "k": k,
        "min_probability": config.min_probability,
        "logp_step": config.logp_step,
    }
    units = {"mb_per_hour": "MB/h", "tail_mass": "", "kl_nats_per_node": "nats"}
    rows = [Measurement(name, units[name], [value], conditions) for name, value in ratios.items()]
    rows.append(Measurement("nodes per hour", "", [len(whole_NV) / material.hours], {"from": material.name}))
    return rows, ratios


def encoded(target: Target, config: TargetsConfig) -> Target:
    """A target of the whole vocabulary as a dump with `config` writes it."""
    k = config.top_k
    ids, logp = encode(target.topk_ids[:, :k], target.topk_logp[:, :k], config.min_probability, config.logp_step)
    return replace(target, topk_ids=ids, topk_logp=logp)


def spread(ids_NK: np.ndarray, logp_NK: np.ndarray, vocab_size: int) -> np.ndarray:
    """Whole distributions (N, V) from stored ones: the tail's mass is shared evenly by the classes left out."""
    p_NK = np.exp(logp_NK.astype(np.float64))
    node_N, _ = is_stored = np.nonzero(p_NK > 0)
    tail_N = (1 - p_NK.sum(1)).clip(LEAST)
    left_out_N = vocab_size - np.bincount(node_N, minlength=len(p_NK))
    p_NV = np.repeat((tail_N / left_out_N.clip(1))[:, None], vocab_size, axis=1)
    p_NV[node_N, ids_NK[is_stored]] = p_NK[is_stored]
    return p_NV / p_NV.sum(1, keepdims=True)


def divergence(p_NV: np.ndarray, q_NV: np.ndarray) -> np.ndarray:
    """KL(p || q) of every node (N,), nats."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms_NV = p_NV * (np.log(p_NV) - np.log(q_NV))
    return np.where(p_NV > 0, terms_NV, 0.0).sum(1)


# ---------------------------------------------------------------------------------------------------------------- dump
def measure_dump(
    teacher: Transducer, tokenizer: Tokenizer, batches: Batches, config: TargetsConfig, folder: Path, repeats: int
) -> tuple[list[Measurement], dict[str, float]]:
    """What Viterbi, gather, top-k, encoding and writing cost beside the teacher's encoder, on the same batches.

    CPU seconds of one thread, so that other programs on the machine do not count. Both are of the same run: a hook on
    the encoder takes its part, and the rest is the overhead.
    """
    cuts = [cut for batch, *_ in batches for cut in batch]
    footer = TargetsFooter("", tokenizer.sha256, tokenizer.vocab_size, min(config.top_k, tokenizer.vocab_size), 0, "")

    def dump() -> None:
        made = [
            target
            for batch, features_BFC, lengths_B in batches
            for ranked in make_targets(teacher, batch, features_BFC, lengths_B, tokenizer, config)
            for target in ranked
        ]
        write_shard(made, footer, folder / "made.parquet")

    dump()  # memory is allocated and files are in the cache before the clock runs
    forward, overhead = [], []
    for _ in range(repeats):
        with timed_encoder(teacher) as seconds:
            total = cpu_seconds(dump)
        forward.append(sum(seconds))
        overhead.append(total - sum(seconds))
    conditions: dict[str, str | int | float] = {
        "batches": len(batches),
        "utterances": len(cuts),
        "audio s": round(sum(cut.duration for cut in cuts)),
        "V": tokenizer.vocab_size,
        "threads": torch.get_num_threads(),
    }
    ratio = Measurement("dump_overhead", "", [o / f for o, f in zip(overhead, forward, strict=True)], conditions)
    rows = [
        Measurement("encoder forward", "CPU s", forward, conditions),
        Measurement("Viterbi, gather, top-k, encode, write", "CPU s", overhead, conditions),
        ratio,
    ]
    return rows, {"dump_overhead": ratio.median}


@contextmanager
def timed_encoder(teacher: Transducer) -> Iterator[list[float]]:
    """A list to which every call of the teacher's encoder adds its CPU seconds."""
    started: list[float] = []
    seconds: list[float] = []

    def before(module: torch.nn.Module, arguments: Any) -> None:
        started.append(time.process_time())

    def after(module: torch.nn.Module, arguments: Any, result: Any) -> None:
        seconds.append(time.process_time() - started.pop())

    handles = [teacher.encoder.register_forward_pre_hook(before), teacher.encoder.register_forward_hook(after)]
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


def cpu_seconds(work: Callable[[], None]) -> float:
    """CPU seconds of this process for a piece of work."""
    started = time.process_time()
    work()
    return time.process_time() - started


# ------------------------------------------------------------------------------------------------------------- reading
def measure_reading(folder: Path, quick: bool) -> tuple[list[Measurement], dict[str, float]]:
    """Read a synthetic corpus in a trainer's order, each repeat in a fresh process."""
    asked, repeats, count = (300, 3, 500) if quick else (10_000, 5, 5_000)
    corpus = folder / "corpus"
    corpus.mkdir()
    deadline = time.monotonic() + 15 if quick else None
    shards = reading.write_corpus(corpus, asked, deadline)
    runs = [reading.read_in_a_fresh_process(corpus / "index.json", shards, count) for _ in range(repeats)]
    conditions: dict[str, str | int | float] = {
        "shards": shards,
        "hours": round(shards * reading.UTTERANCES * reading.SECONDS / 3600, 1),
        "targets read": count,
        "V": reading.VOCABULARY,
        "k": reading.TOP_K,
    }
    rows = [
        Measurement("read_x_realtime", "s/s", [run["audio_s"] / run["read_s"] for run in runs], conditions),
        Measurement("read, by CPU time", "s/s", [run["audio_s"] / run["cpu_s"] for run in runs], conditions),
        Measurement("start_s", "s", [run["start_s"] for run in runs], conditions),
        Measurement("start, by CPU time", "s", [run["start_cpu_s"] for run in runs], conditions),
        Measurement("rss_growth_mb", "MB", [run["rss_growth_mb"] for run in runs], conditions),
    ]
    return rows, {row.name: row.median for row in rows if row.name in LIMITS}


# ------------------------------------------------------------------------------------------------------------ material
def _from_sample(folder: Path, config: TargetsConfig) -> tuple[Material, Transducer, Tokenizer, Batches]:
    """The AN4 sample; an untrained teacher of Whisper base's size, and batches of noise shaped like the sample.

    The time of Viterbi, gather and top-k depends on sizes alone.
    """
    if not SAMPLE.is_file():
        raise ValueError(f"{SAMPLE} is not there: run it in a clone of the project, or name a folder by --results")
    footer, table = read_shard(SAMPLE)
    targets = [row_to_target(table, row, footer.top_k) for row in range(len(table))]
    texts = [target.text for target in targets]
    train_tokenizer(texts, TokenizerConfig(type="char"), folder / "tokenizer.model")
    tokenizer = Tokenizer(folder / "tokenizer.model")
    torch.manual_seed(0)
    # The predictor and joiner of workflow/configs/an4.yaml.
    sizes = TeacherConfig(encoder="whisper-base", predictor=PredictorConfig(dim=256), joiner_dim=256)
    architecture = {"network": WHISPER_BASE, "normalises": False}
    teacher = build_teacher(sizes, tokenizer.vocab_size, architecture).eval()
    longest = sorted(targets, key=lambda target: -target.num_frames)
    material = Material(f"{SAMPLE.parent.name} sample", footer, targets)
    return material, teacher, tokenizer, _noise(longest, config.max_duration_s)


def _noise(targets: list[Target], max_duration_s: float) -> Batches:
    """Batches like those of a dump: cuts with the targets' texts and durations, and noise for Whisper features."""
    frame_s = FRAME_SHIFT_MS / 1000
    batches: Batches = []
    while targets:
        size = int(max_duration_s / (targets[0].num_frames * frame_s))
        taken, targets = targets[:size], targets[size:]
        lengths = torch.tensor([target.num_frames * 4 for target in taken])  # features every 10 ms
        cuts = [_cut(target, target.num_frames * frame_s) for target in taken]
        batches.append((cuts, torch.randn(len(taken), int(lengths[0]), 80), lengths))
    return batches


def _cut(target: Target, seconds: float) -> MonoCut:
    supervision = SupervisionSegment(target.utt_id, target.utt_id, 0.0, seconds, text=target.text)
    return MonoCut(target.utt_id, start=0.0, duration=seconds, channel=0, supervisions=[supervision])


def _from_results(
    results: Path, config: TargetsConfig, utterances: int
) -> tuple[Material, Transducer, Tokenizer, Batches]:
    """The teacher of a results folder and the first of its training cuts."""
    tokenizer = Tokenizer(results / "tokenizer" / "tokenizer.model")
    teacher = load_model(results / "teacher" / "model.pt", tokenizer)
    cuts = read_cuts([results / "data" / "train" / "cuts.00000.jsonl.gz"])[:utterances]
    batches = list(inference_batches(cuts, teacher.encoder.extract, config.max_duration_s))
    whole = config.model_copy(update={"top_k": tokenizer.vocab_size, "min_probability": 0.0, "logp_step": 0.0})
    made = itertools.chain.from_iterable(make_targets(teacher, *batch, tokenizer, whole) for batch in batches)
    targets = [ranked[0] for ranked in made]
    size = tokenizer.vocab_size
    footer = TargetsFooter(teacher.fingerprint, tokenizer.sha256, size, size, config.frame_offset, "")
    return Material(str(results), footer, targets), teacher, tokenizer, batches
