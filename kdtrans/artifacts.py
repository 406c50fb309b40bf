"""Files that appear whole or not at all, their hashes, and the record of the run that made them."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import os
import platform
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from kdtrans import __version__
from kdtrans.code import code_of

RECORDED_PACKAGES = ("kdtrans", "torch", "torchaudio", "transformers", "lhotse", "pyarrow", "sentencepiece", "jiwer")

# What a file system without locks answers, such as Lustre mounted without `flock`.
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


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
        with naming(path):
            yield temporary
            _fsync(temporary)
            os.replace(temporary, path)
            _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an OSError say what could not be written, which a full disk's own words leave out."""
    try:
        yield
    except OSError as error:
        if error.errno is None or str(path) in str(error):
            raise
        raise OSError(error.errno, f"{os.strerror(error.errno)}: cannot write {path}") from error


@contextmanager
def claimed(path: Path | str, wait_s: float = 3600.0) -> Iterator[bool]:
    """Hold the claim on an artifact (or on a folder) while it is made: one process at a time, on any node.

    After `kill -9` of a workflow's driver its jobs live on, and a rerun starts a second writer of the same file. The
    second one waits, so that what it writes afterwards is what stays. The claim is a lock on `.NAME.lock` beside the
    artifact, which the system releases when its holder dies, however it dies.

    Args:
        path: the artifact; its folder is made.
        wait_s: seconds to wait for another process.

    Yields:
        Whether another process had to be waited for, which may have finished the work.

    Raises:
        ValueError: when another process still holds the claim after that.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, waited = _take(path, wait_s)
    try:
        yield waited
    finally:
        # Before the lock is released: who waits for this one must not find it again. See _take.
        lock_file(path).unlink(missing_ok=True)
        os.close(handle)


def lock_file(path: Path | str) -> Path:
    """The file that is locked while an artifact is made."""
    path = Path(path)
    return path.with_name(f".{path.name}.lock")


def is_claimed(path: Path | str) -> bool:
    """Whether a living process is making an artifact."""
    try:
        handle = os.open(lock_file(path), os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
    finally:
        os.close(handle)
    return False


def _take(path: Path, wait_s: float) -> tuple[int, bool]:
    """Lock an artifact, waiting if need be: the open lock file, and whether it had to wait."""
    deadline = time.monotonic() + wait_s
    waited = False
    while True:
        handle = os.open(lock_file(path), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before may have removed the file after it was opened here: then this lock guards nothing.
            if _is_at(handle, lock_file(path)):
                return handle, waited
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(handle)
                raise ValueError(
                    f"{path}: another process has been making it for {wait_s:.0f} s: stop that one first"
                ) from None
            if not waited:
                print(f"waiting for another process that is making {path}", flush=True)
            waited = True
            time.sleep(min(1.0, wait_s))
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            print(f"warning: no locks on the file system of {path}: run one Snakemake at a time", file=sys.stderr)
            return handle, waited
        os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


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
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
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
    """Claim an artifact while it is made; write `<artifact>.run.json` when the block ends without an error.

    A record of an earlier run is removed first.

    Args:
        artifact: the file that the stage makes.
        stage: the stage's name; the code that is recorded is that of its module.
        config: what the stage was configured with, as plain JSON values.
        inputs: files whose hashes are recorded; those that do not exist are left out.

    Yields:
        A dictionary for what the stage wants to add (throughput, counts).
    """
    extra: dict[str, Any] = {}
    code = code_of(stage)  # now: a long run's files may be edited before it ends
    with claimed(artifact):
        started = time.perf_counter()
        Path(f"{artifact}.run.json").unlink(missing_ok=True)  # it would pass for the record of what this run writes
        yield extra
        record = _record(artifact, stage, config, inputs, started) | {"code": code}
        write_json(f"{artifact}.run.json", record | extra)


def _record(artifact: Path | str, stage: str, config: Any, inputs: list[Path] | None, started: float) -> dict[str, Any]:
    return {
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
    }


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
