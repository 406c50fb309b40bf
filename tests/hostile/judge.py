"""The verdict on one hostile input: refused in one screen that names what is wrong, or handled with a sound product."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings

from kdtrans.__main__ import main

KINDS = ("configs", "audio", "corpora", "language models", "files", "names")
MOST_LINES, MOST_CHARACTERS = 24, 600  # a screen; a line that the terminal wraps a few times

Argument = str | Path


@dataclass(frozen=True)
class Run:
    """What a command left behind."""

    status: int
    out: str
    err: str


@dataclass
class Judge:
    """Gives hostile input to the command line, and counts what comes of it."""

    counts: dict[str, Counter[str]] = field(default_factory=lambda: {kind: Counter() for kind in KINDS})

    def refused(self, kind: str, command: list[Argument], *names: str) -> str:
        """The command must refuse its input and say these words; returns what it said."""
        return self.check_refusal(kind, run(command), *names)

    def handled(self, kind: str, command: list[Argument]) -> str:
        """The command must take its input; the caller looks at the product. Returns what it printed."""
        found = run(command)
        assert found.status == 0, f"{command}: {found.err}"
        self.counts[kind]["handled"] += 1
        return found.out

    def judged(self, kind: str, command: list[Argument], name: str, sound: Callable[[Run], bool]) -> None:
        """The command must refuse its input, naming it, or make a product that is sound."""
        found = run(command)
        if found.status:
            self.check_refusal(kind, found, name)
            return
        assert sound(found), f"{command}: taken, but the product is not sound"
        self.counts[kind]["handled"] += 1

    def check_refusal(self, kind: str, found: Run, *names: str) -> str:
        """Whether a refusal is one: not 0, no traceback, one screen, and the words that it must say."""
        assert found.status != 0, f"taken without a word: {names}; {found.out}"
        assert "Traceback" not in found.err, found.err
        lines = found.err.splitlines()
        assert 1 <= len(lines) <= MOST_LINES, f"{len(lines)} lines: {found.err[:2000]}"
        assert max(map(len, lines)) <= MOST_CHARACTERS, f"{max(map(len, lines))} characters: {found.err[:2000]}"
        for name in names:
            assert name in found.err, f"'{name}' is not named: {found.err}"
        self.counts[kind]["refused"] += 1
        return found.err

    def table(self) -> str:
        """Kind, inputs, refused, handled; the totals last."""
        rows = [(kind, counts["refused"], counts["handled"]) for kind, counts in self.counts.items()]
        rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
        lines = [f"{kind:16} {refused + handled:7} {refused:8} {handled:8}" for kind, refused, handled in rows]
        return "\n".join([f"{'kind':16} {'inputs':>7} {'refused':>8} {'handled':>8}", *lines])


def run(command: list[Argument]) -> Run:
    """Run a command in this process, its output encoded as a terminal's would be."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = main([str(part) for part in command])
        except SystemExit as leave:  # argparse's way of refusing
            status = leave.code if isinstance(leave.code, int) else 1
    return Run(status, _text(out), _text(err))


def run_process(command: list[Argument], **environment: str) -> Run:
    """Run a command in a process of its own."""
    found = subprocess.run(
        [sys.executable, "-m", "kdtrans", *map(os.fspath, command)],
        capture_output=True,
        env=os.environ | environment,
        timeout=60,
    )
    return Run(found.returncode, found.stdout.decode(errors="replace"), found.stderr.decode(errors="replace"))


def examples(most: int) -> Callable[[Any], Any]:
    """So many examples, always the same, in fixtures that they share."""
    return settings(
        max_examples=most,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # the damage is small as it is: there is nothing to shrink
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@contextmanager
def replaced(path: Path, content: bytes | None) -> Iterator[None]:
    """Another content of a file, or (None) a directory in its place, for a while."""
    aside = path.with_name(f"{path.name}.aside")
    path.rename(aside)
    try:
        path.mkdir() if content is None else path.write_bytes(content)
        yield
    finally:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        aside.rename(path)


# ------------------------------------------------------------------------------------------------------------- damage
def truncate(whole: bytes, chance: random.Random) -> bytes:
    return whole[: chance.randrange(len(whole))]


def flip(whole: bytes, chance: random.Random) -> bytes:
    content = bytearray(whole)
    content[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
    return bytes(content)


def overwrite(whole: bytes, chance: random.Random) -> bytes:
    at, length = chance.randrange(len(whole)), chance.randrange(1, 64)
    return whole[:at] + chance.randbytes(length) + whole[at + length :]


def cut_out(whole: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(whole))
    return whole[:at] + whole[at + chance.randrange(1, 64) :]


BYTES = (truncate, flip, overwrite, cut_out)


def _lines(change: Callable[[list[bytes], int, random.Random], None]) -> Callable[[bytes, random.Random], bytes]:
    def damage(whole: bytes, chance: random.Random) -> bytes:
        lines = whole.split(b"\n")
        change(lines, chance.randrange(len(lines)), chance)
        return b"\n".join(lines)

    return damage


def _words(word: bytes) -> Callable[[bytes, random.Random], bytes]:
    """One of the words becomes another."""

    def damage(whole: bytes, chance: random.Random) -> bytes:
        words = whole.split(b" ")
        words[chance.randrange(len(words))] = word
        return b" ".join(words)

    return damage


def _insert(junk: bytes) -> Callable[[bytes, random.Random], bytes]:
    def damage(whole: bytes, chance: random.Random) -> bytes:
        at = chance.randrange(len(whole) + 1)
        return whole[:at] + junk + whole[at:]

    return damage


TEXT = (
    *BYTES,
    _lines(lambda lines, at, chance: lines.pop(at) and None),
    _lines(lambda lines, at, chance: lines.insert(at, lines[at])),
    _lines(lambda lines, at, chance: chance.shuffle(lines)),
    lambda whole, chance: whole.replace(b"\t", b" "),
    lambda whole, chance: whole.replace(b" ", b"\t"),
    lambda whole, chance: whole.replace(b"\n", b"\r\n"),
    lambda whole, chance: b"\xef\xbb\xbf" + whole,
    lambda whole, chance: whole.decode().encode("utf-16"),
    _words(b"9" * 400),
    _words(b"1e999"),
    _words(b"nan"),
    _words(b"-1"),
    _insert(b"\0"),
    _insert(b"\xff\xfe"),
    _insert(b"\x1b[2J"),
    _insert(b"x" * 200_000),
)
"""Damage to a text file."""


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode()
