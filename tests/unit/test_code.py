"""Which modules a stage reaches, and that rewording one of them is no change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kdtrans.__main__ import COMMANDS
from kdtrans.artifacts import read_json, run_record
from kdtrans.code import LEFT_OUT, PACKAGE, code_of, read_module

SOURCE = '''"""A module."""

from kdtrans.scoring import wer


def double(value: int) -> int:
    """Twice the value."""
    return 2 * value
'''


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package that may be edited."""
    return Path(shutil.copytree(PACKAGE, tmp_path / "kdtrans", ignore=shutil.ignore_patterns("__pycache__")))


def hashed(package: Path, text: str) -> tuple[str, list[Path]]:
    """Hash and imports of a module with some text."""
    read_module.cache_clear()
    file = package / "stages" / "example.py"
    file.write_text(text)
    return read_module(file, package)


def test_a_stage_reaches_its_own_module_and_what_it_imports_in_functions() -> None:
    reached = code_of("train-student")
    assert reached.keys() >= {"kdtrans/stages/train_student.py", "kdtrans/losses/distillation.py"}
    assert not reached.keys() & {"kdtrans/report/page.py", "kdtrans/artifacts.py"}
    assert all(len(sha) == 12 for sha in reached.values())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""A module."""', '"""A module, described."""  # and a comment'),
        ("    return 2 * value", "    # why\n\n    return (2 * value)"),
        ('    """Twice the value."""\n', ""),
        ("from kdtrans.scoring import wer", "from kdtrans.scoring import (\n    wer,\n)"),
    ],
)
def test_rewording_is_no_change(package: Path, old: str, new: str) -> None:
    assert hashed(package, SOURCE) == hashed(package, SOURCE.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2 * value", "3 * value"),
        ("2 * value", "2.0 * value"),
        ("value: int)", "value: int = 1)"),
        ("    return 2 * value", "    if value:\n        value += 1\n    return 2 * value"),
    ],
)
def test_another_statement_is_a_change(package: Path, old: str, new: str) -> None:
    assert hashed(package, SOURCE)[0] != hashed(package, SOURCE.replace(old, new))[0]


def test_a_statement_after_a_block_is_not_one_in_it(package: Path) -> None:
    after, inside = "if a:\n    b\nc\n", "if a:\n    b\n    c\n"
    assert hashed(package, after)[0] != hashed(package, inside)[0]


def test_imports_are_found_with_their_modules(package: Path) -> None:
    text = "import numpy, kdtrans.contracts\nfrom kdtrans import config, __version__\n"
    _, imported = hashed(package, text + "from kdtrans.models.pretrained import load_encoder\n")
    assert imported == [package / "contracts.py", package / "models" / "pretrained" / "__init__.py"]


def test_a_change_in_what_only_score_reaches_is_one_of_score(package: Path) -> None:
    before = {stage: code_of(stage, package) for stage in COMMANDS}
    file = package / "stages" / "score.py"
    file.write_text(file.read_text() + "\n\nMORE = 1\n")
    code_of.cache_clear()
    read_module.cache_clear()
    now = {stage: code_of(stage, package) for stage in COMMANDS}
    assert {stage for stage in COMMANDS if now[stage] != before[stage]} == {"score"}
    changed = {name for name, sha in now["score"].items() if sha != before["score"].get(name)}
    assert changed == {"kdtrans/stages/score.py"}


def test_a_run_record_has_the_code_of_its_stage(tmp_path: Path) -> None:
    for stage in ("gate", "no stage"):
        with run_record(tmp_path / "artifact", stage, {}):
            (tmp_path / "artifact").touch()
        assert read_json(tmp_path / "artifact.run.json")["code"] == code_of(stage)
    assert code_of("no stage") == {}


def test_what_is_left_out_is_there() -> None:
    assert all((PACKAGE / f"{name}.py").exists() for name in LEFT_OUT)


def test_every_command_is_the_name_of_its_module() -> None:
    """A stage's code is found by its name."""
    assert {name: f"kdtrans.stages.{name.replace('-', '_')}" for name in COMMANDS} == {
        name: module for name, (module, _) in COMMANDS.items()
    }
