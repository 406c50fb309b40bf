"""Checkpoints and models on disk.

`model.pt` is what a stage hands on (contracts.MODEL_KEYS); `checkpoints/` is the trainer's own folder, no declared
output of a rule, so that it survives failures, timeouts and requeues.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from kdtrans.artifacts import claimed, write_json, write_whole
from kdtrans.config import StudentConfig, TeacherConfig, validate
from kdtrans.contracts import MODEL_KEYS, ContractError
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.models.build import build_student, build_teacher
from kdtrans.models.pretrained import read_architecture
from kdtrans.models.saved import load_plain
from kdtrans.models.transducer import Transducer

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


def fingerprint(state: dict[str, Tensor]) -> str:
    """Hex SHA-256 over names, shapes, types and bytes of all weights: a model's identity, whatever file holds it."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.dim() else tensor.numpy().tobytes())
    return digest.hexdigest()


def pick_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def save_torch(value: Any, path: Path) -> None:
    """Write a whole file by torch.save."""
    with write_whole(path) as temporary:
        torch.save(value, temporary)


def load_torch(path: Path) -> Any:
    """Read a file of torch.save; raises ContractError naming it when it is not whole, or holds more than values."""
    try:
        return load_plain(path)
    except FileNotFoundError:
        raise ContractError(f"{path} does not exist: run the stage that makes it") from None
    except ValueError as error:
        raise ContractError(
            f"{path} is not a whole checkpoint ({error}): delete it and rerun the stage that makes it"
        ) from None


def save_model(
    path: Path,
    kind: str,
    config: TeacherConfig | StudentConfig,
    state: dict[str, Tensor],
    tokenizer: Tokenizer,
    **facts: Any,
) -> None:
    """Write a finished model; `facts` are `step` and `dev_wer`. A teacher's encoder is described beside its weights."""
    content = {
        "kind": kind,
        "config": config.model_dump(mode="json"),
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_sha256": tokenizer.sha256,
        "fingerprint": fingerprint(state),
        "state_dict": state,
        "encoder_architecture": read_architecture(config.encoder) if isinstance(config, TeacherConfig) else None,
        **facts,
    }
    assert set(content) == set(MODEL_KEYS), f"model keys {sorted(content)} differ from the contract's"
    save_torch(content, path)


def read_model(path: Path, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    """The content of model.pt, checked.

    Raises:
        ContractError: when it is no dictionary, keys are missing, or the model was trained with another tokenizer than
            the one given.
    """
    content: dict[str, Any] = load_torch(path)
    if not isinstance(content, dict):
        raise ContractError(f"{path} holds a {type(content).__name__}: it is not a model of this workflow")
    missing = set(MODEL_KEYS) - set(content)
    if missing:
        raise ContractError(f"{path} lacks {sorted(missing)}: it is not a model of this workflow")
    if tokenizer is not None and content["tokenizer_sha256"] != tokenizer.sha256:
        raise ContractError(
            f"{path} was trained with tokenizer {str(content['tokenizer_sha256'])[:12]}, this run uses "
            f"{tokenizer.sha256[:12]}: train it again or give its tokenizer"
        )
    return content


def load_model(path: Path, tokenizer: Tokenizer) -> Transducer:
    """A trained teacher or student in eval mode; `.fingerprint` is its identity.

    Raises:
        ContractError: naming the file, when it is no whole model, its parts do not fit each other or the tokenizer, or
            its weights are not those that were saved.
    """
    content = read_model(path, tokenizer)
    if content["vocab_size"] != tokenizer.vocab_size:
        raise ContractError(f"{path}: vocab_size is {content['vocab_size']}, the tokenizer's {tokenizer.vocab_size}")
    if content["kind"] == "teacher":
        teacher = validate(TeacherConfig, content["config"], str(path))
        model = _fitting(path, lambda: build_teacher(teacher, tokenizer.vocab_size, content["encoder_architecture"]))
    else:
        student = validate(StudentConfig, content["config"], str(path))
        model = _fitting(path, lambda: build_student(student, tokenizer.vocab_size))
    _fitting(path, lambda: model.load_state_dict(content["state_dict"]))
    if (found := fingerprint(content["state_dict"])) != content["fingerprint"]:
        raise ContractError(
            f"{path}: the weights have the fingerprint {found[:12]}, the file says {str(content['fingerprint'])[:12]}: "
            "they have been damaged or changed: train again"
        )
    model.fingerprint = content["fingerprint"]
    return model.eval()


def _fitting(path: Path, step: Callable[[], Result]) -> Result:
    """Do a step of putting a model together; raises ContractError naming the file when what it holds does not fit."""
    try:
        return step()
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ContractError(f"{path}: configuration, encoder and weights do not fit each other ({reason})") from None


@contextmanager
def claim(folder: Path, identity: dict[str, Any], wait_s: float = 3600.0) -> Iterator[bool]:
    """Hold a checkpoint folder for one trainer at a time (`artifacts.claimed`), and for one identity at a time.

    A folder of other settings or data is moved aside, so that a changed configuration never resumes an old model.

    Args:
        folder: the checkpoint folder.
        identity: configuration and input hashes, as JSON values.
        wait_s: seconds to wait for another trainer.

    Yields:
        Whether another trainer of the same identity had to be waited for, which may have finished the work.

    Raises:
        ValueError: when another trainer still holds the folder after that.
    """
    with claimed(folder, wait_s) as waited:
        folder.mkdir(exist_ok=True)
        known = folder / "identity.json"
        if known.exists() and json.loads(known.read_text()) != identity:
            aside = folder.with_name(f"{folder.name}.{time.strftime('%Y%m%d-%H%M%S')}.{os.getpid()}")
            folder.rename(aside)
            folder.mkdir()
            logger.info("settings or data changed: the old checkpoints are in %s", aside)
            waited = False  # what the other trainer made is not what this one is asked for
        write_json(known, identity)
        yield waited
