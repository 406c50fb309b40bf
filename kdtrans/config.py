"""The configuration: every key, its default, its unit and its limits, in one place.

`config.yaml` at the top of the repository spells out the same defaults for reading; a test holds the two equal.
A section is one pydantic model. A rule hands a stage only the sections it depends on, so that a changed key reruns what
depends on it and nothing else. No torch here: the workflow, scoring and reporting import this module.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1, le=10**9)]
NotNegative = Annotated[int, Field(ge=0, le=10**9)]
Size = Annotated[int, Field(ge=1, le=2**16)]  # of a layer: beyond, a typing error would end in a want of memory
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy and torch both take
Seconds = Annotated[float, Field(gt=0)]
Minutes = Annotated[float, Field(ge=0)]
Policy = Literal["fail", "drop"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=100)]  # of folders, with more behind it


def _path(value: str) -> str:
    """A path as rules join it: without `./`, doubled or trailing slashes.

    Commands are quoted and Snakemake matches names literally, so spaces, quotes, `$`, `;`, `*` and letters of any
    script pass. Refused is what one of the tools on the way takes for something else.

    Raises:
        ValueError: naming what cannot stand in a path.
    """
    if bad := re.search(r"[{}<>]", value):
        raise ValueError(f"{value!r}: Snakemake reads {bad[0]} as the sign of a pattern: take another name, or a link")
    if bad := re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", value):
        raise ValueError(f"{value!r}: {bad[0]!r} breaks lines of logs and lists: take another name, or a link")
    if value != value.strip() or not value:
        raise ValueError(f"{value!r} is empty, or starts or ends with a space: take another name, or a link")
    path = str(PurePath(value))
    if path.startswith("-"):
        raise ValueError(f"{value!r} would pass for an option of a command: take another name, or the absolute path")
    if path.startswith("~"):
        raise ValueError(f"{value!r}: ~ is not expanded here: write ${{HOME}}, or the absolute path")
    return path


PathName = Annotated[str, AfterValidator(_path)]
FRAME_MS = 40  # of every encoder; contracts.FRAME_SHIFT_MS is the same
FramesMs = Annotated[int, Field(ge=FRAME_MS, le=600_000, multiple_of=FRAME_MS)]
MOST_VALUES, DEEPEST = 10_000, 32  # of a configuration: aliases in YAML make a few lines into more than memory holds
MOST_RUNS = 1000  # of a system's sweep
NO_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")  # cannot be in a path, or not in UTF-8


# What `snakemake NAME` means already; a system is such a name too.
TARGET_NAMES = {
    *("all", "prepare", "teacher", "targets", "student", "decode", "score", "report", "sweep"),
    *("synth", "download", "prepare_corpus", "tokenizer", "check", "lm", "lstm_lm", "train_teacher", "gate", "dump"),
    *("verify", "train_student", "tune_lm", "decode_testset", "rescore", "score_testset", "align", "choose"),
}


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the keys and says what to do."""


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values do not change after loading and are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads on, yes and true as switches, and Python takes a switch for a number."""
        is_switch = info.field_name is not None and cls.model_fields[info.field_name].annotation is bool
        if isinstance(value, bool) and not is_switch:
            raise ValueError(f"{value} is a switch (YAML: true, on, yes, false, off, no), which this key is not")
        return value


SectionT = TypeVar("SectionT", bound=Section)


def _without_nulls(entries: Any) -> Any:
    """Null takes an entry away: a preset is laid over config.yaml key by key, so it cannot just leave one out."""
    if not isinstance(entries, dict):
        return entries
    return {name: entry for name, entry in entries.items() if entry is not None}


# ---------------------------------------------------------------------------------------------------------------- data
class SynthConfig(Section):
    """The embedded corpus: sentences of a small grammar, read by seeded espeak-ng voices."""

    seed: Seed = 1
    voices: Annotated[int, Field(ge=8, le=1000)] = 72
    """Number of speakers; no speaker is in two splits."""
    labelled_min: Minutes = 10.0
    """Minutes of labelled training speech."""
    unlabelled_min: Minutes = 50.0
    """Minutes of unlabelled training speech."""
    dev_min: Minutes = 3.0
    """Minutes of development speech."""
    test_min: Minutes = 6.0
    """Minutes of test speech."""
    noise_snr_db: tuple[float, float] = (20.0, 40.0)
    """Range of the signal-to-noise ratio of the noise that is mixed in, dB."""
    lm_sentences: NotNegative = 4000
    """Sentences of the grammar, read by nobody, written for the language model."""

    @field_validator("noise_snr_db")
    @classmethod
    def _rises(cls, snr_db: tuple[float, float]) -> tuple[float, float]:
        if snr_db[0] > snr_db[1]:
            raise ValueError(f"noise_snr_db {list(snr_db)} is no range: name the lower one first")
        return snr_db


class SplitConfig(Section):
    """Splits the corpus's labelled training part by speaker, seeded."""

    seed: Seed = 1
    dev_fraction: Fraction = 0.0
    """Fraction of the speakers kept apart as a development set."""
    labelled_fraction: Fraction = 1.0
    """Fraction of the speakers whose text is kept; the others that are not in dev become unlabelled."""

    @model_validator(mode="after")
    def _fits(self) -> SplitConfig:
        if self.dev_fraction + self.labelled_fraction > 1.0 and self.dev_fraction > 0:
            raise ValueError(
                f"dev_fraction {self.dev_fraction} + labelled_fraction {self.labelled_fraction} exceeds 1: "
                "lower one of them"
            )
        return self


class ChecksConfig(Section):
    """What happens to a bad utterance: `fail` names it and stops, `drop` leaves it out and counts it in the report."""

    unreadable_audio: Policy = "fail"
    empty_audio: Policy = "drop"
    duplicate_id: Policy = "fail"
    empty_text: Policy = "drop"
    unknown_characters: Policy = "drop"
    """Text with characters that the tokenizer lacks."""
    too_short_for_labels: Policy = "drop"
    """Fewer 40 ms frames than labels."""
    out_of_duration: Policy = "drop"
    """Outside min_duration_s .. max_duration_s."""


class CorpusConfig(Section):
    """Where speech comes from and which of the corpus's own parts play which role."""

    name: Literal["synth", "librispeech", "an4", "kaldi", "folder"] = "synth"
    root: PathName | None = None
    """Folder of the corpus; null: made (synth) or downloaded (librispeech) below results. `${VAR}` is replaced."""
    labelled: list[PathName] = ["train-labelled"]
    """The corpus's parts used as labelled training data."""
    unlabelled: list[PathName] = ["train-unlabelled"]
    """The corpus's parts used as unlabelled training data; their text, if any, is set apart."""
    dev: list[PathName] = ["dev"]
    """The corpus's parts used for development; may be empty if split.dev_fraction > 0."""
    test: dict[Name, list[PathName]] = {"test": ["test"]}
    """Test sets: name -> the corpus's parts; null takes one away."""
    split: SplitConfig = SplitConfig()
    checks: ChecksConfig = ChecksConfig()
    min_duration_s: Seconds = 0.3
    max_duration_s: Seconds = 20.0
    speeds: Annotated[list[Annotated[float, Field(ge=0.5, le=2.0)]], Field(min_length=1)] = [1.0]
    """Training audio is played at each of these speeds: utterances of their own, with targets of their own."""
    num_shards: Annotated[int, Field(ge=1, le=100_000)] = 2
    """Manifest shards of the training split; the target shards are one to one with them."""
    synth: SynthConfig = SynthConfig()

    @field_validator("root", mode="before")
    @classmethod
    def _unset(cls, root: Any) -> Any:
        """A preset says `${VAR}`; the variable may be empty, which is like null."""
        return None if root == "" else root

    _test = field_validator("test", mode="before", json_schema_input_type=dict[Name, list[PathName] | None])(
        _without_nulls
    )

    @model_validator(mode="after")
    def _roles(self) -> CorpusConfig:
        if not self.dev and self.split.dev_fraction == 0:
            raise ValueError("corpus.dev is empty and corpus.split.dev_fraction is 0: give one of them")
        for taken in {"train", "dev", "train-labelled", "train-unlabelled"} & set(self.test):
            raise ValueError(f"corpus.test: a test set may not be called '{taken}'")
        if self.min_duration_s >= self.max_duration_s:
            raise ValueError(
                f"min_duration_s {self.min_duration_s:g} is not below max_duration_s {self.max_duration_s:g}"
            )
        if len({f"{speed:g}" for speed in self.speeds}) < len(self.speeds):
            raise ValueError(f"corpus.speeds {self.speeds} has a speed twice: ids would not be unique")
        return self


class TokenizerConfig(Section):
    type: Literal["unigram", "char"] = "char"
    vocab_size: Annotated[int, Field(ge=4, le=65535)] = 256
    """Pieces with blank (id 0) and unknown (id 1); `char` takes what the text holds."""
    model: PathName | None = None
    """An existing sentencepiece model to use instead of training one; its id 0 must be blank."""


class LstmLmConfig(Section):
    """A small LSTM language model over tokens, made where a search has `lm: lstm`."""

    dim: Size = 128
    layers: Size = 1
    dropout: Fraction = 0.2
    updates: Positive = 1000
    batch: Positive = 64
    """Sentences in a batch."""
    lr: Annotated[float, Field(gt=0)] = 3.0e-3
    """Peak learning rate; it falls to nought linearly."""
    seed: Seed = 1


class LmConfig(Section):
    """Token language models: an n-gram with modified Kneser-Ney smoothing, and an LSTM on the same text."""

    order: Annotated[int, Field(ge=1, le=8)] = 4
    """Of the n-gram."""
    transcripts: bool = True
    """Train on the labelled transcripts."""
    texts: list[PathName] = []
    """Further text files, a sentence a line; `synth` adds its own."""
    arpa: PathName | None = None
    """An existing token ARPA file to use instead of estimating one."""
    lstm: LstmLmConfig = LstmLmConfig()


# -------------------------------------------------------------------------------------------------------------- models
class PredictorConfig(Section):
    type: Literal["lstm", "stateless"] = "lstm"
    dim: Size = 128
    layers: Size = 1
    """LSTM layers."""
    context: Size = 2
    """Labels seen by a stateless predictor."""
    dropout: Fraction = 0.1


class StreamingConfig(Section):
    """Causal convolutions and attention in chunks: a frame sees its chunk and a limited left context."""

    chunk_ms: FramesMs = 640
    """Chunk with which the student is evaluated and decoded, unless a search names another."""
    train_chunks_ms: list[FramesMs] = [320, 640, 1280]
    """One of these is drawn for each batch (dynamic chunk training)."""
    left_context_ms: FramesMs = 2560
    """How far attention looks back before its chunk."""
    tail_ms: Annotated[int, Field(ge=0, multiple_of=FRAME_MS)] = 0
    """Silence put behind every utterance, for students with kd.shift, whose last labels would fall off the end; without
    a path to follow, it only invites a student to be late."""

    @field_validator("train_chunks_ms")
    @classmethod
    def _some(cls, chunks: list[int]) -> list[int]:
        if not chunks:
            raise ValueError("train_chunks_ms is empty: name at least one chunk size")
        return chunks


class ConformerConfig(Section):
    """Conformer with 4x convolutional subsampling (10 -> 40 ms) and rotary relative positions."""

    dim: Size = 96
    layers: Size = 3
    heads: Size = 4
    ffn_dim: Size = 256
    conv_kernel: Size = 15
    """Width of the depthwise convolution, frames of 40 ms; odd."""
    subsampling_channels: Size = 16
    dropout: Fraction = 0.05
    frequency_warp: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Widest random change of the frequency axis in training (VTLP), as a fraction; 0: none."""
    equalizer_db: Annotated[float, Field(ge=0, le=30)] = 0.0
    """Widest random gain of a frequency in training, dB; 0: none."""
    streaming: StreamingConfig | None = None
    """null: the whole utterance is seen at once; {}: a streaming encoder with the defaults."""

    @model_validator(mode="after")
    def _shape(self) -> ConformerConfig:
        if self.dim % (2 * self.heads):
            raise ValueError(f"dim {self.dim} must be a multiple of 2 x heads ({self.heads}) for rotary positions")
        if self.conv_kernel % 2 == 0:
            raise ValueError(f"conv_kernel {self.conv_kernel} must be odd")
        return self


class MaskingConfig(Section):
    """SpecAugment without time warp (which would break the teacher's path)."""

    time_masks: NotNegative = 1
    """Time masks an utterance, for each 4 s of it."""
    time_width_ms: NotNegative = 200
    """Widest time mask, ms."""
    channel_masks: NotNegative = 1
    channel_width: Fraction = 0.2
    """Widest channel mask, as a fraction of the channels."""


class RandomEncoderConfig(Section):
    """A small untrained wav2vec 2.0 encoder, for tests: encoder: random."""

    dim: Size = 64
    layers: Size = 2
    heads: Size = 2
    ffn_dim: Size = 128
    conv_dim: Size = 64


# ------------------------------------------------------------------------------------------------------------ training
class TrainingConfig(Section):
    """What teacher and student training share."""

    seed: Seed = 1
    updates: Positive = 2000
    max_duration_s: Seconds = 60.0
    """Padded seconds of audio in a batch."""
    accumulate: Positive = 1
    """Batches an update."""
    word_share: Fraction = 0.0
    """Labelled utterances with rare words are repeated until each word is visited as often as one that is in this share
    of them; 0: they are not."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: for the encoder's matrices, AdamW for the rest; learns faster from scratch, AdamW is for fine-tuning."""
    lr: Annotated[float, Field(gt=0)] = 2.0e-3
    """Peak learning rate."""
    encoder_lr_scale: Annotated[float, Field(gt=0)] = 1.0
    """The encoder's learning rate as a multiple of lr (a pre-trained encoder wants less than a new joiner)."""
    phases: tuple[Fraction, Fraction, Fraction] = (0.1, 0.4, 0.5)
    """Tri-stage schedule: fractions of the updates that warm up linearly, hold, and decay exponentially."""
    final_lr_scale: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Learning rate at the end, as a multiple of lr."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Annotated[float, Field(gt=0)] = 5.0
    ema_decay: Fraction = 0.995
    """Decay of the running average of the weights; the average is what is evaluated and kept."""
    loss: Literal["fused", "full", "banded", "pruned"] = "fused"
    """Transducer loss: fused joins the grid in parts; full at once, the same but for rounding, for tests and backends;
    banded sums over paths near the teacher's only, where there is one; pruned where a simple joiner has its mass."""
    backend: Literal["native", "k2", "torchaudio"] = "native"
    """Whose transducer loss it is; others than native need loss: full, k2 that or pruned, and to be installed."""
    band_width: Positive = 5
    """banded, pruned: least nodes of a frame."""
    band_margin: NotNegative = 4
    """banded: frames of 40 ms by which a label may be emitted earlier or later than on the path, shifted by tau."""
    simple_weight: Annotated[float, Field(gt=0)] = 0.5
    """pruned: weight of the simple joiner's own loss."""
    pruned_warmup: Fraction = 0.1
    """pruned: share of the updates in which the simple joiner learns first: the weights go from 1 to simple_weight for
    its loss, from 0.1 to 1 for the other."""
    ctc_weight: Annotated[float, Field(ge=0)] = 0.2
    """Weight of an auxiliary CTC loss on the encoder; 0 turns it off."""
    fastemit: Annotated[float, Field(ge=0)] = 0.0
    """FastEmit: the gradient of label arcs is multiplied by 1 + this, so that labels are emitted earlier."""
    delay_penalty: Annotated[float, Field(ge=0)] = 0.0
    """Nats a frame by which the lattice prefers earlier labels."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where it pays (wide encoders on GPUs and on CPUs with AMX); lattices are always fp64."""
    evaluate_every: Positive = 500
    """Updates between greedy decodings of dev; the average with the lowest dev WER is kept, of equal ones the
    one with the lowest loss."""
    checkpoint_every: Positive = 250
    log_every: Positive = 25
    workers: Annotated[int, Field(ge=0, le=256)] = 0
    """Processes that load audio; 0: in the training process."""
    cache_gb: Annotated[float, Field(ge=0)] = 2.0
    """Memory for features kept between epochs, GB."""

    @model_validator(mode="after")
    def _phases_sum(self) -> TrainingConfig:
        if abs(sum(self.phases) - 1.0) > 1e-6:
            raise ValueError(f"phases {self.phases} sum to {sum(self.phases):g}, not 1")
        return self

    @model_validator(mode="after")
    def _backend_can(self) -> TrainingConfig:
        losses = {"k2": ("full", "pruned"), "torchaudio": ("full",)}.get(self.backend, (self.loss,))
        if self.loss not in losses:
            raise ValueError(f"backend: {self.backend} needs loss: {' or '.join(losses)}, not {self.loss}")
        lacking = {"native": (), "k2": ("fastemit",), "torchaudio": ("fastemit", "delay_penalty")}[self.backend]
        for name in lacking:
            if getattr(self, name):
                raise ValueError(
                    f"{name} is {getattr(self, name):g}, which backend: {self.backend} has not: set it to 0"
                )
        return self


# Settings of training that change no number of the trained weights: speed and logging. Nor does how the loss over all
# paths is computed, but for rounding; over some of them it is another loss, and what describes it counts.
NO_IDENTITY = {"log_every", "checkpoint_every", "workers", "cache_gb"}
OF_LOSS = {"loss", "backend", "band_width", "band_margin", "simple_weight", "pruned_warmup"}
NOT_OF_IT = {"banded": {"backend", "simple_weight", "pruned_warmup"}, "pruned": {"band_margin"}}


def training_identity(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a teacher or student, as JSON values, that change a number of the trained weights.

    The others are those of speed and logging, and the teacher's gate.
    """
    training = settings["training"]
    left_out = NO_IDENTITY | NOT_OF_IT.get(training["loss"], OF_LOSS)
    kept = {key: value for key, value in training.items() if key not in left_out}
    return {key: value for key, value in settings.items() if key != "max_wer"} | {"training": kept}


class TeacherConfig(Section):
    encoder: str = "assets/whisper-tiny.en-encoder"
    """A folder or hub name for transformers (Wav2Vec2, HuBERT, WavLM, Whisper), `torchaudio:BUNDLE`, or `random`."""
    random: RandomEncoderConfig = RandomEncoderConfig()
    pooling: Literal["average", "concat"] = "average"
    """How two 20 ms frames become one of 40 ms."""
    predictor: PredictorConfig = PredictorConfig(dim=256)
    joiner_dim: Size = 256
    masking: MaskingConfig = MaskingConfig()
    freeze_updates: NotNegative = 40
    """Updates for which the whole encoder is frozen."""
    freeze_extractor: bool = True
    """Keep the convolutional feature extractor frozen throughout."""
    gradient_checkpointing: bool = False
    training: TrainingConfig = TrainingConfig(
        updates=360,
        lr=1.0e-3,
        encoder_lr_scale=0.2,
        max_duration_s=20.0,
        ctc_weight=0.3,
        ema_decay=0.98,
        evaluate_every=180,
    )
    max_wer: Annotated[float, Field(ge=0)] = 30.0
    """Gate: a dev WER above this, %, stops the workflow before anything is dumped."""


class KdConfig(Section):
    """Distillation loss; weight 0 turns it off and then no target is read for labelled data."""

    loss: Literal["one_best", "collapsed", "full_lattice", "full_sum"] = "one_best"
    """one_best: the paper's. collapsed and full_lattice run the teacher beside the student: small data only."""
    weight: Annotated[float, Field(ge=0)] = 0.0
    """Lambda of L = L_transducer + lambda L_kd."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    reduction: Literal["sum", "node"] = "sum"
    """sum: over the nodes, mean over utterances (the paper); node: mean over all nodes."""
    node_weight: Literal["one", "nonblank"] = "one"
    """Weight of a node: 1 (the paper), or 1 - P_teacher(blank)."""
    shift: NotNegative | Literal["auto"] = 0
    """tau: frames of 40 ms by which the student may lag behind the teacher; auto: measured before distillation."""
    shift_phase: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of the updates at the start, without distillation, in which shift: auto measures."""
    window: NotNegative = 0
    """A node's loss is the least over the shifts tau - window .. tau + window."""
    encoder_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the distance between the encoders' outputs, for which the teacher runs beside the student; 0: none."""

    @property
    def reads_shards(self) -> bool:
        """Whether the loss needs the dumped targets of labelled audio too."""
        return self.weight > 0 and self.loss in ("one_best", "full_sum")

    @property
    def distils_paths(self) -> bool:
        """Whether the loss is one over the nodes of the teacher's paths."""
        return self.weight > 0 and self.loss == "one_best"

    @property
    def runs_teacher(self) -> bool:
        """Whether training needs what no shard holds: the teacher at every node of the grid, or its encoder."""
        return self.encoder_weight > 0 or self.compares_grids

    @property
    def why_teacher(self) -> str:
        """The setting for which the teacher runs, as messages name it."""
        return f"kd.loss {self.loss}" if self.compares_grids else "kd.encoder_weight"

    @property
    def compares_grids(self) -> bool:
        """Whether the loss needs the teacher at every node of the grid."""
        return self.weight > 0 and self.loss in ("collapsed", "full_lattice")

    @model_validator(mode="after")
    def _fits(self) -> KdConfig:
        paths_only = {"shift": 0, "window": 0}
        changed = [name for name, default in paths_only.items() if getattr(self, name) != default]
        if self.loss != "one_best" and changed:
            raise ValueError(f"kd.{changed[0]} moves the nodes of a path: it needs kd.loss: one_best, not {self.loss}")
        of_nodes = {"temperature": 1.0, "reduction": "sum", "node_weight": "one"}
        changed = [name for name, default in of_nodes.items() if getattr(self, name) != default]
        if self.loss == "full_sum" and changed:
            raise ValueError(f"kd.{changed[0]} is about nodes, but kd.loss: full_sum compares whole utterances")
        if self.shift == "auto" and self.encoder_weight and not self.weight:
            raise ValueError("kd.shift: auto is measured along the teacher's paths: set kd.weight, or name the shift")
        return self


class FilterConfig(Section):
    """Which pseudo-labelled utterances a student trains on; read with the targets, so that no change dumps anew."""

    min_confidence: Fraction = 0.0
    """Least posterior of the path among the paths of its labels."""
    min_frames_per_label: Annotated[float, Field(ge=0)] = 1.0
    """Fewest frames of 40 ms for each label."""
    max_repetition: Fraction = 1.0
    """Largest share of labels that repeat the one before."""
    max_length_ratio: Annotated[float, Field(gt=1)] | None = None
    """Largest factor between an utterance's labels a second and the labelled speech's, up or down; null: any."""


class StudentConfig(Section):
    encoder: ConformerConfig = ConformerConfig()
    predictor: PredictorConfig = PredictorConfig(type="stateless", dim=96)
    joiner_dim: Size = 96
    masking: MaskingConfig = MaskingConfig()
    splice: Fraction = 0.0
    """Share of the pairs of utterances in a batch that exchange their ends between two words of the teacher's paths;
    such a system reads targets, distilled or not."""
    unlabelled: bool = False
    """Train on unlabelled audio too, with the teacher's pseudo text."""
    unlabelled_ratio: Annotated[float, Field(gt=0)] | None = None
    """Hours of unlabelled audio for each labelled hour in the stream of batches; null: as the corpus has it."""
    targets: Name = "teacher"
    """The target set that it learns from."""
    filters: FilterConfig = FilterConfig()
    kd: KdConfig = KdConfig()
    seeds: Annotated[list[Seed], Field(min_length=1)] | None = None
    """A run for each; the table shows their mean and spread. null: one run, with training.seed."""
    training: TrainingConfig = TrainingConfig(
        optimizer="muon",
        updates=1000,
        lr=5.0e-3,
        max_duration_s=10.0,
        ctc_weight=0.5,
        ema_decay=0.99,
        evaluate_every=500,
    )

    @model_validator(mode="after")
    def _splices_what_targets_have(self) -> StudentConfig:
        if self.splice and self.kd.weight and self.kd.loss == "full_sum":
            raise ValueError(
                f"splice {self.splice:g} makes utterances whose sum over all paths no target has, but kd.loss: "
                "full_sum compares with it: take another loss, or no splice"
            )
        return self

    @property
    def reads_targets(self) -> bool:
        """Whether training reads the teacher's target shards."""
        return self.unlabelled or self.reads_labelled_targets

    @property
    def reads_labelled_targets(self) -> bool:
        """Whether it needs those of labelled audio too."""
        return self.kd.reads_shards or self.splice > 0

    @property
    def reads_nodes(self) -> bool:
        """Whether it needs the nodes of their paths, not their labels alone."""
        return self.splice > 0 or self.kd.distils_paths


# ------------------------------------------------------------------------------------------------ targets and decoding
class SearchConfig(Section):
    """One way of decoding."""

    type: Literal["greedy", "beam", "fsa"] = "greedy"
    """fsa: k2's search, one symbol a frame, for systems with a stateless predictor."""
    beam: Annotated[int, Field(ge=1, le=255)] = 4
    """Hypotheses kept an utterance; fsa: contexts of the predictor, and hypotheses returned."""
    lm: Literal["ngram", "lstm"] | None = None
    """Shallow fusion with this language model; its weight is tuned on dev."""
    ilm_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the transducer's internal language model, which is subtracted; needs lm."""
    density_ratio: Annotated[float, Field(ge=0)] = 0.0
    """How much of an n-gram of the training transcripts is taken out of each score of lm, which it needs."""
    rescore: Name | None = None
    """Nothing is searched: the hypotheses of this search are ranked anew, with lm in place of its language model."""
    threshold: Annotated[float, Field(gt=0)] | None = 6.0
    """No label is tried that leaves a hypothesis this many nats below the best one; null: all are. Not for greedy."""
    max_symbols: Positive = 5
    """Most labels on one frame."""
    chunk_ms: FramesMs | None = None
    """Chunk size for streaming systems, and for no others; null: each system's own."""

    @model_validator(mode="after")
    def _lm_needs_beam(self) -> SearchConfig:
        if self.lm and self.type == "greedy":
            raise ValueError(f"lm: {self.lm} needs type: beam, or fsa for an n-gram")
        if self.type == "fsa":
            self._check_fsa()
        if self.ilm_weight and (not self.lm or self.rescore):
            raise ValueError(f"ilm_weight: {self.ilm_weight:g} needs a search with lm: it makes room for that one")
        if self.density_ratio and not self.lm:
            raise ValueError(f"density_ratio: {self.density_ratio:g} needs lm: it is taken out of its scores")
        if self.rescore and not self.lm:
            raise ValueError(f"rescore: {self.rescore} needs lm: the language model to rescore with")
        return self

    def _check_fsa(self) -> None:
        """Raise ValueError for what k2's search has not."""
        if self.lm == "lstm":
            raise ValueError("lm: lstm cannot be made a graph, as type: fsa needs it: take lm: ngram, or type: beam")
        for name in ("ilm_weight", "density_ratio", "rescore"):
            if value := getattr(self, name):
                raise ValueError(f"{name}: {value} needs type: beam, type: fsa has no such thing")


class TargetsConfig(Section):
    teachers: Annotated[list[PathName], Field(min_length=1)] = ["teacher"]
    """Who makes them: `teacher`, names of `teachers`, or files model.pt with the same tokenizer; of several the mean of
    their distributions is searched and stored."""
    along: Name | None = None
    """Another target set, whose paths this one follows; nothing is searched."""
    top_k: Annotated[int, Field(ge=1, le=65535)] = 8
    """Most classes whose log-probability is stored at each node; the rest is one tail class."""
    min_probability: Fraction = 1.0e-4
    """Classes less probable than this are left to the tail; the most probable one always stays."""
    logp_step: Annotated[float, Field(ge=0, le=0.25)] = 0.0625
    """Log-probabilities but a node's first are rounded down to multiples of this, nats; 0: not rounded."""
    search: SearchConfig = SearchConfig()
    """Search that makes paths and pseudo text for unlabelled audio."""
    unlabelled_path: Literal["search", "viterbi"] = "search"
    """The path of pseudo text: the one that the search took, or the best one that spells it."""
    nbest: Positive = 1
    """Hypotheses kept of an unlabelled utterance, weighted by their posterior; needs as wide a beam."""
    lm_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the language model in that search and in the distributions stored at label nodes; needs search.lm."""
    frame_offset: Annotated[int, Field(ge=0, le=2)] = 0
    """Teacher frames dropped at the start, when the teacher has more 40 ms frames than the student."""
    max_duration_s: Seconds = 60.0
    """Padded seconds of audio in a batch."""

    @field_validator("teachers")
    @classmethod
    def _distinct(cls, teachers: list[str]) -> list[str]:
        if len(set(teachers)) < len(teachers):
            raise ValueError(f"{teachers} names a teacher twice")
        return teachers

    @model_validator(mode="after")
    def _fits(self) -> TargetsConfig:
        if self.lm_weight > 0 and not self.search.lm:
            raise ValueError("lm_weight > 0 needs a language model: set search.lm (and search.type: beam)")
        if self.search.lm and self.lm_weight == 0:
            raise ValueError(
                f"search.lm: {self.search.lm} does nothing with lm_weight 0: set lm_weight, or leave it out"
            )
        hypotheses = self.search.beam if self.search.type == "beam" else 1
        if self.nbest > hypotheses:
            raise ValueError(f"nbest {self.nbest} needs a search that keeps as many hypotheses, this one: {hypotheses}")
        if self.search.rescore:
            raise ValueError("search.rescore is for decoding: the paths of targets are those of a search, leave it out")
        if self.search.density_ratio:
            raise ValueError(
                f"search.density_ratio: {self.search.density_ratio:g} is for decoding, the distributions of targets "
                "are fused with the language model alone: leave it out"
            )
        if self.search.type == "fsa":
            raise ValueError(
                "search.type: fsa is for decoding: it has one symbol a frame, but the paths of targets are those that "
                "students learn, with any number of labels on a frame: take beam"
            )
        if self.search.chunk_ms is not None:
            raise ValueError("search.chunk_ms is for streaming students, the teacher is none: leave it out")
        return self


class DecodeConfig(Section):
    searches: dict[Name, SearchConfig] = {
        "greedy": SearchConfig(),
        "beam_lm": SearchConfig(type="beam", lm="ngram"),
    }
    """Searches: name -> how it decodes; null takes one away."""
    lm_weights: list[Annotated[float, Field(ge=0)]] = [0.0, 0.2, 0.4]
    """Weights tried on dev for each system; the best is frozen for the test sets."""
    max_duration_s: Seconds = 120.0
    """Padded seconds of audio in a batch."""

    _searches = field_validator("searches", mode="before", json_schema_input_type=dict[Name, SearchConfig | None])(
        _without_nulls
    )

    @model_validator(mode="after")
    def _searches_are_there(self) -> DecodeConfig:
        if not self.searches:
            raise ValueError("decode.searches is empty: name at least one")
        if not self.lm_weights and any(search.lm for search in self.searches.values()):
            raise ValueError("decode.lm_weights is empty, but a search has lm: name weights to try")
        return self

    @model_validator(mode="after")
    def _rescored_are_there(self) -> DecodeConfig:
        for name, search in self.searches.items():
            if search.rescore is None:
                continue
            first = self.searches.get(search.rescore)
            if first is None or first.type == "greedy" or first.rescore:
                raise ValueError(f"searches.{name}.rescore: '{search.rescore}' is no search of type beam or fsa")
            if first.chunk_ms != search.chunk_ms:
                raise ValueError(f"searches.{name}: rescore: {search.rescore} has another chunk_ms, give the same")
        return self


class ReportConfig(Section):
    title: str = "Distilling a large transducer into a small one"
    baseline: Name = "baseline"
    """The system that relative reductions are computed against."""
    control: Name = "hard"
    """A second system to compare with, where there is one of this name: pseudo labels without distillation."""
    finished_only: bool = False
    """Report what is finished instead of making what is not."""


class Run(NamedTuple):
    """One training of a student: a system, or one of its seeds."""

    system: str
    config: StudentConfig


class Config(Section):
    """The whole of config.yaml."""

    results: PathName = "results"
    """Folder of everything that is generated."""
    corpus: CorpusConfig = CorpusConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    lm: LmConfig = LmConfig()
    teacher: TeacherConfig = TeacherConfig()
    """The teacher, which every system is compared with."""
    teachers: dict[Name, dict[str, Any]] = {}
    """Further teachers, for target sets: name -> what differs from `teacher`; null takes one away."""
    targets: TargetsConfig = TargetsConfig()
    """What all target sets share."""
    target_sets: dict[Name, dict[str, Any]] = {"teacher": {}}
    """Target sets: name -> what differs from `targets`; null takes one away. Those that a system reads are made."""
    student: StudentConfig = StudentConfig()
    """What all student systems share."""
    systems: dict[Name, dict[str, Any]] = {
        "baseline": {},
        "hard": {"unlabelled": True},
        "kd": {"kd": {"weight": 1.0}},
        "kd_unlabelled": {"unlabelled": True, "kd": {"weight": 1.0}},
    }
    """Student systems: name -> what differs from `student`; null takes one away."""
    sweep: dict[Name, dict[str, Annotated[list[Any], Field(min_length=1)]]] = {}
    """`snakemake sweep`: system -> keys of `student` -> values; a run for each combination, chosen between on dev."""
    decode: DecodeConfig = DecodeConfig()
    report: ReportConfig = ReportConfig()

    @field_validator("results")
    @classmethod
    def _folder_of_its_own(cls, results: str) -> str:
        if results == ".":
            raise ValueError("the working directory itself: name a folder in it, or an absolute path")
        return results

    _named = field_validator(
        "systems", "teachers", "target_sets", mode="before", json_schema_input_type=dict[Name, dict[str, Any] | None]
    )(_without_nulls)

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        for taken in TARGET_NAMES & set(self.systems):
            raise ValueError(f"systems: '{taken}' is the name of a stage; choose another")
        if "teacher" in self.teachers:
            raise ValueError("teachers: 'teacher' is the name of the first one; choose another")
        for name in self.teachers:
            self.further_teacher(name)
        for name in self.target_sets:
            self._check_teachers(name)
            self._check_along(name)
        if self.report.baseline not in self.systems:
            raise ValueError(f"report.baseline '{self.report.baseline}' is none of the systems {sorted(self.systems)}")
        for name in self.sweep:
            if name not in self.systems:
                raise ValueError(f"sweep: '{name}' is none of the systems {sorted(self.systems)}")
        for source, runs in {"systems": self.runs(), "sweep": self.sweep_runs()}.items():
            for name, config in runs.values():
                self._check_searches(config, f"{source}.{name}")
                if config.reads_targets:
                    self._check_targets(config, f"{source}.{name}")
        for run in self.runs().keys() & self.sweep_runs().keys():
            raise ValueError(f"sweep: a run would be called '{run}', as one of systems is: rename the system")
        return self

    def _check_teachers(self, name: str) -> None:
        """Raise ValueError unless a target set's teachers are the configuration's, or files."""
        known = ["teacher", *self.teachers]
        for teacher in self.target_set(name).teachers:
            if teacher not in known and re.fullmatch(r"[\w-]+", teacher):
                raise ValueError(
                    f"target_sets.{name}: teacher '{teacher}' is none of {known}: name one of them, or a model.pt"
                )

    def _check_along(self, name: str) -> None:
        """Raise ValueError unless a target set has paths of its own, or follows a set that has."""
        along = self.target_set(name).along
        others = sorted(self.target_sets.keys() - {name})
        if along is not None and along not in others:
            raise ValueError(f"target_sets.{name}: along '{along}' is none of the other target_sets {others}")
        if along is not None and (followed := self.target_set(along).along):
            raise ValueError(
                f"target_sets.{name}: along '{along}', which follows '{followed}' itself: name a set with its own paths"
            )

    def _check_searches(self, config: StudentConfig, source: str) -> None:
        """Raise ValueError unless all searches can decode a student."""
        for name, search in self.decode.searches.items():
            if search.type == "fsa" and config.predictor.type != "stateless":
                raise ValueError(
                    f"{source}: predictor.type is {config.predictor.type}, but decode.searches.{name}.type is fsa, "
                    "which needs a predictor that sees a few labels only: set predictor.type: stateless, or type: beam"
                )

    def _check_targets(self, config: StudentConfig, source: str) -> None:
        """Raise ValueError unless the target set that a student reads exists, and is made by a teacher that it runs."""
        if config.targets not in self.target_sets:
            raise ValueError(f"{source}: targets '{config.targets}' is none of target_sets {sorted(self.target_sets)}")
        teachers = self.target_set(config.targets).teachers
        if config.kd.runs_teacher and "teacher" not in teachers:
            raise ValueError(
                f"{source}: {config.kd.why_teacher} runs `teacher`, but targets '{config.targets}' are those of "
                f"{', '.join(teachers)}: do without it, or choose a set that `teacher` makes"
            )

    def system(self, name: str) -> StudentConfig:
        """The student configuration of one system: `student` with the system's own entries laid over it."""
        return self._laid_over(self.student, self.systems[name], f"systems.{name}")

    def further_teacher(self, name: str) -> TeacherConfig:
        """The configuration of a further teacher: `teacher` with its own entries laid over it."""
        return self._laid_over(self.teacher, self.teachers[name], f"teachers.{name}")

    def target_set(self, name: str) -> TargetsConfig:
        """The configuration of one target set: `targets` with the set's own entries laid over it."""
        return self._laid_over(self.targets, self.target_sets[name], f"target_sets.{name}")

    def runs(self) -> dict[str, Run]:
        """Every training of the configuration's systems: the system's name, or SYSTEM-seedN where it has several."""
        runs: dict[str, Run] = {}
        for name in self.systems:
            config = self.system(name)
            seeds = config.seeds or [config.training.seed]
            for seed in seeds:
                run = f"{name}-seed{seed}" if len(seeds) > 1 else name
                if run in runs:
                    raise ValueError(f"systems: two runs would be called '{run}': rename a system or a seed")
                runs[run] = Run(name, _seeded(config, seed))
        return runs

    def sweep_runs(self) -> dict[str, Run]:
        """The trainings of `sweep`: SYSTEM-KEY_VALUE-KEY_VALUE, each with one seed."""
        runs = {}
        for name, grid in self.sweep.items():
            if (count := math.prod(map(len, grid.values()))) > MOST_RUNS:
                raise ValueError(f"sweep.{name}: {count:,} combinations, at most {MOST_RUNS:,} are made: sweep less")
            for values in product(*grid.values()):
                chosen = dict(zip(grid, values, strict=True))
                run = "-".join([name, *(f"{key.rpartition('.')[2]}_{value}" for key, value in chosen.items())])
                if not re.fullmatch(r"[A-Za-z0-9._-]{1,200}", run):
                    raise ValueError(
                        f"sweep.{name}: {_shown(run)} is no name for a folder: sweep few numbers and words only"
                    )
                over = self.systems[name]
                for key, value in chosen.items():
                    over = merge(over, _nested(key, value))
                config = self._laid_over(self.student, over, f"sweep.{name}")
                runs[run] = Run(name, _seeded(config, (config.seeds or [config.training.seed])[0]))
        return runs

    def _laid_over(self, base: SectionT, over: dict[str, Any], source: str) -> SectionT:
        try:
            return type(base).model_validate(merge(base.model_dump(), over))
        except ValidationError as error:
            raise ValueError(f"{source}: {_explain(error)}") from None


def _seeded(config: StudentConfig, seed: int) -> StudentConfig:
    training = config.training.model_copy(update={"seed": seed})
    return config.model_copy(update={"seeds": None, "training": training})


def _nested(key: str, value: Any) -> dict[str, Any]:
    """`a.b`, v -> {a: {b: v}}."""
    for part in reversed(key.split(".")):
        value = {part: value}
    nested: dict[str, Any] = value
    return nested


# ------------------------------------------------------------------------------------------------------------- reading
def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Lay `over` on `base`, deeply for nested mappings; neither is changed."""
    merged = dict(base)
    for key, value in over.items():
        both_mappings = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = merge(base[key], value) if both_mappings else value
    return merged


def validate(section: type[SectionT], values: Any, source: str) -> SectionT:
    """Check values against a section.

    Args:
        section: the model to fill.
        values: a mapping as read from YAML.
        source: where the values stand, for the message.

    Raises:
        ConfigError: naming every wrong key, its value and what is allowed.
    """
    try:
        _refuse_junk(values)
        return section.model_validate(_expand(values or {}))
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explain(error)}") from None


class _Loader(yaml.SafeLoader):
    """Plain values only, and no key twice in a mapping: the later one would win without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and names[key.value] > 1:
                raise yaml.MarkedYAMLError(problem=f"the key '{key.value}' is there twice", problem_mark=key.start_mark)
        return node


def read(section: type[SectionT], path: Path | str) -> SectionT:
    """Read one YAML file as a section; raises ConfigError as `validate` does."""
    return validate(section, _read_mapping(path), str(path))


def load(files: Sequence[Path], default: Path = Path("config.yaml")) -> Config:
    """The configuration that Snakemake has with `--configfile FILES`, in the folder where it is started.

    Args:
        files: laid over the default, each over those before it.
        default: left out where it does not exist, if there are others.

    Raises:
        ConfigError: when a file is missing or not YAML, or a key is wrong.
    """
    values: dict[str, Any] = {}
    for path in [default, *files] if default.exists() or not files else files:
        if not path.exists():
            raise ConfigError(f"{path} does not exist: run this where you run snakemake, and name files by --config")
        values = merge(values, _read_mapping(path))
    return validate(Config, values, "configuration")


def _read_mapping(path: Path | str) -> dict[str, Any]:
    content = Path(path).read_bytes()
    try:
        values = _Loader(content).get_single_data()
    except Exception as error:  # PyYAML's own, and what its constructors get from dates, numbers and deep nesting
        raise ConfigError(f"{path}: not YAML that can be read: {error}") from None
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, found {type(values).__name__}")
    return values or {}


def json_schema() -> dict[str, Any]:
    """The JSON schema of config.yaml, for editors and for Snakemake's own check."""
    return Config.model_json_schema()


def _refuse_junk(values: Any) -> None:
    """Raise ConfigError for what is no configuration: too many values, too deep, in a circle, or bytes for text."""
    waiting: list[tuple[str, Any, int]] = [("", values, 0)]
    count = 0
    while waiting:
        key, value, depth = waiting.pop()
        count += 1
        if count > MOST_VALUES or depth > DEEPEST:
            raise ConfigError(f"more than {MOST_VALUES:,} values or {DEEPEST} levels of them: this is no configuration")
        if isinstance(value, str) and NO_TEXT.search(value):
            where = f"{key}: " if key else ""
            raise ConfigError(f"{where}{_shown(value)} has control characters: one breaks lines of logs, take them out")
        if isinstance(value, dict):
            waiting += [(key, name, depth + 1) for name in value]
        if isinstance(value, dict | list):
            parts = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [(f"{key}.{name}" if key else str(name), part, depth + 1) for name, part in parts]


def _expand(values: Any) -> Any:
    """Replace ${VAR} in strings by the environment's value; an unset variable is an error that names it."""
    if isinstance(values, dict):
        return {key: _expand(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_expand(value) for value in values]
    if not isinstance(values, str):
        return values

    def lookup(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise ConfigError(
                f"{_shown(values)} names the environment variable {name}, which is not set: export {name}=..."
            )
        return os.environ[name]

    return re.sub(r"\$\{(\w+)\}", lookup, values)


def _explain(error: ValidationError, most: int = 5) -> str:
    """What is wrong, in a line: the first few problems, and how many more there are."""
    lines = []
    for problem in error.errors()[:most]:
        key = _cut(".".join(str(part) for part in problem["loc"]))
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key '{key}'")
        elif problem["type"] == "value_error":
            lines.append(f"{key + ': ' if key else ''}{problem['ctx']['error']}")
        else:
            lines.append(f"{key} = {_shown(problem['input'])}: {problem['msg']}")
    more = error.error_count() - most
    return "; ".join([*lines, *([f"and {more} more"] if more > 0 else [])])


def _shown(value: Any) -> str:
    """A value as Python writes it, for a message."""
    return _cut(repr(value))


def _cut(text: str) -> str:
    """What a message has room for."""
    return text if len(text) <= 80 else f"{text[:50]} ... {text[-25:]}"
