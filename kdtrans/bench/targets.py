"""How small and true target shards are, what making them costs, how fast they are read: `kdtrans bench targets`.

Shapes: B utterances, F feature frames, C channels, N path nodes, V vocabulary, K stored classes a node.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from lhotse import MonoCut, SupervisionSegment
from torch import Tensor

from kdtrans.bench import reading
from kdtrans.bench.measure import cpu_seconds
from kdtrans.bench.table import Bench, Measurement
from kdtrans.config import PredictorConfig, TargetsConfig, TeacherConfig, TokenizerConfig
from kdtrans.contracts import FRAME_SHIFT_MS, TargetsFooter
from kdtrans.data.batches import inference_batches
from kdtrans.data.manifest import read_cuts
from kdtrans.data.tokenizer import Tokenizer, train_tokenizer
from kdtrans.models.build import build_teacher
from kdtrans.models.transducer import Transducer
from kdtrans.targets.make import make_targets, targets_of_encoded
from kdtrans.targets.shards import Target, read_shard, row_to_target, write_shard
from kdtrans.targets.sizes import bytes_by_column, encoded, hours_of, losses_of
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
Batches = list[tuple[list[MonoCut], Tensor, Tensor]]


@dataclass(frozen=True)
class Material:
    """Real targets with the whole vocabulary at every node, and where they are from."""

    name: str
    vocab_size: int
    targets: list[Target]


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
        rows, ratios = measure_encoding(material, config)
        made, overhead = measure_dump(teacher, tokenizer, batches[: 2 if quick else 4], config, folder, repeats=5)
        read, speed = measure_reading(folder, quick)
    return Bench("targets", rows + made + read, ratios | overhead | speed, LIMITS)


# ------------------------------------------------------------------------------------------------------------ encoding
def measure_encoding(material: Material, config: TargetsConfig) -> tuple[list[Measurement], dict[str, float]]:
    """Size and truth of targets as `config` has them written, against the whole distributions (targets.sizes)."""
    k = min(config.top_k, material.vocab_size)
    stored = encoded(material.targets, k, config.min_probability, config.logp_step)
    lost, hours = losses_of(material.targets, stored), hours_of(material.targets)
    ratios = {
        "mb_per_hour": bytes_by_column(stored)["total"] / 1e6 / hours,
        "tail_mass": lost["tail_mass"],
        "kl_nats_per_node": lost["kl_full"],
    }
    conditions: dict[str, str | int | float] = {
        "from": material.name,
        "utterances": len(stored),
        "minutes": round(hours * 60, 1),
        "V": material.vocab_size,
        "k": k,
        "min_probability": config.min_probability,
        "logp_step": config.logp_step,
    }
    units = {"mb_per_hour": "MB/h", "tail_mass": "", "kl_nats_per_node": "nats"}
    return [Measurement(name, units[name], [value], conditions) for name, value in ratios.items()], ratios


# ---------------------------------------------------------------------------------------------------------------- dump
def measure_dump(
    teacher: Transducer, tokenizer: Tokenizer, batches: Batches, config: TargetsConfig, folder: Path, repeats: int
) -> tuple[list[Measurement], dict[str, float]]:
    """What Viterbi, gather, top-k, encoding and writing cost beside the teacher's encoder, on the same batches.

    CPU seconds of one thread, so that other programs on the machine do not count.
    """
    footer = TargetsFooter("", tokenizer.sha256, tokenizer.vocab_size, min(config.top_k, tokenizer.vocab_size), 0, "")

    @torch.inference_mode()
    def encode() -> list[tuple[Tensor, Tensor]]:
        return [teacher.encode(features_BFC, lengths_B) for _, features_BFC, lengths_B in batches]

    def make_and_write(outputs: list[tuple[Tensor, Tensor]]) -> None:
        made = [
            target
            for (cuts, *_), output in zip(batches, outputs, strict=True)
            for ranked in targets_of_encoded(teacher, cuts, *output, tokenizer, config)
            for target in ranked
        ]
        write_shard(made, footer, folder / "made.parquet")

    outputs = encode()
    make_and_write(outputs)  # memory is allocated and files are in the cache before the clock runs
    forward, overhead = [], []
    for _ in range(repeats):
        forward.append(cpu_seconds(encode))
        overhead.append(cpu_seconds(lambda: make_and_write(outputs)))
    conditions: dict[str, str | int | float] = {
        "batches": len(batches),
        "utterances": sum(len(cuts) for cuts, *_ in batches),
        "audio s": round(sum(cut.duration for cuts, *_ in batches for cut in cuts)),
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
    material = Material(f"{SAMPLE.parent.name} sample", footer.vocab_size, targets)
    return material, teacher, tokenizer, _noise(longest, config.max_duration_s)


def _noise(targets: list[Target], max_duration_s: float) -> Batches:
    """Batches like those of a dump: cuts with the targets' texts and durations, and noise for Whisper features."""
    frame_s = FRAME_SHIFT_MS / 1000
    batches: Batches = []
    while targets:
        size = int(max_duration_s / (targets[0].num_frames * frame_s))
        taken, targets = targets[:size], targets[size:]
        lengths = torch.tensor([target.num_frames * 4 for target in taken])  # features every 10 ms
        cuts = [labelled_cut(target.utt_id, target.text, target.num_frames * frame_s) for target in taken]
        batches.append((cuts, torch.randn(len(taken), int(lengths[0]), 80), lengths))
    return batches


def labelled_cut(utt_id: str, text: str, seconds: float) -> MonoCut:
    """A cut without audio, for what reads ids, texts and durations only."""
    supervision = SupervisionSegment(utt_id, utt_id, 0.0, seconds, text=text)
    return MonoCut(utt_id, start=0.0, duration=seconds, channel=0, supervisions=[supervision])


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
    return Material(str(results), tokenizer.vocab_size, targets), teacher, tokenizer, batches
