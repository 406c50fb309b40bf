from __future__ import annotations

from pathlib import Path

import pytest

from kdtrans.__main__ import main
from tests.hostile.judge import Judge
from tests.hostile.material import LAYOUTS, SoundCorpus
from tests.tiny import Workspace


@pytest.fixture(scope="session")
def judge() -> Judge:
    """One for the whole folder: test_total.py has the last word."""
    return Judge()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For files and outputs; shared, because Hypothesis runs a test's examples in one function's fixtures."""
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SoundCorpus]:
    """A sound corpus in each layout."""
    return {name: make(tmp_path_factory.mktemp(name) / "corpus") for name, make in LAYOUTS.items()}


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A toy corpus with a trained teacher, its target shard and their index."""
    made = Workspace(tmp_path_factory.mktemp("work"), utterances=6)
    assert main(made.teacher_command(made.teacher)) == 0
    assert main(made.dump_command(made.teacher, made.part)) == 0
    assert main(made.verify_command(made.teacher, made.part.parent)) == 0
    return made
