"""Files that appear whole or not at all, their hashes, and the record of the run that made them."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import resource
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from kdtrans import __version__

RECORDED_PACKAGES = ("kdtrans", "torch", "torchaudio", "transformers", "lhotse", "pyarrow", "sentencepiece", "jiwer")


@contextmanager
def write_whole(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and rename it into place, on failure remove it.

    Readers therefore see the old file or the new one, never a part: rename is atomic on one file system. What a killed
    writer of the same file has left is removed first: an artifact has one writer at a time.

    Raises:
        OSError: naming the file, when the disk is full or cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.stem)}.*.part{glob.escape(path.suffix)}"):
        left.unlink(missing_ok=True)
    # The suffix stays last, because writers such as gzip and soundfile choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    except OSError as error:
        if error.errno is None or str(path) in str(error):
            raise
        raise OSError(error.errno, f"{os.strerror(error.errno)}: cannot write {path}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Write a whole text file, UTF-8."""
    with write_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write a whole JSON file, indented, keys in the order given."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file; raises ValueError naming the file when it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): delete it and rerun the stage that makes it") from None


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_files(paths: Iterable[Path]) -> str:
    """Hex SHA-256 of the names and contents of files, in the order given."""
    lines = [f"{sha256_file(path)}  {path.name}\n" for path in paths]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@cache
def code_revision() -> str:
    """The git revision of this source tree, `+` appended when it has uncommitted changes; the version outside git."""
    folder = Path(__file__).resolve().parent
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return f"v{__version__}"


def package_versions() -> dict[str, str]:
    """The versions of those of RECORDED_PACKAGES that are installed."""
    versions = {}
    for name in RECORDED_PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


@contextmanager
def run_record(
    artifact: Path | str, stage: str, config: Any, inputs: list[Path] | None = None
) -> Iterator[dict[str, Any]]:
    """Write `<artifact>.run.json` when the block ends without an error; a record of an earlier run is removed first.

    Args:
        artifact: the file that the stage makes.
        stage: the stage's name.
        config: what the stage was configured with, as plain JSON values.
        inputs: files whose hashes are recorded; those that do not exist are left out.

    Yields:
        A dictionary for what the stage wants to add (throughput, counts).
    """
    started = time.perf_counter()
    extra: dict[str, Any] = {}
    Path(f"{artifact}.run.json").unlink(missing_ok=True)  # it would pass for the record of what this run writes
    yield extra
    record = {
        "stage": stage,
        "artifact": Path(artifact).name,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(time.perf_counter() - started, 2),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "host": socket.gethostname(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "code_revision": code_revision(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "config": config,
        "inputs": {str(path): sha256_file(path) for path in inputs or [] if Path(path).is_file()},
        **extra,
    }
    write_json(f"{artifact}.run.json", record)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
