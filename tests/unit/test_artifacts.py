"""Claims on artifacts: one writer at a time, whatever becomes of the one before."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdtrans.artifacts import claimed, is_claimed, lock_file, read_json, run_record, write_text

HOLDER = """
import sys, time
from pathlib import Path
from kdtrans.artifacts import claimed
with claimed(sys.argv[1]):
    Path(sys.argv[1] + ".held").touch()
    time.sleep(float(sys.argv[2]))
"""


def holder(path: Path, seconds: float) -> subprocess.Popen[bytes]:
    """A process that holds the claim on an artifact; returns when it does."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path), str(seconds)])
    deadline = time.monotonic() + 30
    while not Path(f"{path}.held").exists():
        assert time.monotonic() < deadline, "the other process does not claim"
        time.sleep(0.01)
    return process


def test_a_second_writer_waits_for_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "part.parquet"
    first = holder(path, 1.0)
    assert is_claimed(path)
    with claimed(path) as waited:
        assert waited
        assert first.wait(timeout=10) == 0
    assert "waiting for another process" in capsys.readouterr().out


def test_a_claim_dies_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    first = holder(path, 60.0)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert lock_file(path).exists()  # what a killed process leaves stops nobody
    assert not is_claimed(path)
    with claimed(path, wait_s=0) as waited:
        assert not waited
    assert not lock_file(path).exists()


def test_who_waits_too_long_is_told(tmp_path: Path) -> None:
    first = holder(tmp_path / "part.parquet", 60.0)
    try:
        with pytest.raises(ValueError, match=r"part\.parquet: another process has been making it for 0 s"):
            claimed(tmp_path / "part.parquet", wait_s=0).__enter__()
    finally:
        first.kill()
        first.wait()


def test_many_writers_take_turns(tmp_path: Path) -> None:
    """Each adds one to a number that it reads: with two at a time some would be lost, also while lock files vanish."""
    path, turns = tmp_path / "number", 30
    path.write_text("0")
    add = (
        "import sys; import kdtrans.artifacts as a; from kdtrans.artifacts import claimed, write_text; "
        "a.time.sleep = lambda s: None\n"
        "for _ in range(int(sys.argv[2])):\n"
        "    with claimed(sys.argv[1]): write_text(sys.argv[1], str(int(open(sys.argv[1]).read()) + 1))\n"
    )
    silent = {"stdout": subprocess.DEVNULL}
    writers = [subprocess.Popen([sys.executable, "-c", add, str(path), str(turns)], **silent) for _ in range(3)]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    assert path.read_text() == str(3 * turns)
    assert [entry.name for entry in tmp_path.iterdir()] == ["number"]


def test_without_locks_the_work_is_done_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with claimed(tmp_path / "part.parquet") as waited:
        assert not waited
        assert not is_claimed(tmp_path / "part.parquet")  # nobody can tell
    assert "part.parquet: run one Snakemake at a time" in capsys.readouterr().err


def test_a_stage_claims_what_it_makes(tmp_path: Path) -> None:
    path = tmp_path / "artifact.json"
    with run_record(path, "stage", {"key": 1}) as record:
        assert is_claimed(path)
        write_text(path, "{}")
        record["more"] = 2
    assert not is_claimed(path)
    found = read_json(f"{path}.run.json")
    assert (found["stage"], found["config"], found["more"]) == ("stage", {"key": 1}, 2)


@pytest.mark.parametrize("content", [b"{", b'{"a": "\xff"}', b"[" * 100_000], ids=["cut", "no UTF-8", "deep"])
def test_what_is_not_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "summary.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"summary\.json is not JSON"):
        read_json(tmp_path / "summary.json")
