"""Stage train-teacher: fine-tune a pre-trained encoder as a transducer on the labelled audio."""

from __future__ import annotations

import time
from pathlib import Path

STARTED = time.monotonic()  # of the process, nearly: loading counts towards max_seconds too


def main(
    config: Path,
    train: list[Path],
    dev: list[Path],
    tokenizer: Path,
    checkpoints: Path,
    out: Path,
    max_seconds: float | None = None,
) -> int:
    """Fine-tune the teacher and write the averaged weights with the lowest dev WER.

    Args:
        config: YAML of the teacher (TeacherConfig).
        train: manifest shards of the training split, or its folder; unlabelled cuts are left out.
        dev: manifest of the development set.
        tokenizer: sentencepiece model.
        checkpoints: folder for checkpoints and metrics; training resumes from it by itself.
        out: model.pt.
        max_seconds: leave with exit status 75 that long after the start, to be resumed by the same command.
    """
    from collections import Counter

    import torch

    from kdtrans import config as configuration
    from kdtrans.contracts import manifest_files
    from kdtrans.data.manifest import read_cuts
    from kdtrans.data.tokenizer import Tokenizer
    from kdtrans.models.build import build_teacher, teacher_groups
    from kdtrans.training.examples import labelled_examples
    from kdtrans.training.run import train_model

    settings = configuration.read(configuration.TeacherConfig, config)
    pieces = Tokenizer(tokenizer)
    torch.manual_seed(settings.training.seed)
    model = build_teacher(settings, pieces.vocab_size)
    return train_model(
        kind="teacher",
        model=model,
        groups=teacher_groups(model, settings),
        config=settings,
        kd=configuration.KdConfig(),
        unlabelled_ratio=None,
        examples=labelled_examples(read_cuts(train), pieces),
        dropped=Counter(),
        dev=read_cuts(dev),
        tokenizer=pieces,
        checkpoints=checkpoints,
        out=out,
        inputs=[*manifest_files([*train, *dev]), tokenizer],
        deadline=None if max_seconds is None else STARTED + max_seconds,
    )
