"""The Triton kernels against the loops in torch: on a GPU where there is one, else run by Triton's interpreter.

The interpreter has to be chosen before Triton is imported, so it gets a process of its own, which runs this file again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from kdtrans.lattice import recursion
from kdtrans.lattice.recursion import IMPOSSIBLE, forward_backward_scores, forward_scores, total_score, viterbi
from kdtrans.losses.band import path_band
from kdtrans.losses.fused import fused_transducer_loss
from kdtrans.losses.grid import Cells
from tests.unit.lattice.twins import every_path, path_score, total_by_enumeration

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
runs_kernels = pytest.mark.skipif(
    not (INTERPRETED or torch.cuda.is_available()), reason="no GPU; test_interpreted runs it in a process of its own"
)


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_interpreted() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert "skipped" in run.stdout  # this one, and what the interpreter cannot do
    assert int(run.stdout.rsplit(" passed", 1)[0].split()[-1]) >= 15


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("columns", [1, 61, 300, 4096])
@pytest.mark.parametrize("name", ["_log_sums", "_maxima"])
def test_compiled_without_a_gpu(
    name: str, columns: int, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton import compile as compiled
    from triton.backends import backends
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from kdtrans.lattice import kernel

    if "nvidia" not in backends:
        pytest.skip("this Triton has no back end for CUDA")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
    arrays = {"steps": "*fp64", "sums": "*fp64", "best": "*fp64", "entries": "*i64"}
    function = getattr(kernel, name)
    signature = {arg: arrays.get(arg, "i32") for arg in function.arg_names} | {"BLOCK": "constexpr"}
    options = kernel._block(columns)
    source = ASTSource(function, signature, {"BLOCK": options.pop("BLOCK")})
    assembly = compiled(source, target=GPUTarget("cuda", 90, 32), options=options).asm
    assert f".visible .entry {name}" in assembly["ptx"]
    assert "add.f64" in assembly["ptx"] or "add.rn.f64" in assembly["ptx"]
    assert ".approx" not in assembly["ptx"].replace("rcp.approx.ftz.f64", "")  # no exp or log in fp32
    assert len(assembly["cubin"]) > 0


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The kernels, which the recursion runs from now on, on whatever device."""
    from kdtrans.lattice import kernel

    monkeypatch.setattr(recursion, "_kernel_for", lambda steps: kernel)
    return kernel


def in_torch(steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sums, maxima, entries of the loops in torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recursion, "_kernel_for", lambda steps: None)
        return recursion._log_sums(steps), *recursion._maxima(steps)


def random_steps(batch: int, num_frames: int, columns: int, scale: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    steps = scale * torch.randn(batch, num_frames - 1, columns, generator=generator, dtype=torch.float64)
    return steps.to(DEVICE)


SHAPES = {
    "one node": (1, 1, 1),
    "one frame": (2, 1, 7),
    "no labels": (3, 9, 1),
    "one utterance": (1, 12, 5),
    "a power of two": (2, 6, 32),
    "one more": (2, 6, 33),
    "many labels": (1, 5, 301),
    "many frames": (2, 120, 4),
}


@runs_kernels
@pytest.mark.parametrize("scale", [0.01, 3.0, 1000.0])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_as_the_loops_in_torch(kernel: ModuleType, shape: tuple[int, int, int], scale: float) -> None:
    steps = random_steps(*shape, scale)
    sums, best, entries = in_torch(steps)
    torch.testing.assert_close(kernel.log_sums(steps), sums, rtol=1e-12, atol=1e-10)
    for ours, theirs in zip(kernel.maxima(steps), (best, entries), strict=True):
        assert torch.equal(ours, theirs)


@runs_kernels
def test_impossible_and_strongly_negative_steps(kernel: ModuleType) -> None:
    steps = random_steps(3, 20, 6, 3.0)
    steps[0, 3:, ::2] = IMPOSSIBLE
    steps[1] -= 1.0e5
    steps[2, 4] = IMPOSSIBLE  # no way from there on
    sums, best, entries = in_torch(steps)
    ours = kernel.log_sums(steps)
    assert ours.isfinite().all()
    torch.testing.assert_close(ours, sums, rtol=1e-12, atol=1e-10)
    for ours, theirs in zip(kernel.maxima(steps), (best, entries), strict=True):
        assert torch.equal(ours, theirs)


@runs_kernels
def test_ties_and_numbers_that_are_none(kernel: ModuleType) -> None:
    """Of equal ways the later; and nan comes out as nan, for the trainer to stop at."""
    steps = torch.zeros(2, 8, 40, dtype=torch.float64, device=DEVICE)
    steps[1, 4, 17] = torch.nan
    sums, best, entries = in_torch(steps)
    torch.testing.assert_close(kernel.log_sums(steps), sums, equal_nan=True)
    ours = kernel.maxima(steps)
    torch.testing.assert_close(ours[0], best, equal_nan=True, rtol=0, atol=0)
    assert torch.equal(ours[1][0], entries[0])


@runs_kernels
def test_steps_that_lie_otherwise_in_memory(kernel: ModuleType) -> None:
    steps = random_steps(6, 4, 5, 3.0).transpose(0, 2)[:, 1:]  # (5, 2, 6)
    torch.testing.assert_close(kernel.log_sums(steps), in_torch(steps)[0])
    assert torch.equal(kernel.maxima(steps)[1], in_torch(steps)[2])


@runs_kernels
@pytest.mark.parametrize("seed", range(4))
def test_lattices_equal_enumeration(kernel: ModuleType, seed: int) -> None:
    frames, lengths = [3, 4, 1, 2], [3, 2, 0, 1]
    generator = torch.Generator().manual_seed(seed)
    log_probs = (3.0 * torch.randn(4, 4, 4, 5, generator=generator, dtype=torch.float64)).log_softmax(-1).to(DEVICE)
    labels = torch.randint(1, 5, (4, 3), generator=generator).to(DEVICE)
    blank = log_probs[..., 0]
    label = log_probs[:, :, :-1].gather(3, labels[:, None, :, None].expand(-1, 4, -1, -1))[..., 0]
    grid = (torch.tensor(frames, device=DEVICE), torch.tensor(lengths, device=DEVICE))
    totals = total_score(forward_scores(blank, label), blank, *grid)
    _, beta = forward_backward_scores(blank, label, *grid)
    paths, scores = viterbi(blank, label, labels, *grid)
    for b, (num_frames, length) in enumerate(zip(frames, lengths, strict=True)):
        spelled = labels[b, :length].tolist()
        torch.testing.assert_close(totals[b], total_by_enumeration(log_probs[b, :num_frames], spelled))
        torch.testing.assert_close(beta[b, 0, 0], totals[b])
        best = max(every_path(num_frames, spelled), key=lambda path: float(path_score(log_probs[b], path)))
        assert paths[b, : num_frames + length].tolist() == best
        torch.testing.assert_close(scores[b], path_score(log_probs[b], best))


@runs_kernels
def test_a_banded_loss_and_its_gradient(kernel: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the impossible arcs of a band, and the mirrored grid of utterances of different sizes."""
    generator = torch.Generator().manual_seed(1)
    enc = torch.randn(2, 9, 8, generator=generator).to(DEVICE).requires_grad_()
    pred = torch.randn(2, 6, 8, generator=generator).to(DEVICE).requires_grad_()
    labels = torch.randint(1, 8, (2, 5), generator=generator).to(DEVICE)
    frames, lengths = torch.tensor([9, 7], device=DEVICE), torch.tensor([3, 5], device=DEVICE)
    t_N = torch.arange(9, device=DEVICE)
    path = Cells(torch.zeros_like(t_N), t_N, t_N * 3 // 8)
    band = path_band(path, frames, lengths, 9, 6, 2, 1)

    def loss_and_gradients() -> tuple[Tensor, ...]:
        loss = fused_transducer_loss(torch.add, [], enc, pred, labels, frames, lengths, band_BTU=band)
        return (loss.detach(), *torch.autograd.grad(loss.sum(), (enc, pred)))

    ours = loss_and_gradients()
    monkeypatch.setattr(recursion, "_kernel_for", lambda steps: None)
    for value, expected in zip(ours, loss_and_gradients(), strict=True):
        torch.testing.assert_close(value, expected)


def test_on_a_cpu_the_loops_are_in_torch() -> None:
    assert recursion._kernel_for(torch.zeros(1, 2, 3, dtype=torch.float64)) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_rows_that_fit_a_block_take_the_kernels() -> None:
    assert recursion._kernel_for(torch.zeros(1, 2, 4096, dtype=torch.float64, device="cuda")) is not None
    assert recursion._kernel_for(torch.zeros(1, 2, 4097, dtype=torch.float64, device="cuda")) is None


def test_where_triton_fails_the_loops_are_in_torch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)  # not installed
    monkeypatch.delitem(sys.modules, "kdtrans.lattice.kernel", raising=False)
    monkeypatch.delattr("kdtrans.lattice.kernel", raising=False)
    recursion._triton_kernel.cache_clear()
    assert recursion._triton_kernel() is None
    recursion._triton_kernel.cache_clear()
    assert "the lattice loops over frames in torch, as Triton fails" in capsys.readouterr().err
