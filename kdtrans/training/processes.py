"""Several processes that train one model together, as `torchrun` starts them; each takes its share of every update.

Gradients are summed by hand in one flat bucket after the backward pass, instead of torch's DistributedDataParallel:
that wraps the model, sums after every backward pass unless told otherwise, and overlaps with backward, which pays for
models much larger than a student.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from kdtrans.data.batches import BatchOrder, Position

LONGEST_WAIT = timedelta(hours=3)  # for the first process: it waits for other trainers, and decodes dev
Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """This process among those that train together; the first of them writes, logs and evaluates."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def from_first(self, value: Value) -> Value:
        """The first process's value, in all of them: tensors on CPU and plain values."""
        if self.count == 1:
            return value
        values: list[Any] = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def gathered(self, value: Value) -> list[Value]:
        """The values of all processes, in all of them."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients over all processes, one without counting as 0; where none has one, there is none."""
        if self.count == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        has_M = torch.tensor([float(parameter.grad is not None) for parameter in trained], device=trained[0].device)
        flat = torch.cat([has_M, *(_gradient(parameter).flatten() for parameter in trained)])
        distributed.all_reduce(flat)
        has_M, *gradients = flat.split([len(trained), *(parameter.numel() for parameter in trained)])
        for parameter, has, gradient in zip(trained, has_M.tolist(), gradients, strict=True):
            parameter.grad = gradient.view_as(parameter) if has else None


ALONE = Processes()


@dataclass
class SharedOrder(BatchOrder):
    """An order of batches of which each process gets every `count`-th, its own."""

    processes: Processes = ALONE

    def stream(self, start: Position = (0, 0)) -> Iterator[tuple[Position, list[int]]]:
        """This process's batches from a position on, at which all of them start."""
        return islice(super().stream(start), self.processes.rank, None, self.processes.count)


@contextmanager
def joined(batches: int) -> Iterator[Processes]:
    """Meet the processes that torchrun has started with this one; without torchrun it is alone.

    Args:
        batches: those of an update, for the processes to share.

    Raises:
        ValueError: when they cannot be shared equally, or there are GPUs, but fewer than processes.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    if batches % count:
        raise ValueError(
            f"training.accumulate is {batches} batches an update, which {count} processes cannot share equally: "
            f"set it to a multiple of {count}, or start as many processes as divide it"
        )
    on_gpu, local = torch.cuda.is_available(), int(os.environ["LOCAL_RANK"])
    if on_gpu:
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"process {local + 1} of this machine has no GPU of its own, there are {torch.cuda.device_count()}: "
                "start as many processes as GPUs"
            )
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=LONGEST_WAIT)
    try:
        yield Processes(distributed.get_rank(), count)
    finally:
        distributed.destroy_process_group()


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
