"""Products of oneDNN: where they are chosen, and that they are fp32's."""

from __future__ import annotations

import pytest
import torch

from kdtrans import products
from kdtrans.products import ONEDNN, onednn_products

pytestmark = pytest.mark.usefixtures("matmul_precision")


@pytest.mark.parametrize("pays", [True, False])
@pytest.mark.parametrize("is_slow", [True, False])
@pytest.mark.parametrize("before", ["highest", "high", ONEDNN])
def test_they_are_chosen_within_the_context_only(
    pays: bool, is_slow: bool, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "has_slow_mkl", lambda: is_slow)
    torch.set_float32_matmul_precision(before)
    with onednn_products(pays):
        assert torch.get_float32_matmul_precision() == (ONEDNN if pays and is_slow else before)
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(KeyError), onednn_products(pays):
        raise KeyError
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.skipif(torch.cpu._is_amx_tile_supported(), reason="AMX rounds to bf16, and is not chosen")
@pytest.mark.parametrize("shape", [(64, 80, 256), (300, 512, 2048), (301, 2048, 512)])
def test_its_products_are_as_precise_as_fp32(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    rows, inner, columns = shape
    left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    torch.set_float32_matmul_precision(ONEDNN)
    error = (left @ right).double() - left.double() @ right.double()
    # bf16 would be wrong by about 2^-9 of a product's size, the square root of inner.
    assert float(error.abs().max()) < 2.0**-17 * inner**0.5
