"""From cuts to batches: audio, features, labels and teacher targets, in a seeded order that can start anywhere.

Shapes: B utterances, F feature frames, C channels, U labels, T teacher frames (40 ms), J the teacher's joiner width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from lhotse import MonoCut
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from kdtrans.contracts import FRAME_SHIFT_MS
from kdtrans.losses.distillation import NodeTargets, joined_targets

Extract = Callable[[Tensor], Tensor]
Position = tuple[int, int]  # epoch, batch within it
CPU = torch.device("cpu")
LONGEST_S = 65535 * FRAME_SHIFT_MS / 1000  # frames are stored as uint16


@dataclass(frozen=True)
class Supervision:
    """What one visit of an utterance is trained on.

    Args:
        labels: token ids.
        targets: the teacher's distributions along the labels' path; None: there are none.
        total_logp: the teacher's log P(labels | audio) over all paths, nats; None: unknown.
    """

    labels: tuple[int, ...]
    targets: NodeTargets | None = None
    total_logp: float | None = None


@dataclass(frozen=True)
class Labelling:
    """Labels that an utterance may be trained on: its text, or one of the teacher's hypotheses.

    Args:
        num_labels: how many they are.
        read: reads them, and what the teacher says along their path, when the utterance is visited.
        weight: posterior among the utterance's labellings; they sum to 1.
    """

    num_labels: int
    read: Callable[[], Supervision]
    weight: float = 1.0


def known(supervision: Supervision) -> Labelling:
    """The only labelling of an utterance whose labels are at hand."""
    return Labelling(len(supervision.labels), lambda: supervision)


@dataclass(frozen=True)
class Example:
    """One training utterance: its audio, whether it came with its text, and its labellings; a visit draws one of them.

    Drawn by their weights, one labelling gives an unbiased estimate of the weighted loss over all, at the cost of one.
    """

    cut: MonoCut
    labelled: bool
    labellings: tuple[Labelling, ...]


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
    teacher_totals_B: Tensor | None = None  # the teacher's log P(labels | audio), nats; nan where it is unknown
    teacher_BTJ: Tensor | None = None  # its projected encoder output, where it runs beside the student
    position: Position = (0, 0)

    def to(self, device: torch.device) -> Batch:
        """Move it to a device; from pinned memory the GPU takes it while this process goes on."""
        for name, value in self._parts():
            setattr(self, name, value.to(device, non_blocking=device.type == "cuda"))  # off one it would be a race
        return self

    def pin_memory(self) -> Batch:
        """Move it to pinned memory; the loader calls this."""
        for name, value in self._parts():
            setattr(self, name, value.pin_memory())
        return self

    def _parts(self) -> list[tuple[str, Tensor | NodeTargets]]:
        return [(name, value) for name, value in vars(self).items() if isinstance(value, (Tensor, NodeTargets))]


Change = Callable[[Batch, np.random.Generator], Batch]


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
        visits: of each example where its part is seen once, at least 1; None: one each.
    """

    seconds: list[float]
    labelled: list[bool]
    max_duration_s: float
    unlabelled_ratio: float | None = None
    seed: int = 1
    visits: list[float] | None = None
    _cached: tuple[int, list[list[int]]] | None = field(default=None, repr=False)

    def epoch(self, epoch: int) -> list[list[int]]:
        """The batches of one epoch, as lists of example indices."""
        if self._cached is None or self._cached[0] != epoch:
            random = np.random.default_rng((self.seed, epoch))
            members = self._revisited(random, self._members(random))
            self._cached = epoch, self._shuffled(random, members)
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
        seconds = np.asarray(self.seconds) * (1.0 if self.visits is None else np.asarray(self.visits))  # of one pass
        parts = {True: everything[is_labelled], False: everything[~is_labelled]}
        share = {True: 1.0, False: self.unlabelled_ratio}
        # Passes over each part such that the ratio holds and no part is seen less than once.
        passes = {part: share[part] / seconds[parts[part]].sum() for part in parts}
        least = min(passes.values())
        return np.concatenate([_repeat(parts[part], passes[part] / least, random) for part in parts])

    def _revisited(self, random: np.random.Generator, members: np.ndarray) -> np.ndarray:
        if self.visits is None:
            return members
        visits = np.asarray(self.visits)[members]
        return np.repeat(members, np.floor(visits + random.random(len(members))).astype(int))  # as many on average

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
    """Examples as batches; an index is a position and its example indices, as `BatchOrder.stream` yields them.

    Args:
        examples: all of them.
        order: which of them come together, and when; its seed also draws the labellings.
        features: a cut -> (F, C).
        workers: processes that load audio and targets; 0: none but this one.
        teacher: a cut -> the teacher's projected encoder output (T, J), where the teacher runs beside the student.
        change: makes another batch of a batch, by a seeded generator (data/splice.py); None: it stays as it is.
    """

    def __init__(
        self,
        examples: list[Example],
        order: BatchOrder,
        features: FeatureCache,
        workers: int = 0,
        teacher: FeatureCache | None = None,
        change: Change | None = None,
    ) -> None:
        self.examples, self.order, self.features, self.workers = examples, order, features, workers
        self.teacher, self.change = teacher, change

    def __getitem__(self, item: tuple[Position, list[int]]) -> Batch:
        position, indices = item
        examples = [self.examples[i] for i in indices]
        # A function of the seed and the place in the stream: the same after a resume and in any loader process.
        random = np.random.default_rng((self.order.seed, *position))
        read = [draw(example.labellings, random).read() for example in examples]
        batch = collate([example.cut for example in examples], read, self.features, self.teacher)
        if self.change is not None:
            batch = self.change(batch, random)
        batch.position = position
        return batch

    def stream(self, start: Position, device: torch.device = CPU) -> Iterator[Batch]:
        """Batches without end from a position, loaded by worker processes if there are any; in pinned memory for a GPU.

        They are in main memory all the same: `Batch.to` takes one to the device.
        """
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=self.order.stream(start),
            num_workers=self.workers,
            # Examples hold closures and a memory map, which other ways of starting a process would have to pickle.
            multiprocessing_context="fork" if self.workers else None,
            pin_memory=device.type == "cuda",
        )
        return iter(loader)


def draw(labellings: tuple[Labelling, ...], random: np.random.Generator) -> Labelling:
    """One of the labellings, with its weight as probability."""
    if len(labellings) == 1:
        return labellings[0]
    reached = np.cumsum([labelling.weight for labelling in labellings])
    return labellings[int(np.searchsorted(reached[:-1], random.random() * reached[-1], side="right"))]


def collate(
    cuts: list[MonoCut],
    read: list[Supervision],
    features: Callable[[MonoCut], Tensor],
    teacher: Callable[[MonoCut], Tensor] | None = None,
) -> Batch:
    """Load, pad and stack utterances with their supervisions; `features` and `teacher` as in TrainingBatches."""
    inputs = [features(cut) for cut in cuts]
    labels = [torch.tensor(supervision.labels, dtype=torch.long) for supervision in read]
    targets = [supervision.targets for supervision in read]
    frames = [-1 if target is None else int(target.t_N[-1]) + 1 for target in targets]
    totals = [math.nan if supervision.total_logp is None else supervision.total_logp for supervision in read]
    outputs = [teacher(cut) for cut in cuts] if teacher else None
    return Batch(
        utt_ids=[cut.id for cut in cuts],
        features_BFC=pad_sequence(inputs, batch_first=True),
        lengths_B=torch.tensor([len(x) for x in inputs]),
        labels_BU=pad_sequence(labels, batch_first=True),
        label_lengths_B=torch.tensor([len(y) for y in labels]),
        targets=_join_targets(targets),
        teacher_frames_B=torch.tensor([len(h) for h in outputs] if outputs else frames),
        seconds=sum(cut.duration for cut in cuts),
        teacher_totals_B=None if all(map(math.isnan, totals)) else torch.tensor(totals),
        teacher_BTJ=pad_sequence(outputs, batch_first=True) if outputs else None,
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
    if cut.duration > LONGEST_S:
        raise ValueError(
            f"utterance {cut.id} lasts {cut.duration:.0f} s, but paths are stored for at most {LONGEST_S:.0f} s: cut it"
        )
    waveform_S = load_waveform(cut)
    try:
        return extract(waveform_S)
    except ValueError as error:
        raise ValueError(f"utterance {cut.id}: {error}") from error


def load_waveform(cut: MonoCut) -> Tensor:
    """Samples (S,) of a cut, in [-1, 1]; raises ValueError naming the cut and its file when it cannot be read."""
    from lhotse.audio.backend import audio_backend

    try:
        # libsndfile reads all formats here, NIST sph among them, for which lhotse would call a program of its own.
        with audio_backend("LibsndfileBackend"):
            waveform_S = torch.from_numpy(cut.load_audio()[0])
    except Exception as error:  # lhotse wraps every backend's errors in its own types
        raise ValueError(f"utterance {cut.id}: cannot read {_source(cut)} ({error})") from error
    if not waveform_S.isfinite().all():
        raise ValueError(f"utterance {cut.id}: {_source(cut)} has samples that are no numbers: leave it out")
    return waveform_S


def _source(cut: MonoCut) -> str:
    return str(cut.recording.sources[0].source) if cut.recording else "no recording"


def _join_targets(targets: list[NodeTargets | None]) -> NodeTargets | None:
    present = [(i, target) for i, target in enumerate(targets) if target is not None]
    if not present:
        return None
    return joined_targets([replace(target, utterance_N=torch.full((len(target),), i)) for i, target in present])


def _repeat(members: np.ndarray, times: float, random: np.random.Generator) -> np.ndarray:
    whole = int(times)
    rest = random.permutation(members)[: round((times - whole) * len(members))]
    return np.concatenate([np.tile(members, whole), rest])
