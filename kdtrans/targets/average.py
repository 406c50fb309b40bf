"""Targets of several teachers as those of one: at every node the mean of their distributions.

The teachers share a tokenizer and the paths: sets are dumped with `along` the first, or all the same. Of a class that a
teacher's shard does not store, it is only known that it lies in that teacher's tail. It counts as 0 there: the mean of
its probability is too low by no more than that tail divided by the number of teachers, and what it lacks is in the
tail of the mean.

Shapes: N path nodes, K classes stored at each, C all stores' classes side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from kdtrans.contracts import ContractError
from kdtrans.targets.shards import Target
from kdtrans.targets.store import TargetRow, TargetStore


class TargetReader(Protocol):
    """What training needs of a store of targets."""

    @property
    def frame_offset(self) -> int:
        """Teacher frames that the student has not, at the start."""

    def rows(self, utt_id: str) -> list[TargetRow]:
        """What is known of an utterance's targets without reading them, best first."""

    def target(self, utt_id: str, rank: int) -> Target:
        """One of an utterance's targets."""


class AveragedStore:
    """Several stores read as one: the first one's hypotheses, and at their nodes the mean of all distributions.

    Args:
        stores: opened with the same tokenizer; all follow the same paths.

    Attributes:
        teacher_sha256: fingerprint of the first teacher, whose hypotheses these are.
        top_k: classes at each node, as the first store has them.
        frame_offset: teacher frames that the student has not, at the start.

    Raises:
        ContractError: when the stores' frame_offset differ, naming two of them and both values.
    """

    def __init__(self, stores: Sequence[TargetStore]) -> None:
        first, *others = stores
        for other in others:
            if other.frame_offset != first.frame_offset:
                raise ContractError(
                    f"{first.index}: frame_offset is {first.frame_offset}, in {other.index} it is "
                    f"{other.frame_offset}: dump one of them again"
                )
        self._stores = list(stores)
        self.teacher_sha256, self.top_k, self.frame_offset = first.teacher_sha256, first.top_k, first.frame_offset

    def __contains__(self, utt_id: str) -> bool:
        return all(utt_id in store for store in self._stores)

    def rows(self, utt_id: str) -> list[TargetRow]:
        """What the first store's index says of an utterance's targets, best first.

        Raises:
            ContractError: when a store has no target of it, or those of other lengths or weights.
        """
        first, *others = self._stores
        rows = first.rows(utt_id)
        sizes = [(row.num_frames, row.num_labels, row.weight) for row in rows]
        for other in others:
            found = [(row.num_frames, row.num_labels, row.weight) for row in other.rows(utt_id)]
            if found != sizes:
                raise _other_paths(utt_id, first, other, f"{sizes} and {found} (frames, labels, weight)")
        return rows

    def target(self, utt_id: str, rank: int) -> Target:
        """One of an utterance's targets: the first store's path, the mean distributions, the log of the mean scores.

        The classes are the most probable top_k of those that any store has; their log-probabilities are float32, not
        rounded as in a shard.

        Raises:
            ContractError: when a store has no such target or another path, naming the utterance and both, or when its
                shard is broken.
        """
        targets = [store.target(utt_id, rank) for store in self._stores]
        first = targets[0]
        for store, target in zip(self._stores, targets, strict=True):
            if not np.array_equal(target.path, first.path):
                raise _other_paths(utt_id, self._stores[0], store, _difference(first.path, target.path))
        ids_NK, logp_NK = mean_distributions([(t.topk_ids, t.topk_logp) for t in targets], self.top_k)
        return replace(
            first,
            topk_ids=ids_NK,
            topk_logp=logp_NK,
            path_logp=_log_mean([target.path_logp for target in targets]),
            total_logp=_log_mean([target.total_logp for target in targets]),
        )


def mean_distributions(
    distributions: Sequence[tuple[np.ndarray, np.ndarray]], top_k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The mean of several distributions over classes at the same nodes.

    Args:
        distributions: ids (N, K) and log-probabilities (N, K) of each; -inf where a class is left out; K may differ.
        top_k: most classes that are kept.

    Returns:
        Ids (N, top_k) uint16, the most probable first, of equals the lower id, and their log-probabilities (N, top_k)
        float32; 0 and -inf where there are fewer classes.
    """
    ids_NC = np.concatenate([ids_NK for ids_NK, _ in distributions], axis=1)
    p_NC = np.concatenate([np.exp(logp_NK.astype(np.float64)) for _, logp_NK in distributions], axis=1)
    # Side by side, a class's probabilities are summed. What is left out has id 0 and adds 0 to blank's.
    order_NC = ids_NC.argsort(axis=1, kind="stable")
    ids_NC, p_NC = np.take_along_axis(ids_NC, order_NC, 1), np.take_along_axis(p_NC, order_NC, 1)
    is_first_NC = np.ones(ids_NC.shape, bool)
    is_first_NC[:, 1:] = ids_NC[:, 1:] != ids_NC[:, :-1]
    mean_NC = np.zeros(p_NC.shape)
    mean_NC[is_first_NC] = np.add.reduceat(p_NC.ravel(), np.flatnonzero(is_first_NC)) / len(distributions)
    best_NK = (-mean_NC).argsort(axis=1, kind="stable")[:, :top_k]
    mean_NK = np.take_along_axis(mean_NC, best_NK, 1)
    ids_NK = np.where(mean_NK > 0, np.take_along_axis(ids_NC, best_NK, 1), 0)
    with np.errstate(divide="ignore"):
        return ids_NK.astype(np.uint16), np.log(mean_NK).astype(np.float32)


def _log_mean(logp: list[float]) -> float:
    """The log of the mean of probabilities that are given as logs."""
    return float(np.logaddexp.reduce(logp) - np.log(len(logp)))


def _other_paths(utt_id: str, first: TargetStore, other: TargetStore, difference: str) -> ContractError:
    return ContractError(
        f"utterance {utt_id} has other paths in {first.index} than in {other.index}: {difference}: "
        "dump the second along the first"
    )


def _difference(one_N: np.ndarray, two_N: np.ndarray) -> str:
    """The first place where two paths part."""
    if len(one_N) != len(two_N):
        return f"{len(one_N)} and {len(two_N)} nodes"
    node = int(np.flatnonzero(one_N != two_N)[0])
    return f"token {one_N[node]} and {two_N[node]} at node {node}"
