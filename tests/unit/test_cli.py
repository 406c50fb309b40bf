"""Help is fast: no command's `--help` loads what takes seconds to import; commands and rules agree."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from kdtrans.__main__ import COMMANDS, main

SHOW_HELP = """
import contextlib, io, json, sys
from kdtrans.__main__ import main
loaded = {}
for command in json.loads(sys.argv[1]):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main([*command.split(), "--help"])
    loaded[command] = sorted({"torch", "torchaudio", "lhotse", "transformers"} & set(sys.modules))
print(json.dumps(loaded))
"""


def test_every_command_has_its_module() -> None:
    assert not [module for module, _ in COMMANDS.values() if importlib.util.find_spec(module) is None]


def test_help_imports_nothing_heavy() -> None:
    commands = ["", *(name for name, (module, _) in COMMANDS.items() if importlib.util.find_spec(module))]
    run = subprocess.run(
        [sys.executable, "-c", SHOW_HELP, json.dumps(commands)], capture_output=True, text=True, check=True
    )
    assert json.loads(run.stdout) == {command: [] for command in commands}


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in COMMANDS)


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill"]) == 2
    message = capsys.readouterr().err
    assert "distill" in message
    assert "train-student" in message


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "kdtrans", "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout
        assert run.stderr
        run.stdout.close()  # before anything is written
        assert run.stderr.read() == ""
    assert run.returncode == 141


def test_an_expected_error_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    missing = tmp_path / "none.parquet"
    names = ["--run", "kd", "--system", "kd", "--search", "greedy", "--testset", "dev"]
    assert main(["score", "--hypotheses", str(missing), "--cuts", "c", *names, "--out", str(tmp_path / "o.json")]) == 1
    message = capsys.readouterr().err
    assert message.startswith("kdtrans score: error: ")
    assert str(missing) in message
    assert message.count("\n") == 1
