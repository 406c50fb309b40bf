"""Which library multiplies fp32 matrices on a CPU.

MKL, torch's own choice, has no AVX-512 kernels for AMD's CPUs. oneDNN has: twice as fast on Zen 5, and as precise. But
it compiles a kernel for every new shape, so that it pays where matrices are wide, or one shape comes again and again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

ONEDNN = "medium"  # torch's name: oneDNN may round to bf16, but does only where AMX multiplies so


@cache
def has_slow_mkl() -> bool:
    """Whether this is a CPU with AVX-512 of which MKL makes no use, and without AMX (Linux)."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file() or "AuthenticAMD" not in cpuinfo.read_text():
        return False
    if not hasattr(torch.cpu, "_is_avx512_supported"):  # the old torch of k2's environment has no such choice
        return False
    return torch.cpu._is_avx512_supported() and not torch.cpu._is_amx_tile_supported()


@contextmanager
def onednn_products(pays: bool) -> Iterator[None]:
    """A context that multiplies by oneDNN, if that `pays` here and MKL is slow.

    It is for work on a CPU only: torch's choice is one for GPUs too, where it would allow TF32.
    """
    if not pays or not has_slow_mkl():
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(ONEDNN)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
