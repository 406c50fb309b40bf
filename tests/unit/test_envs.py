"""The environments of envs/ hold what the lock says, and the lock what kdtrans asks for."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[2]
LOCK = REPOSITORY / "requirements/lock.txt"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
RULES = sorted((REPOSITORY / "workflow/rules").glob("*.smk"))
ASKED = [*PROJECT["dependencies"], *chain.from_iterable(PROJECT["optional-dependencies"].values())]
PYTHON = "3.11"  # of all environments: what the lock was made with


def pinned() -> dict[str, str]:
    """Package -> version of the lock; every line has to pin one."""
    lines = [line for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("asked", ASKED)
def test_the_lock_satisfies_what_the_project_asks_for(asked: str) -> None:
    requirement = Requirement(asked)
    assert requirement.specifier.contains(pinned()[canonicalize_name(requirement.name)])


def test_the_image_is_made_of_the_lock_and_nothing_else() -> None:
    definition = (REPOSITORY / "envs/kdtrans.def").read_text()
    assert f"From: python:{PYTHON}-slim" in definition
    copied = dict(re.findall(r"^    (\S+) /opt/kdtrans/(\S+)$", definition, flags=re.MULTILINE))
    assert all((REPOSITORY / source).exists() and source == target for source, target in copied.items())
    assert re.findall(r"pip install (.*)", definition) == [
        "--no-cache-dir --no-deps -r requirements/lock.txt",
        "--no-cache-dir --no-deps .",
    ]
    # What pip reads of the project to install it.
    assert copied.keys() >= {"requirements/lock.txt", "pyproject.toml", PROJECT["readme"], "kdtrans"}


def test_the_conda_environment_is_made_of_the_lock_and_nothing_else() -> None:
    *interpreter, packages = yaml.safe_load((REPOSITORY / "envs/kdtrans.yaml").read_text())["dependencies"]
    assert interpreter == [f"python={PYTHON}", "pip"]
    folder = REPOSITORY / ".snakemake/conda"  # where Snakemake copies the file to, and where pip's paths start
    found = [(option, (folder / path).resolve()) for option, path in map(str.split, packages["pip"])]
    assert found == [("-r", LOCK), ("-e", REPOSITORY)]


@pytest.mark.parametrize("rules", RULES, ids=lambda path: path.stem)
def test_every_command_has_that_environment(rules: Path) -> None:
    text = rules.read_text()
    named = re.findall(r'conda:\n\s+"(.+)"', text)
    assert len(named) == text.count("shell:\n")
    assert {(rules.parent / name).resolve() for name in named} <= {REPOSITORY / "envs/kdtrans.yaml"}


def test_the_workflow_names_the_image_that_the_definition_makes() -> None:
    built = re.search(r"apptainer build (\S+) envs/kdtrans.def", (REPOSITORY / "envs/kdtrans.def").read_text())
    assert built
    assert f'container: "{built[1]}"' in (REPOSITORY / "Snakefile").read_text()
