from __future__ import annotations

import pytest

from kdtrans.__main__ import main
from tests.tiny import Workspace


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A toy corpus with a trained teacher (teacher/model.pt), its targets (part.parquet) and their index.json."""
    work = Workspace(tmp_path_factory.mktemp("toy"))
    teacher, part = work.folder / "teacher" / "model.pt", work.folder / "part.parquet"
    assert main(work.teacher_command(teacher)) == 0
    assert main(work.dump_command(teacher, part)) == 0
    assert main(work.verify_command(teacher, part, work.folder / "index.json")) == 0
    return work
