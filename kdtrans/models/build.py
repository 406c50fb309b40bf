"""Models from their configuration."""

from __future__ import annotations

from typing import Any

from kdtrans.config import StudentConfig, TeacherConfig
from kdtrans.models.conformer import ConformerEncoder
from kdtrans.models.predictor import build_predictor
from kdtrans.models.pretrained import build_teacher_encoder
from kdtrans.models.pretrained.common import PretrainedEncoder
from kdtrans.models.transducer import Encoder, Transducer


def build_student(config: StudentConfig, vocab_size: int, teacher_dim: int | None = None) -> Transducer:
    """A freshly initialised Conformer transducer; `teacher_dim`: the teacher's joiner width, where it learns that."""
    return _transducer(ConformerEncoder(config.encoder, config.masking), config, vocab_size, teacher_dim)


def build_teacher(config: TeacherConfig, vocab_size: int, architecture: dict[str, Any] | None = None) -> Transducer:
    """A pre-trained encoder, or with its `architecture` one without weights, and a freshly initialised rest."""
    return _transducer(build_teacher_encoder(config, architecture), config, vocab_size)


def _transducer(
    encoder: Encoder, config: StudentConfig | TeacherConfig, vocab_size: int, teacher_dim: int | None = None
) -> Transducer:
    """An encoder and a freshly initialised rest."""
    predictor, is_pruned = build_predictor(vocab_size, config.predictor), config.training.loss == "pruned"
    return Transducer(encoder, predictor, config.joiner_dim, vocab_size, is_pruned, teacher_dim)


def teacher_groups(model: Transducer, config: TeacherConfig) -> list[dict[str, Any]]:
    """A teacher's optimiser groups: a slow encoder that thaws late, its extractor perhaps never, and a fast rest."""
    encoder = model.encoder
    assert isinstance(encoder, PretrainedEncoder)
    extractor = {id(p) for p in encoder.extractor_parameters()} if config.freeze_extractor else set()
    pretrained = [p for p in encoder.pretrained_parameters() if id(p) not in extractor]
    known = extractor | {id(p) for p in pretrained}
    for parameter in encoder.extractor_parameters():
        parameter.requires_grad_(not config.freeze_extractor)
    rest = [p for p in model.parameters() if id(p) not in known]
    thaw = config.freeze_updates if config.encoder != "random" else 0
    return [
        {"params": rest},
        {"params": pretrained, "lr_scale": config.training.encoder_lr_scale, "freeze_updates": thaw},
    ]
