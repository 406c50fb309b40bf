"""What interrupted trainings are compared with."""

from __future__ import annotations

import pytest

from kdtrans.__main__ import main
from kdtrans.training.checkpoint import read_model
from tests.tiny import Workspace


@pytest.fixture(scope="session")
def unbroken(toy: Workspace, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Identity of the weights of the toy student whose training nothing disturbs."""
    out = tmp_path_factory.mktemp("unbroken") / "model.pt"
    assert main(toy.student_command(toy.index, out)) == 0
    fingerprint: str = read_model(out)["fingerprint"]
    return fingerprint
