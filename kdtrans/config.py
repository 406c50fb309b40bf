"""The configuration: every key, its default, its unit and its limits, in one place.

`config.yaml` at the top of the repository spells out the same defaults for reading; a test holds the two equal.
A section is one pydantic model. A rule hands a stage only the sections it depends on, so that a changed key reruns what
depends on it and nothing else. No torch here: the workflow, scoring and reporting import this module.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
Policy = Literal["fail", "drop"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


# What `snakemake NAME` means already; a system is such a name too.
TARGET_NAMES = {
    *("all", "data", "teacher", "targets", "students", "decode", "report"),
    *("synth", "download", "prepare", "tokenizer", "check", "lm", "train_teacher", "gate", "dump", "verify"),
    *("train_student", "tune_lm", "decode_testset", "score"),
}


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the keys and says what to do."""


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _without_nulls(entries: Any) -> Any:
    """Null takes an entry away: a preset is laid over config.yaml key by key, so it cannot just leave one out."""
    if not isinstance(entries, dict):
        return entries
    return {name: entry for name, entry in entries.items() if entry is not None}


# ---------------------------------------------------------------------------------------------------------------- data
class SynthConfig(Section):
    """The embedded corpus: sentences of a small grammar, read by seeded espeak-ng voices."""

    seed: int = 1
    voices: Annotated[int, Field(ge=8)] = 72
    """Number of speakers; no speaker is in two splits."""
    labelled_min: float = 10.0
    """Minutes of labelled training speech."""
    unlabelled_min: float = 50.0
    """Minutes of unlabelled training speech."""
    dev_min: float = 3.0
    """Minutes of development speech."""
    test_min: float = 6.0
    """Minutes of test speech."""
    noise_snr_db: tuple[float, float] = (20.0, 40.0)
    """Range of the signal-to-noise ratio of the noise that is mixed in, dB."""
    lm_sentences: int = 4000
    """Sentences of the grammar, read by nobody, written for the language model."""


class SplitConfig(Section):
    """Splits the corpus's labelled training part by speaker, seeded."""

    seed: int = 1
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
    root: str | None = None
    """Folder of the corpus; null: made (synth) or downloaded (librispeech) below results. `${VAR}` is replaced."""
    labelled: list[str] = ["train-labelled"]
    """The corpus's parts used as labelled training data."""
    unlabelled: list[str] = ["train-unlabelled"]
    """The corpus's parts used as unlabelled training data; their text, if any, is set apart."""
    dev: list[str] = ["dev"]
    """The corpus's parts used for development; may be empty if split.dev_fraction > 0."""
    test: dict[Name, list[str]] = {"test": ["test"]}
    """Test sets: name -> the corpus's parts; null takes one away."""
    split: SplitConfig = SplitConfig()
    checks: ChecksConfig = ChecksConfig()
    min_duration_s: Seconds = 0.3
    max_duration_s: Seconds = 20.0
    num_shards: Positive = 4
    """Manifest shards of the training split; the target shards are one to one with them."""
    synth: SynthConfig = SynthConfig()

    _test = field_validator("test", mode="before", json_schema_input_type=dict[Name, list[str] | None])(_without_nulls)

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
        return self


class TokenizerConfig(Section):
    type: Literal["unigram", "char"] = "char"
    vocab_size: Annotated[int, Field(ge=4, le=65535)] = 256
    """Pieces with blank (id 0) and unknown (id 1); `char` takes what the text holds."""
    model: str | None = None
    """An existing sentencepiece model to use instead of training one; its id 0 must be blank."""


class LmConfig(Section):
    """Token n-gram with modified Kneser-Ney smoothing."""

    order: Annotated[int, Field(ge=1, le=8)] = 4
    transcripts: bool = True
    """Train on the labelled transcripts."""
    texts: list[str] = []
    """Further text files, a sentence a line; `synth` adds its own."""
    arpa: str | None = None
    """An existing token ARPA file to use instead of estimating one."""


# -------------------------------------------------------------------------------------------------------------- models
class PredictorConfig(Section):
    type: Literal["lstm", "stateless"] = "lstm"
    dim: Positive = 128
    layers: Positive = 1
    """LSTM layers."""
    context: Positive = 2
    """Labels seen by a stateless predictor."""
    dropout: Fraction = 0.1


class ConformerConfig(Section):
    """Conformer with 4x convolutional subsampling (10 -> 40 ms) and rotary relative positions."""

    dim: Positive = 96
    layers: Positive = 3
    heads: Positive = 4
    ffn_dim: Positive = 256
    conv_kernel: Positive = 15
    """Width of the depthwise convolution, frames of 40 ms; odd."""
    subsampling_channels: Positive = 16
    dropout: Fraction = 0.05

    @model_validator(mode="after")
    def _shape(self) -> ConformerConfig:
        if self.dim % (2 * self.heads):
            raise ValueError(f"dim {self.dim} must be a multiple of 2 x heads ({self.heads}) for rotary positions")
        if self.conv_kernel % 2 == 0:
            raise ValueError(f"conv_kernel {self.conv_kernel} must be odd")
        return self


class MaskingConfig(Section):
    """SpecAugment without time warp (which would break the teacher's path)."""

    time_masks: Annotated[int, Field(ge=0)] = 1
    """Time masks an utterance, for each 4 s of it."""
    time_width_ms: Annotated[int, Field(ge=0)] = 200
    """Widest time mask, ms."""
    channel_masks: Annotated[int, Field(ge=0)] = 1
    channel_width: Fraction = 0.2
    """Widest channel mask, as a fraction of the channels."""


class RandomEncoderConfig(Section):
    """A small untrained wav2vec 2.0 encoder, for tests: encoder: random."""

    dim: Positive = 64
    layers: Positive = 2
    heads: Positive = 2
    ffn_dim: Positive = 128
    conv_dim: Positive = 64


# ------------------------------------------------------------------------------------------------------------ training
class TrainingConfig(Section):
    """What teacher and student training share."""

    seed: int = 1
    updates: Positive = 2000
    max_duration_s: Seconds = 60.0
    """Padded seconds of audio in a batch."""
    accumulate: Positive = 1
    """Batches an update."""
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
    weight_decay: float = 0.01
    clip_norm: float = 5.0
    ema_decay: Fraction = 0.995
    """Decay of the running average of the weights; the average is what is evaluated and kept."""
    ctc_weight: float = 0.2
    """Weight of an auxiliary CTC loss on the encoder; 0 turns it off."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where it pays (CUDA; wide encoders on CPUs with AMX); lattices are always fp64."""
    evaluate_every: Positive = 500
    """Updates between greedy decodings of dev; the average with the lowest dev WER is kept."""
    checkpoint_every: Positive = 250
    log_every: Positive = 25
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that load audio; 0: in the training process."""
    cache_gb: Annotated[float, Field(ge=0)] = 2.0
    """Memory for features kept between epochs, GB."""

    @model_validator(mode="after")
    def _phases_sum(self) -> TrainingConfig:
        if abs(sum(self.phases) - 1.0) > 1e-6:
            raise ValueError(f"phases {self.phases} sum to {sum(self.phases):g}, not 1")
        return self


class TeacherConfig(Section):
    encoder: str = "assets/whisper-tiny.en-encoder"
    """A folder or hub name for transformers (Wav2Vec2, HuBERT, WavLM, Whisper), `torchaudio:BUNDLE`, or `random`."""
    random: RandomEncoderConfig = RandomEncoderConfig()
    pooling: Literal["average", "concat"] = "average"
    """How two 20 ms frames become one of 40 ms."""
    predictor: PredictorConfig = PredictorConfig(dim=256)
    joiner_dim: Positive = 256
    masking: MaskingConfig = MaskingConfig()
    freeze_updates: Annotated[int, Field(ge=0)] = 40
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
    max_wer: float = 30.0
    """Gate: a dev WER above this, %, stops the workflow before anything is dumped."""


class KdConfig(Section):
    """Distillation loss; weight 0 turns it off and then no target is read for labelled data."""

    weight: Annotated[float, Field(ge=0)] = 0.0
    """Lambda of L = L_transducer + lambda L_kd."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    reduction: Literal["sum", "node"] = "sum"
    """sum: over the path's nodes, mean over utterances (the paper); node: mean over all nodes."""
    node_weight: Literal["one", "nonblank"] = "one"
    """Weight of a node: 1 (the paper), or 1 - P_teacher(blank)."""
    shift: Annotated[int, Field(ge=0)] = 0
    """tau: frames of 40 ms by which the student may lag behind the teacher."""


class StudentConfig(Section):
    encoder: ConformerConfig = ConformerConfig()
    predictor: PredictorConfig = PredictorConfig(type="stateless", dim=96)
    joiner_dim: Positive = 96
    masking: MaskingConfig = MaskingConfig()
    unlabelled: bool = False
    """Train on unlabelled audio too, with the teacher's pseudo text."""
    unlabelled_ratio: Annotated[float, Field(gt=0)] | None = None
    """Hours of unlabelled audio for each labelled hour in the stream of batches; null: as the corpus has it."""
    min_confidence: Fraction = 0.0
    """Pseudo-labelled utterances whose path posterior is lower are left out."""
    kd: KdConfig = KdConfig()
    training: TrainingConfig = TrainingConfig(
        optimizer="muon",
        updates=900,
        lr=5.0e-3,
        max_duration_s=10.0,
        ctc_weight=0.5,
        ema_decay=0.99,
        evaluate_every=450,
    )

    @property
    def reads_targets(self) -> bool:
        """Whether training reads the teacher's target shards."""
        return self.unlabelled or self.kd.weight > 0


# ------------------------------------------------------------------------------------------------ targets and decoding
class SearchConfig(Section):
    """One way of decoding."""

    type: Literal["greedy", "beam"] = "greedy"
    beam: Annotated[int, Field(ge=1, le=255)] = 4
    """Hypotheses kept an utterance."""
    lm: bool = False
    """Shallow fusion with the n-gram; its weight is tuned on dev."""
    max_symbols: Positive = 5
    """Most labels on one frame."""

    @model_validator(mode="after")
    def _lm_needs_beam(self) -> SearchConfig:
        if self.lm and self.type == "greedy":
            raise ValueError("lm: true needs type: beam")
        return self


class TargetsConfig(Section):
    top_k: Annotated[int, Field(ge=1)] = 8
    """Classes whose log-probability is stored at each node; the rest is one tail class."""
    search: SearchConfig = SearchConfig()
    """Search that makes paths and pseudo text for unlabelled audio."""
    lm_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the language model in that search; needs search.lm."""
    frame_offset: Annotated[int, Field(ge=0, le=2)] = 0
    """Teacher frames dropped at the start, when the teacher has more 40 ms frames than the student."""
    max_duration_s: Seconds = 60.0
    """Padded seconds of audio in a batch."""


class DecodeConfig(Section):
    searches: dict[Name, SearchConfig] = {
        "greedy": SearchConfig(),
        "beam_lm": SearchConfig(type="beam", lm=True),
    }
    """Searches: name -> how it decodes; null takes one away."""
    lm_weights: list[Annotated[float, Field(ge=0)]] = [0.0, 0.15, 0.3, 0.45]
    """Weights tried on dev for each system; the best is frozen for the test sets."""
    max_duration_s: Seconds = 120.0
    """Padded seconds of audio in a batch."""

    _searches = field_validator("searches", mode="before", json_schema_input_type=dict[Name, SearchConfig | None])(
        _without_nulls
    )


class ReportConfig(Section):
    title: str = "Distilling a large transducer into a small one"
    baseline: Name = "baseline"
    """The system that relative reductions are computed against."""


class Config(Section):
    """The whole of config.yaml."""

    results: str = "results"
    """Folder of everything that is generated."""
    corpus: CorpusConfig = CorpusConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    lm: LmConfig = LmConfig()
    teacher: TeacherConfig = TeacherConfig()
    targets: TargetsConfig = TargetsConfig()
    student: StudentConfig = StudentConfig()
    """What all student systems share."""
    systems: dict[Name, dict[str, Any]] = {
        "baseline": {},
        "hard": {"unlabelled": True},
        "kd": {"kd": {"weight": 0.5}},
        "kd_unlabelled": {"unlabelled": True, "kd": {"weight": 0.5}},
    }
    """Student systems: name -> what differs from `student`; null takes one away."""
    decode: DecodeConfig = DecodeConfig()
    report: ReportConfig = ReportConfig()

    _named = field_validator("systems", mode="before", json_schema_input_type=dict[Name, dict[str, Any] | None])(
        _without_nulls
    )

    @model_validator(mode="after")
    def _systems(self) -> Config:
        for taken in TARGET_NAMES & set(self.systems):
            raise ValueError(f"systems: '{taken}' is the name of a stage; choose another")
        for name in self.systems:
            self.system(name)
        if self.report.baseline not in self.systems:
            raise ValueError(f"report.baseline '{self.report.baseline}' is none of the systems {sorted(self.systems)}")
        if self.targets.lm_weight > 0 and not self.targets.search.lm:
            raise ValueError("targets.lm_weight > 0 needs targets.search.lm: true")
        return self

    def system(self, name: str) -> StudentConfig:
        """The student configuration of one system: `student` with the system's own entries laid over it."""
        try:
            return StudentConfig.model_validate(merge(self.student.model_dump(), self.systems[name]))
        except ValidationError as error:
            raise ValueError(f"systems.{name}: {_explain(error)}") from None


# ------------------------------------------------------------------------------------------------------------- reading
SectionT = TypeVar("SectionT", bound=Section)


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
        return section.model_validate(_expand(values or {}))
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explain(error)}") from None


def read(section: type[SectionT], path: Path | str) -> SectionT:
    """Read one YAML file as a section; raises ConfigError as `validate` does."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, found {type(values).__name__}")
    return validate(section, values, str(path))


def json_schema() -> dict[str, Any]:
    """The JSON schema of config.yaml, for editors and for Snakemake's own check."""
    return Config.model_json_schema()


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
            raise ConfigError(f"'{values}' names the environment variable {name}, which is not set: export {name}=...")
        return os.environ[name]

    return re.sub(r"\$\{(\w+)\}", lookup, values)


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key '{key}'")
        elif problem["type"] == "value_error":
            lines.append(f"{key + ': ' if key else ''}{problem['ctx']['error']}")
        else:
            lines.append(f"{key} = {problem['input']!r}: {problem['msg']}")
    return "; ".join(lines)
