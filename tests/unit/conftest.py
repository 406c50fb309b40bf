from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kdtrans.__main__ import main
from tests.tiny import Workspace


@pytest.fixture
def matmul_precision() -> Iterator[None]:
    """Puts torch's choice of products back behind a test that changes it."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A toy corpus with a trained teacher, its target shard (`part`) and their `index`."""
    work = Workspace(tmp_path_factory.mktemp("toy"))
    assert main(work.teacher_command(work.teacher)) == 0
    assert main(work.dump_command(work.teacher, work.part)) == 0
    assert main(work.verify_command(work.teacher, work.part.parent)) == 0
    return work
