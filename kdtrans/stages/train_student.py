"""Stage train-student: one student system, with or without distillation, with or without unlabelled audio."""

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
    index: str | None = None,
    teacher: Path | None = None,
    max_seconds: float | None = None,
) -> int:
    """Train one student system and write the averaged weights with the lowest dev WER.

    Args:
        config: YAML of the system (StudentConfig).
        train: manifest shards of the training split, labelled and unlabelled, or its folder.
        dev: manifest of the development set.
        tokenizer: sentencepiece model.
        checkpoints: folder for checkpoints and metrics; training resumes from it by itself.
        out: model.pt.
        index: index.json of the targets, a path or URI; needed with unlabelled audio, kd.loss one_best or full_sum.
        teacher: the teacher's model.pt; needed with kd.loss collapsed or full_lattice, or kd.encoder_weight.
        max_seconds: leave with exit status 75 that long after the start, to be resumed by the same command.
    """
    import torch

    from kdtrans import config as configuration
    from kdtrans.contracts import ContractError, manifest_files, shortened
    from kdtrans.data.manifest import read_cuts
    from kdtrans.data.splice import Splice
    from kdtrans.data.tokenizer import Tokenizer
    from kdtrans.models.build import build_student
    from kdtrans.targets.store import TargetStore
    from kdtrans.training.checkpoint import load_model
    from kdtrans.training.examples import student_examples
    from kdtrans.training.run import train_model

    settings = configuration.read(configuration.StudentConfig, config)
    pieces = Tokenizer(tokenizer)
    inputs = [*manifest_files([*train, *dev]), tokenizer]
    store = beside = None
    if settings.reads_targets:
        if index is None:
            raise ValueError(f"{config} uses the targets of '{settings.targets}': give --index")
        store = TargetStore(index, pieces.sha256, pieces.vocab_size)
        inputs.append(store.index_file(checkpoints / "targets"))  # the index alone: it has the hash of every shard
    if settings.kd.runs_teacher:
        if teacher is None:
            raise ValueError(f"{config}: {settings.kd.why_teacher} runs the teacher: give --teacher")
        beside = load_model(teacher, pieces)
        if store is not None and beside.fingerprint not in store.teacher_sha256.split("+"):
            raise ContractError(
                f"{teacher} is teacher {shortened(beside.fingerprint)}, but the targets of {index} are by "
                f"{shortened(store.teacher_sha256)}: give the teacher that dumped the targets, or dump again"
            )
        inputs.append(teacher)
    examples, dropped = student_examples(read_cuts(train), pieces, settings, store)
    torch.manual_seed(settings.training.seed)
    teacher_dim = beside.joiner.output.in_features if beside is not None and settings.kd.encoder_weight else None
    model = build_student(settings, pieces.vocab_size, teacher_dim)
    starts_word_V = torch.tensor(pieces.starts_word)
    return train_model(
        kind="student",
        model=model,
        groups=[{"params": list(model.parameters())}],
        config=settings,
        kd=settings.kd,
        unlabelled_ratio=settings.unlabelled_ratio,
        examples=examples,
        dropped=dropped,
        dev=read_cuts(dev),
        tokenizer=pieces,
        checkpoints=checkpoints,
        out=out,
        inputs=inputs,
        deadline=None if max_seconds is None else STARTED + max_seconds,
        teacher=beside,
        change=Splice(settings.splice, starts_word_V) if settings.splice else None,
    )
