"""What matrices are multiplied in: bf16 where it pays, and on CPUs by the library that does it fastest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from kdtrans.products import ONEDNN, has_slow_mkl

WIDE = 256  # width of an encoder from which a CPU's faster products outweigh what they cost beside
WIDE_ON_GPU = 512  # and a GPU's in bf16 the kernels that cast for them


@contextmanager
def autocast(precision: str, device: torch.device, width: int) -> Iterator[None]:
    """A context that multiplies in bf16 where asked for, or where `auto` expects it to pay.

    It pays for wide encoders only, where the hardware knows bf16. On an H200 an update of 300 s of audio at width 384
    took 0.15 s in bf16 and 0.09 s in fp32: what counts is how many kernels are launched. On a CPU with AMX bf16 was
    twice as fast at width 384 and half as fast at width 96. The fused attention is slow in bf16 on CPUs, twice as slow
    backwards as the plain one (measured on AMX), so there it is plain.

    Raises:
        ValueError: when bf16 is asked for on a CPU without it, where LSTMs would fail in the midst of training.
    """
    if device.type == "cuda":
        pays = width >= WIDE_ON_GPU and torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        pays = width >= WIDE and torch.cpu._is_amx_tile_supported()
    if precision != "bf16" and not (precision == "auto" and pays):
        yield
        return
    if device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise ValueError("training.precision is bf16, which this CPU cannot compute in: set it to auto or fp32")
    backend = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, torch.bfloat16), backend:
        yield


def choose_products(precision: str, device: torch.device, width: int) -> None:
    """Have this process multiply fp32 matrices by oneDNN instead of MKL, where that is faster (products.py).

    A teacher of width 512 is fine-tuned 1.5 times as fast so (measured on Zen 5); a student of width 128 is slower.

    Args:
        precision: as configured; other than `auto` changes nothing.
        device: of the model; other than a CPU changes nothing.
        width: of its encoder.
    """
    if precision == "auto" and device.type == "cpu" and width >= WIDE and has_slow_mkl():
        torch.set_float32_matmul_precision(ONEDNN)


def product_dtype(device: torch.device) -> torch.dtype:
    """What Muon's iterations multiply in: bf16 is all they need, fp32 on CPUs that would have to emulate it.

    Without instructions for bf16 torch multiplies number by number: on Zen 3 an update of AN4's student took 1.6 s
    instead of 0.25 s.
    """
    emulated = device.type == "cpu" and not torch.cpu._is_avx512_bf16_supported()
    return torch.float32 if emulated else torch.bfloat16
