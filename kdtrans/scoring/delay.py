"""Emission delay: how much later than the teacher a system emits each label of the reference.

Both models' Viterbi paths of the same reference are compared (contracts.ALIGNMENTS), so that recognition errors do not
blur the measure.

Shapes: L labels of all utterances together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kdtrans.contracts import FRAME_SHIFT_MS, ContractError


@dataclass(frozen=True)
class Delay:
    """Delays of a system's labels, those of all its seeds together, ms; positive is later than the teacher."""

    mean: float
    p50: float
    p90: float
    labels: int  # of one seed

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def label_delays(system: pa.Table, teacher: pa.Table, source: Path, teacher_source: Path) -> NDArray[np.int64]:
    """The delay of every label of a system's alignments against the teacher's.

    Args:
        system: rows of contracts.ALIGNMENTS, in any order.
        teacher: the teacher's, of the same utterances.
        source: the system's file, for messages.
        teacher_source: the teacher's file, for messages.

    Returns:
        Delays (L,), ms, multiples of a frame.

    Raises:
        ContractError: naming the files that differ in their utterances, or the utterance whose labels differ.
    """
    system, teacher = system.sort_by("utt_id"), teacher.sort_by("utt_id")
    if not system["utt_id"].equals(teacher["utt_id"]):
        raise ContractError(
            f"{source} ({len(system)} utterances) and {teacher_source} ({len(teacher)}) do not hold the same "
            "utterances: align both on the same manifest"
        )
    if not system["tokens"].equals(teacher["tokens"]):
        pairs = zip(*(table["tokens"].to_pylist() for table in (system, teacher)), strict=True)
        utt_id = next(system["utt_id"][row].as_py() for row, (left, right) in enumerate(pairs) if left != right)
        raise ContractError(
            f"utterance {utt_id} has other labels in {source} than in {teacher_source}: align both with one tokenizer"
        )
    return FRAME_SHIFT_MS * (_frames(system) - _frames(teacher))


def pooled(delays: Sequence[NDArray[np.int64]]) -> Delay | None:
    """Mean, median and 90th percentile over the labels of all seeds, (L,) each; None where there is no label."""
    together = np.concatenate(list(delays))
    if not len(together):
        return None
    p50, p90 = np.percentile(together, (50, 90))
    return Delay(float(together.mean()), float(p50), float(p90), len(delays[0]))


def _frames(table: pa.Table) -> NDArray[np.int64]:
    frames: NDArray[np.int64] = table["token_frames"].combine_chunks().flatten().to_numpy().astype(np.int64)
    return frames
