"""Dumps that are killed or run out of disk: a shard is there whole, or not at all; finished ones stay.

The stage runs in children forked from this process, which has imported all it needs: a kill finds it at work, not at
importing torch.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from kdtrans.__main__ import main
from kdtrans.artifacts import read_json, sha256_file
from kdtrans.config import TeacherConfig, validate
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.models.build import build_teacher
from kdtrans.targets.shards import read_shard
from kdtrans.targets.verify_shard import Expected, verify_shard
from kdtrans.training.checkpoint import read_model, save_model
from tests.tiny import TEACHER, Workspace

KILLS = 50
CONTENT = ["utt_id", "path", "topk_ids", "topk_logp", "path_logp", "text"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A toy corpus, a teacher that has learnt nothing, and one finished shard."""
    work = Workspace(tmp_path_factory.mktemp("faults"), utterances=6)
    torch.manual_seed(0)
    tokenizer, config = Tokenizer(work.tokenizer), validate(TeacherConfig, TEACHER, "test")
    teacher = build_teacher(config, tokenizer.vocab_size)
    save_model(work.teacher, "teacher", config, teacher.state_dict(), tokenizer, step=0, dev_wer=100.0)
    assert main(work.dump_command(work.teacher, work.part)) == 0
    return work


def forked(command: list[str], errors: Path, before: Callable[[], None] = lambda: None) -> int:
    """Start a command in a child process; its id."""
    if child := os.fork():
        return child
    status = 1
    try:  # whatever happens, the child must not go on with the tests
        # Python's own names for them: pytest, while it captures, has put others in their place.
        sys.stdout = sys.stderr = errors.open("w", buffering=1)
        before()
        status = main(command)
    finally:
        os._exit(status)


def ended(child: int) -> int:
    """Wait for a child; its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_killed_dump_leaves_a_whole_shard_or_none(toy: Workspace, tmp_path: Path) -> None:
    finished, reference = sha256_file(toy.part), read_shard(toy.part)[1].select(CONTENT)
    part, errors = toy.part.with_name("part-00001.parquet"), tmp_path / "errors"
    record, command = Path(f"{part}.run.json"), toy.dump_command(toy.teacher, part)
    expected = Expected(read_model(toy.teacher)["fingerprint"], Tokenizer(toy.tokenizer), toy.train)
    started = time.monotonic()
    assert ended(forked(command, errors)) == 0, errors.read_text()
    duration, random, found = time.monotonic() - started, np.random.default_rng(0), Counter[str]()
    while found["killed"] < KILLS and found["injected"] < 4 * KILLS:
        part.unlink(missing_ok=True)
        record.unlink(missing_ok=True)
        child = forked(command, errors)
        # A third of the kills come while the shard is being written, which takes a hundredth of the time.
        found["injected"] += 1
        if found["injected"] % 3 == 0:
            _until_written(part, child, timeout_s=20 * duration)
            time.sleep(random.uniform(0, 0.01))
        else:
            time.sleep(random.uniform(0, duration))
        os.kill(child, signal.SIGKILL)
        found["ended before" if ended(child) == 0 else "killed"] += 1
        found["lost"] += sha256_file(toy.part) != finished
        if not part.exists():
            found["wrong" if record.exists() else "no shard"] += 1
        elif verify_shard(part, expected).problems or not read_shard(part)[1].select(CONTENT).equals(reference):
            found["wrong"] += 1
        else:
            found["whole shard" if record.exists() else "whole shard without record"] += 1
    print(f"dumps killed at random: {dict(found)}")
    assert (found["killed"], found["wrong"], found["lost"]) == (KILLS, 0, 0)
    assert found["no shard"] > 0
    # The next run does not mind what the killed ones have left.
    assert ended(forked(command, errors)) == 0, errors.read_text()
    assert verify_shard(part, expected).problems == []
    assert read_json(record)["sha256"] == sha256_file(part)
    assert sorted(path.name for path in part.parent.glob("part-*.parquet")) == [toy.part.name, part.name]


def _until_written(part: Path, child: int, timeout_s: float) -> None:
    """Wait until a child has begun to write a shard; write_whole names the file it writes after its process."""
    end = time.monotonic() + timeout_s
    while not list(part.parent.glob(f".part-00001.{child}.part*")) and not part.exists():
        assert time.monotonic() < end, "the dump has not begun to write"
        time.sleep(0.001)


@contextmanager
def small_disk(folder: Path, spare_bytes: int) -> Iterator[bool]:
    """A folder on a disk that is full but for some bytes, if this process may mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        yield False
        return
    try:
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_bsize
        (folder / "filler").write_bytes(bytes(free - spare_bytes))
        yield True
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_no_part_of_a_shard(toy: Workspace, tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    size = toy.part.stat().st_size
    spare = -(-size // 4096) * 4096 + 4096  # room for one shard, not for two: tmpfs counts pages
    with small_disk(tmp_path / "disk", spare) as mounted:
        if not mounted:
            pytest.skip("no right to mount a tmpfs; the next test limits the size of files instead")
        first, second = (tmp_path / "disk" / f"part-0000{i}.parquet" for i in range(2))
        first.write_bytes(toy.part.read_bytes())
        assert ended(forked(toy.dump_command(toy.teacher, second), errors)) == 1
        assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["filler", first.name]
        assert first.read_bytes() == toy.part.read_bytes()
        (tmp_path / "disk" / "filler").unlink()
        print(f"full disk: {errors.read_text().splitlines()[-1]}")
        assert "No space left on device" in errors.read_text()
        assert "Traceback" not in errors.read_text()
        assert ended(forked(toy.dump_command(toy.teacher, second), errors)) == 0, errors.read_text()
        assert sha256_file(second) == read_json(f"{second}.run.json")["sha256"]


def test_a_file_that_may_not_grow_leaves_no_part_of_a_shard(toy: Workspace, tmp_path: Path) -> None:
    part, errors = tmp_path / "targets" / "part-00000.parquet", tmp_path / "errors"

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python starts; a test runner may have changed it
        resource.setrlimit(resource.RLIMIT_FSIZE, (toy.part.stat().st_size // 2, resource.RLIM_INFINITY))

    assert ended(forked(toy.dump_command(toy.teacher, part), errors, limit)) == 1
    assert "File too large" in errors.read_text()
    assert "Traceback" not in errors.read_text()
    assert not list(part.parent.iterdir())
