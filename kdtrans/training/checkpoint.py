"""Checkpoints and models on disk.

`model.pt` is what a stage hands on (contracts.MODEL_KEYS); `checkpoints/` is the trainer's own folder, no declared
output of a rule, so that it survives failures, timeouts and requeues.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from kdtrans.artifacts import claimed, package_versions, read_json, write_json, write_whole
from kdtrans.code import code_of
from kdtrans.config import StudentConfig, TeacherConfig, validate
from kdtrans.contracts import MODEL_KEYS, ContractError
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.models.build import build_student, build_teacher
from kdtrans.models.ensemble import Ensemble
from kdtrans.models.pretrained import read_architecture
from kdtrans.models.saved import load_plain
from kdtrans.models.transducer import Transducer
from kdtrans.training.precision import choose_products

LAST, BEFORE = "last.pt", "before.pt"  # a run's state at its last two checkpoints
FINISHED = "finished.pt"  # and when it has ended, its model
CHECKPOINT_VERSION = 3  # 3 holds the dev loss of the best average beside its WER; part of a run's identity
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
    """Write a whole file by torch.save; raises OSError naming it when it cannot be written."""
    with write_whole(path) as temporary:
        _save(value, temporary)


def _save(value: Any, path: Path) -> None:
    try:
        torch.save(value, path)
    except RuntimeError as error:  # what torch makes of a disk that is full, and of a disk quota
        free_mb = shutil.disk_usage(path.parent).free >> 20
        what = str(error).splitlines()[0]
        raise OSError(f"cannot write {path.parent}/, where {free_mb} MB are free ({what}): make room") from None


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
) -> str:
    """Write a finished model; `facts` are `step` and `dev_wer`. A teacher's encoder is described beside its weights.

    Returns:
        The weights' fingerprint.
    """
    # Its width is the teacher's, which no student's configuration has: nobody could build the model for it.
    state = {name: weight for name, weight in state.items() if not name.startswith("to_teacher.")}
    identity = fingerprint(state)
    content = {
        "kind": kind,
        "config": config.model_dump(mode="json"),
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_sha256": tokenizer.sha256,
        "fingerprint": identity,
        "state_dict": state,
        "encoder_architecture": read_architecture(config.encoder) if isinstance(config, TeacherConfig) else None,
        **facts,
    }
    assert set(content) == set(MODEL_KEYS), f"model keys {sorted(content)} differ from the contract's"
    save_torch(content, path)
    return identity


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


def ready_model(path: Path, tokenizer: Tokenizer) -> tuple[Transducer, torch.device]:
    """`load_model` on the device that inference runs on, which multiplies as fast as it can."""
    device = pick_device()
    model = load_model(path, tokenizer).to(device)
    choose_products("auto", device, model.encoder.dim)
    return model, device


def ready_models(paths: list[Path], tokenizer: Tokenizer) -> tuple[Transducer, torch.device]:
    """`ready_model` of one path; of several, their ensemble."""
    (first, device), *others = (ready_model(path, tokenizer) for path in paths)
    return Ensemble([first, *(model for model, _ in others)]) if others else first, device


def _fitting(path: Path, step: Callable[[], Result]) -> Result:
    """Do a step of putting a model together; raises ContractError naming the file when what it holds does not fit."""
    try:
        return step()
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ContractError(f"{path}: configuration, encoder and weights do not fit each other ({reason})") from None


def save_checkpoint(folder: Path, content: dict[str, Any]) -> None:
    """Write a training run's state as last.pt; what was there becomes before.pt, so that two are kept."""
    with write_whole(folder / LAST) as temporary:
        _save(content, temporary)
        if (folder / LAST).exists():
            os.replace(folder / LAST, folder / BEFORE)


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest sound checkpoint of a folder and its content; None where there is none.

    A damaged last.pt is removed, with a warning, so that it will not take the place of the sound one before it.

    Raises:
        ContractError: when there are checkpoints, but no sound one.
    """
    found = [path for name in (LAST, BEFORE) if (path := folder / name).exists()]
    for place, path in enumerate(found):
        try:
            return path, load_torch(path)
        except ContractError as error:
            if place == len(found) - 1:
                raise
            print(f"warning: {error}; going on from the checkpoint before it", file=sys.stderr, flush=True)
            path.unlink()
    return None


@contextmanager
def claim(folder: Path, identity: dict[str, Any], wait_s: float = 3600.0) -> Iterator[None]:
    """Hold a checkpoint folder for one trainer at a time (`artifacts.claimed`), and for one identity at a time.

    A folder of other settings or data is moved aside, so that a changed configuration never resumes an old model.

    Args:
        folder: the checkpoint folder.
        identity: configuration and input hashes, as JSON values.
        wait_s: seconds to wait for another trainer.

    Raises:
        ValueError: when another trainer still holds the folder after that.
    """
    with claimed(folder, wait_s):
        folder.mkdir(exist_ok=True)
        known = folder / "identity.json"
        if known.exists() and read_json(known) != identity:
            aside = folder.with_name(f"{folder.name}.{time.strftime('%Y%m%d-%H%M%S')}.{os.getpid()}")
            folder.rename(aside)
            folder.mkdir()
            print(f"settings, data or the form of checkpoints changed: the old ones are in {aside}", flush=True)
        write_json(known, identity)
        yield


def keep_finished(folder: Path, out: Path) -> None:
    """Keep a finished model in its checkpoint folder, by a hard link, in place of the checkpoints that led to it.

    The workflow's driver deletes the output of a job whose end it has not seen, as after `kill -9`, and asks for it
    again: `hand_back` has it then.
    """
    kept = folder / FINISHED
    kept.unlink(missing_ok=True)
    try:
        os.link(out, kept)
    except OSError:  # a file system without links
        shutil.copyfile(out, kept)
    for name in (LAST, BEFORE):
        (folder / name).unlink(missing_ok=True)


def hand_back(folder: Path, out: Path) -> bool:
    """Put a finished model in its place again, if it is what would be trained anew.

    The folder's identity vouches for settings and data (`claim`), the record beside the model for code and packages.

    Returns:
        Whether it was: otherwise the finished model is gone, and training starts anew.
    """
    kept = folder / FINISHED
    if not kept.exists():
        return False
    try:
        record = read_json(f"{out}.run.json")
        made_by = {"code": code_of(str(record.get("stage"))), "packages": package_versions()}
        same = {name: record.get(name) for name in made_by} == made_by
        if same and record.get("fingerprint") == read_model(kept)["fingerprint"]:
            if not out.exists():
                os.replace(kept, out)
                keep_finished(folder, out)
            os.utime(out)  # newer than its inputs, whose content is the same, for a workflow that compares times
            return True
    except (ValueError, OSError) as error:
        print(f"warning: {kept} cannot be used again: {error}", file=sys.stderr, flush=True)
    kept.unlink()
    return False
