"""From cuts to batches: audio, features, labels and teacher targets, in a seeded order that can start anywhere.

Shapes: B utterances, F feature frames, C channels, U labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from lhotse import MonoCut
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from kdtrans.contracts import FRAME_SHIFT_MS
from kdtrans.losses.distillation import NodeTargets

Extract = Callable[[Tensor], Tensor]
Position = tuple[int, int]  # epoch, batch within it
LONGEST_S = 65535 * FRAME_SHIFT_MS / 1000  # frames are stored as uint16


@dataclass(frozen=True)
class Example:
    """One training utterance: its audio, the labels it is trained on, and optionally the teacher's target."""

    cut: MonoCut
    labels: tuple[int, ...]
    labelled: bool
    load_targets: Callable[[], NodeTargets] | None = None


@dataclass
class Batch:
    """What one training step sees; `position` is where the stream goes on after it."""

    utt_ids: list[str]
    features_BFC: Tensor
    lengths_B: Tensor  # feature frames
    labels_BU: Tensor
    label_lengths_B: Tensor
    targets: NodeTargets | None
    teacher_frames_B: Tensor | None  # -1 where an utterance has no target
    seconds: float
    position: Position = (0, 0)

    def to(self, device: torch.device) -> Batch:
        for name in ("features_BFC", "lengths_B", "labels_BU", "label_lengths_B", "targets", "teacher_frames_B"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value.to(device))
        return self


class FeatureCache:
    """Features of utterances, computed once and kept while memory allows: they do not change between epochs."""

    def __init__(self, extract: Extract, max_gb: float) -> None:
        self.extract, self.free_bytes = extract, int(max_gb * 1e9)
        self._kept: dict[str, Tensor] = {}

    def __call__(self, cut: MonoCut) -> Tensor:
        """Features (F, C) of a cut."""
        if cut.id in self._kept:
            return self._kept[cut.id]
        features = load_features(cut, self.extract)
        size = features.numel() * features.element_size()
        if size <= self.free_bytes:
            self.free_bytes -= size
            self._kept[cut.id] = features
        return features


@dataclass
class BatchOrder:
    """A seeded order of batches of similar durations: a function of (seed, epoch), so that resuming costs nothing.

    Args:
        seconds: duration of each example.
        labelled: whether each example is labelled.
        max_duration_s: padded seconds in a batch.
        unlabelled_ratio: seconds of unlabelled for each second of labelled audio; None: as they are. The smaller part
            is repeated, and the larger part is seen once an epoch.
        seed: seed of the order.
    """

    seconds: list[float]
    labelled: list[bool]
    max_duration_s: float
    unlabelled_ratio: float | None = None
    seed: int = 1
    _cached: tuple[int, list[list[int]]] | None = field(default=None, repr=False)

    def epoch(self, epoch: int) -> list[list[int]]:
        """The batches of one epoch, as lists of example indices."""
        if self._cached is None or self._cached[0] != epoch:
            random = np.random.default_rng((self.seed, epoch))
            self._cached = epoch, self._shuffled(random, self._members(random))
        return self._cached[1]

    def stream(self, start: Position = (0, 0)) -> Iterator[tuple[Position, list[int]]]:
        """Batches without end from a position, each with the position after it."""
        epoch, first = start
        while True:
            batches = self.epoch(epoch)
            for index in range(first, len(batches)):
                after = (epoch, index + 1) if index + 1 < len(batches) else (epoch + 1, 0)
                yield after, batches[index]
            epoch, first = epoch + 1, 0

    def _members(self, random: np.random.Generator) -> np.ndarray:
        everything = np.arange(len(self.seconds))
        is_labelled = np.asarray(self.labelled, dtype=bool)
        if self.unlabelled_ratio is None or is_labelled.all() or not is_labelled.any():
            return everything
        seconds = np.asarray(self.seconds)
        parts = {True: everything[is_labelled], False: everything[~is_labelled]}
        share = {True: 1.0, False: self.unlabelled_ratio}
        # Passes over each part such that the ratio holds and no part is seen less than once.
        passes = {part: share[part] / seconds[parts[part]].sum() for part in parts}
        least = min(passes.values())
        return np.concatenate([_repeat(parts[part], passes[part] / least, random) for part in parts])

    def _shuffled(self, random: np.random.Generator, members: np.ndarray) -> list[list[int]]:
        # A little noise on the durations, so that neighbours change from epoch to epoch.
        noisy = np.asarray(self.seconds)[members] * random.uniform(0.9, 1.1, len(members))
        batches = pack(members[np.argsort(noisy)].tolist(), self.seconds, self.max_duration_s)
        return [batches[i] for i in random.permutation(len(batches))]


def pack(order: list[int], seconds: list[float], max_duration_s: float) -> list[list[int]]:
    """Cut an order into batches whose padded duration (longest x count) stays within the limit."""
    batches: list[list[int]] = []
    longest = 0.0
    for index in order:
        longest = max(longest, seconds[index])
        if not batches or longest * (len(batches[-1]) + 1) > max_duration_s:
            batches.append([])
            longest = seconds[index]
        batches[-1].append(index)
    return batches


class TrainingBatches(Dataset[Batch]):
    """Examples as batches; an index is a position and its example indices, as `BatchOrder.stream` yields them."""

    def __init__(self, examples: list[Example], order: BatchOrder, features: FeatureCache, workers: int = 0) -> None:
        self.examples, self.order, self.features, self.workers = examples, order, features, workers

    def __getitem__(self, item: tuple[Position, list[int]]) -> Batch:
        position, indices = item
        batch = collate([self.examples[i] for i in indices], self.features)
        batch.position = position
        return batch

    def stream(self, start: Position) -> Iterator[Batch]:
        """Batches without end from a position, loaded by worker processes if there are any."""
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=self.order.stream(start),
            num_workers=self.workers,
            # Examples hold closures and open tables, which other ways of starting a process would have to pickle.
            multiprocessing_context="fork" if self.workers else None,
        )
        return iter(loader)


def collate(examples: list[Example], features: Callable[[MonoCut], Tensor]) -> Batch:
    """Load, pad and stack examples."""
    inputs = [features(example.cut) for example in examples]
    labels = [torch.tensor(example.labels, dtype=torch.long) for example in examples]
    targets = [example.load_targets() if example.load_targets else None for example in examples]
    return Batch(
        utt_ids=[example.cut.id for example in examples],
        features_BFC=pad_sequence(inputs, batch_first=True),
        lengths_B=torch.tensor([len(x) for x in inputs]),
        labels_BU=pad_sequence(labels, batch_first=True),
        label_lengths_B=torch.tensor([len(y) for y in labels]),
        targets=_join_targets(targets),
        teacher_frames_B=torch.tensor([-1 if t is None else int(t.t_N[-1]) + 1 for t in targets]),
        seconds=sum(example.cut.duration for example in examples),
    )


def inference_batches(
    cuts: list[MonoCut], extract: Extract, max_duration_s: float
) -> Iterator[tuple[list[MonoCut], Tensor, Tensor]]:
    """Cuts by falling duration in padded batches: the cuts, features (B, F, C) and lengths (B,).

    The longest batch comes first, so that memory runs out at once or not at all.
    """
    seconds = [cut.duration for cut in cuts]
    order = sorted(range(len(cuts)), key=lambda i: -seconds[i])
    for indices in pack(order, seconds, max_duration_s):
        features = [load_features(cuts[i], extract) for i in indices]
        yield (
            [cuts[i] for i in indices],
            pad_sequence(features, batch_first=True),
            torch.tensor([len(x) for x in features]),
        )


def load_features(cut: MonoCut, extract: Extract) -> Tensor:
    """Audio of a cut -> features (F, C); raises ValueError naming the cut when its audio cannot be read or used."""
    from lhotse.audio.backend import audio_backend

    if cut.duration > LONGEST_S:
        raise ValueError(
            f"utterance {cut.id} lasts {cut.duration:.0f} s, but paths are stored for at most {LONGEST_S:.0f} s: cut it"
        )
    try:
        # libsndfile reads all formats here, NIST sph among them, for which lhotse would call a program of its own.
        with audio_backend("LibsndfileBackend"):
            waveform = torch.from_numpy(cut.load_audio()[0])
    except Exception as error:  # lhotse wraps every backend's errors in its own types
        source = cut.recording.sources[0].source if cut.recording else "no recording"
        raise ValueError(f"utterance {cut.id}: cannot read {source} ({error})") from error
    try:
        return extract(waveform)
    except ValueError as error:
        raise ValueError(f"utterance {cut.id}: {error}") from error


def _join_targets(targets: list[NodeTargets | None]) -> NodeTargets | None:
    present = [(i, target) for i, target in enumerate(targets) if target is not None]
    if not present:
        return None
    return NodeTargets(
        utterance_N=torch.cat([torch.full((len(target),), i) for i, target in present]),
        t_N=torch.cat([target.t_N for _, target in present]),
        u_N=torch.cat([target.u_N for _, target in present]),
        ids_NK=torch.cat([target.ids_NK for _, target in present]),
        logp_NK=torch.cat([target.logp_NK for _, target in present]),
    )


def _repeat(members: np.ndarray, times: float, random: np.random.Generator) -> np.ndarray:
    whole = int(times)
    rest = random.permutation(members)[: round((times - whole) * len(members))]
    return np.concatenate([np.tile(members, whole), rest])
