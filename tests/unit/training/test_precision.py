"""Which models multiply by oneDNN."""

from __future__ import annotations

import pytest
import torch

from kdtrans.training import precision
from kdtrans.training.precision import WIDE, choose_products

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("matmul_precision")


@pytest.mark.parametrize(
    ("setting", "device", "width", "is_slow", "chosen"),
    [
        ("auto", CPU, WIDE, True, "medium"),
        ("auto", CPU, WIDE - 1, True, "highest"),
        ("auto", CPU, WIDE, False, "highest"),
        ("fp32", CPU, WIDE, True, "highest"),
        ("auto", torch.device("cuda"), WIDE, True, "highest"),
    ],
)
def test_onednn_multiplies_where_it_pays(
    setting: str, device: torch.device, width: int, is_slow: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_float32_matmul_precision("highest")
    monkeypatch.setattr(precision, "has_slow_mkl", lambda: is_slow)
    choose_products(setting, device, width)
    assert torch.get_float32_matmul_precision() == chosen
