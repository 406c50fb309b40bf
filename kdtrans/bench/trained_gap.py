"""How far the banded loss is from the full one on a trained student: part of `kdtrans bench loss --results R`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from kdtrans.bench.table import Measurement
from kdtrans.config import StudentConfig, TrainingConfig
from kdtrans.data.batches import FeatureCache, collate
from kdtrans.data.manifest import read_cuts
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.models.transducer import Transducer
from kdtrans.targets.store import TargetStore
from kdtrans.training.checkpoint import load_model, read_model
from kdtrans.training.examples import student_examples
from kdtrans.training.losses import band_of, run_student, transducer_part

UTTERANCES, BATCH = 200, 20


@torch.no_grad()
def trained_banded_loss_gap(results: Path, width: int, margin: int) -> Measurement:
    """How much the banded loss exceeds the full one, relative, on training audio along the teacher's paths.

    Args:
        results: a results folder; of its students that learn from paths and do not stream, the first by name.
        width: of the band, labels.
        margin: of the band, frames.

    Raises:
        ValueError: when there is no such student.
    """
    tokenizer = Tokenizer(results / "tokenizer" / "tokenizer.model")
    found = next(_students(results), None)
    if found is None:
        raise ValueError(f"{results}/systems: no trained student that learns from paths and does not stream")
    path, config = found
    model: Transducer = load_model(path, tokenizer).eval()
    index = results / "targets" / config.target_sets[0] / "train" / "index.json"
    store = TargetStore(index, tokenizer.sha256, tokenizer.vocab_size)
    cuts = read_cuts([results / "data" / "train" / "cuts.00000.jsonl.gz"])
    examples = student_examples(cuts, tokenizer, config, store)[0][:UTTERANCES]
    features = FeatureCache(model.encoder.extract, 0.0)
    banded = TrainingConfig(loss="banded", band_width=width, band_margin=margin)
    sums = {"full": 0.0, "banded": 0.0}
    for start in range(0, len(examples), BATCH):
        some = examples[start : start + BATCH]
        batch = collate([one.cut for one in some], [one.labellings[0].read() for one in some], features)
        student = run_student(model, batch, banded)
        band_BTU = band_of(student, batch, banded, config.kd.shift if isinstance(config.kd.shift, int) else 0)
        sums["full"] += float(transducer_part(student, batch, banded).sum())
        sums["banded"] += float(transducer_part(student, batch, banded, band_BTU).sum())
    conditions: dict[str, str | int | float] = {"student": path.parent.name, "utterances": len(examples)}
    conditions |= {"width": width, "margin": margin, "nats an utterance": round(sums["full"] / len(examples), 3)}
    return Measurement("banded_loss_gap_trained", "", [sums["banded"] / sums["full"] - 1.0], conditions)


def _students(results: Path) -> Iterator[tuple[Path, StudentConfig]]:
    """Those that learn from paths and do not stream."""
    for path in sorted((results / "systems").glob("*/model.pt")):
        config = StudentConfig.model_validate(read_model(path)["config"])
        learns = config.kd.reads_shards and config.kd.loss == "one_best"
        if learns and config.encoder.streaming is None:
            yield path, config
