"""Which models multiply by oneDNN, and which in bf16 on a GPU."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from kdtrans.training import precision
from kdtrans.training.precision import WIDE, WIDE_ON_GPU, autocast, choose_products

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


@pytest.mark.parametrize(
    ("setting", "width", "knows_bf16", "casts"),
    [
        ("auto", WIDE_ON_GPU, True, True),
        ("auto", WIDE_ON_GPU - 1, True, False),
        ("auto", WIDE_ON_GPU, False, False),
        ("bf16", WIDE_ON_GPU - 1, True, True),
        ("fp32", WIDE_ON_GPU, True, False),
    ],
)
def test_gpus_cast_where_it_pays(
    setting: str, width: int, knows_bf16: bool, casts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: knows_bf16)
    entered: list[tuple[str, torch.dtype]] = []
    monkeypatch.setattr(torch, "autocast", lambda *to: entered.append(to) or nullcontext())
    with autocast(setting, torch.device("cuda"), width):
        pass
    assert entered == ([("cuda", torch.bfloat16)] if casts else [])
