"""Which library multiplies, and that its products are fp32's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kdtrans.training import precision
from kdtrans.training.precision import WIDE, choose_products

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


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


@pytest.mark.skipif(torch.cpu._is_amx_tile_supported(), reason="AMX rounds to bf16, and is not chosen")
@pytest.mark.parametrize("shape", [(64, 80, 256), (300, 512, 2048), (301, 2048, 512)])
def test_its_products_are_as_precise_as_fp32(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    rows, inner, columns = shape
    left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    torch.set_float32_matmul_precision("medium")
    error = (left @ right).double() - left.double() @ right.double()
    # bf16 would be wrong by about 2^-9 of a product's size, the square root of inner.
    assert float(error.abs().max()) < 2.0**-17 * inner**0.5
