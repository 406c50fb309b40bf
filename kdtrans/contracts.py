"""Every file that passes between stages: what is in it, and the checks a reader makes; layout.py has the paths.

    corpus/LibriSpeech, corpus/lm.txt       the embedded corpus and text for its language model; corpus/SHA256SUMS last
    data/prepared/{split}.jsonl.gz          manifest of a split as the corpus has it; summary.json: hours by reason
    data/prepared/unlabelled_text.jsonl     the text of unlabelled audio where it is known; for one diagnostic only
    data/{split}/cuts.NNNNN.jsonl.gz        manifest      MonoCuts at 16 kHz, one supervision; text null = unlabelled
    data/summary.json                       hours in, kept and dropped, by split and reason; a hash of all train shards
    tokenizer/tokenizer.model               sentencepiece; id 0 is blank, id 1 unknown
    lm/lm.arpa, lm/lstm.pt                  n-gram and LSTM over token pieces; lm/source.arpa: of the transcripts alone
    teacher/model.pt                        checkpoint    see MODEL_KEYS
    teacher/gate.json                       dev WER of the teacher and the limit it kept
    targets/{set}/train/part-NNNNN.parquet  paths and distributions; see TARGETS
    targets/{set}/train/index.json          the shards after their check: provenance, counts, hashes
    targets/{set}/train/index.arrow         where each target lies, memory-mapped; see TARGETS_INDEX
    systems/{run}/model.pt                  checkpoint    see MODEL_KEYS; a run is a system, or one of its seeds
    */checkpoints/metrics.jsonl             training curves, a row a log step
    */checkpoints/last.pt, before.pt        state of a training at its last two checkpoints; finished.pt: its model
    decode/{run}/{search}/lm_weight.json    the weight chosen on dev, and those tried
    decode/{run}/{search}/{testset}.parquet               hypotheses; see HYPOTHESES
    decode/{run}/{search}/{testset}.score.parquet         per-utterance counts; see SCORES
    decode/{run}/{search}/{testset}.score.json            summary; see ScoreSummary
    align/{run}/{testset}.parquet           frames on which a model emits the reference; see ALIGNMENTS
    report/                                 table.txt, summary.json, index.html; sweep.txt, sweep.json
    *.run.json                              beside each: settings, hashes of inputs and code; see artifacts.run_record

No torch here: scoring, reporting and the workflow import this module.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

BLANK = 0
UNKNOWN = 1
FRAME_SHIFT_MS = 40
SAMPLE_RATE = 16000
TOPOLOGY = "regular"  # a label stays on its frame, a blank moves to the next: T + U nodes
HALVES = re.compile("[\ud800-\udfff]")  # of UTF-16 pairs: no characters
TARGETS_VERSION = 3
TARGETS_READ = (2, 3)  # 2 is 3 without the classes below min_probability taken out: min_probability 0, logp_step 0


class ContractError(ValueError):
    """A file that breaks its contract, or belongs to another teacher or tokenizer; names the file and both values."""


TARGETS = pa.schema(
    [
        ("utt_id", pa.string()),
        ("rank", pa.uint8()),  # 0 = best
        ("weight", pa.float32()),  # posterior of this hypothesis among those of its utterance; they sum to 1
        ("origin", pa.string()),  # viterbi | greedy | beam | beam_lm: what found the labels
        ("num_frames", pa.uint16()),  # teacher frames of 40 ms, T
        ("path", pa.list_(pa.uint16())),  # tokens with blanks: the whole path, N = T + U nodes
        ("topk_ids", pa.list_(pa.uint16())),  # node-major, k a node; 0 where the log-probability is -inf
        ("topk_logp", pa.list_(pa.float16())),  # normalised over the full vocabulary; -inf: class left out, in the tail
        ("path_logp", pa.float32()),  # log-probability of this path, nats
        ("total_logp", pa.float32()),  # full sum over the paths that spell the same labels, nats
        ("text", pa.string()),
        ("confidence", pa.float32()),  # posterior of the path among those of its labels: exp(path_logp - total_logp)
        ("frames_per_label", pa.float32()),
        ("repetition", pa.float32()),  # share of labels that repeat the label before them
    ]
)

TARGETS_INDEX = (
    pa.schema(  # sorted by key, then rank; Arrow IPC, uncompressed, so that a lookup touches a few pages only
        [
            ("key", pa.uint64()),  # first 8 bytes, little-endian, of the BLAKE2b hash of utt_id
            ("rank", pa.uint8()),
            ("shard", pa.uint32()),  # position in index.json's `shards`
            ("row_group", pa.uint16()),
            ("row", pa.uint16()),  # within the row group
            ("weight", pa.float32()),
            ("num_frames", pa.uint16()),
            ("num_labels", pa.uint16()),
            ("confidence", pa.float32()),
            ("repetition", pa.float32()),
        ]
    )
)

HYPOTHESES = pa.schema(
    [
        ("utt_id", pa.string()),
        ("rank", pa.uint8()),
        ("text", pa.string()),
        ("tokens", pa.list_(pa.uint16())),
        ("token_frames", pa.list_(pa.uint16())),  # frame of 40 ms on which each token was emitted
        ("token_logp", pa.list_(pa.float32())),  # acoustic log-probability of each token, nats
        ("score", pa.float32()),  # am_score + lm_weight * lm_score - ilm_weight * that of the internal one
        ("am_score", pa.float32()),
        ("lm_score", pa.float32()),
        ("num_frames", pa.uint16()),
        ("seconds", pa.float32()),  # duration of the audio
    ]
)

ALIGNMENTS = pa.schema(
    [
        ("utt_id", pa.string()),
        ("tokens", pa.list_(pa.uint16())),  # of the reference
        ("token_frames", pa.list_(pa.uint16())),  # frame of 40 ms on which the model's Viterbi path emits each
        ("num_frames", pa.uint16()),
        ("path_logp", pa.float32()),  # nats
    ]
)

SCORES = pa.schema(
    [
        ("utt_id", pa.string()),
        ("speaker", pa.string()),
        ("reference", pa.string()),
        ("hypothesis", pa.string()),
        ("words", pa.int32()),
        ("sub", pa.int32()),
        ("del", pa.int32()),
        ("ins", pa.int32()),
        ("seconds", pa.float32()),
    ]
)


@dataclass(frozen=True)
class ScoreSummary:
    """One run, one search, one test set. Rates in %, durations in seconds."""

    run: str
    system: str
    search: str
    testset: str
    wer: float
    wer_low: float  # 95 % bootstrap interval over utterances
    wer_high: float
    cer: float
    sub: int
    dele: int
    ins: int
    words: int
    utterances: int
    audio_seconds: float
    decode_seconds: float
    parameters: int
    lm_weight: float
    latency_ms: int | None  # algorithmic latency of a streaming system; None: it waits for the end

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ScoreSummary:
        """Raises KeyError or TypeError naming the entry that is missing or of another type; NaN is no number."""
        summary = cls(**{field.name: values[field.name] for field in fields(cls)})
        for field in fields(cls):
            value = getattr(summary, field.name)
            kinds = {"str": str, "int": int, "float": int | float, "int | None": int | None}[str(field.type)]
            if not isinstance(value, kinds) or isinstance(value, bool) or value != value:
                raise TypeError(f"{field.name} is {value!r}, expected {field.type}")
        return summary

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class TargetsFooter:
    """Provenance of a target shard, kept in the Parquet footer; a reader compares it with what it trains on."""

    teacher_sha256: str  # fingerprint of the teacher's weights; of several, joined by +
    tokenizer_sha256: str
    vocab_size: int
    top_k: int
    frame_offset: int
    manifest_sha256: str  # the manifest shard these targets belong to
    lm_sha256: str | None = None
    lm_weight: float = 0.0
    code_revision: str = ""
    created: str = ""
    min_probability: float = 0.0  # classes below it are left out of the k
    logp_step: float = 0.0  # log-probabilities but the first of a node are multiples of it, nats; 0: as fp16 has them
    schema_version: int = TARGETS_VERSION
    blank: int = BLANK
    topology: str = TOPOLOGY
    frame_shift_ms: int = FRAME_SHIFT_MS


def shortened(value: object) -> str:
    """A footer's value for messages: of a hash twelve digits, of several teachers' each."""
    return "+".join(part[:12] for part in str(value).split("+"))


MODEL_KEYS = (
    *("kind", "config", "vocab_size", "tokenizer_sha256", "fingerprint", "step", "dev_wer", "state_dict"),
    "encoder_architecture",  # of a teacher's pre-trained encoder, so that its folder is needed no more; else None
)


def manifest_files(paths: Iterable[Path]) -> list[Path]:
    """The manifest files among paths: files as they are, a folder as its cuts.NNNNN.jsonl.gz in order.

    Commands take folders because thousands of paths do not fit on a command line.

    Raises:
        ContractError: naming a folder without manifests.
    """
    files = []
    for path in paths:
        found = sorted(path.glob("cuts.*.jsonl.gz")) if path.is_dir() else [path]
        if not found:
            raise ContractError(f"{path} has no cuts.NNNNN.jsonl.gz: name the folder of a split, or its manifests")
        files += found
    return files


def read_manifest_lines(path: Path | str) -> list[str]:
    """Read the lines of a manifest file, a cut each.

    Raises:
        ContractError: naming the file that is missing or not whole.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            lines = list(file)
    except FileNotFoundError:
        raise ContractError(f"{path} does not exist: run the stage that makes it") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ContractError(
            f"{path} is not a whole manifest ({error}): delete it and rerun the stage that makes it"
        ) from None
    if not lines and Path(path).stat().st_size == 0:  # gzip takes no bytes at all for whole
        raise ContractError(f"{path} is empty, not a manifest: delete it and rerun the stage that makes it")
    return lines


def parse_cut(line: str, where: str) -> dict[str, Any]:
    """A line of a manifest as JSON values, checked: what every later stage takes for granted.

    Args:
        line: of `read_manifest_lines`.
        where: file and line, for the message.

    Raises:
        ContractError: when it is no MonoCut with an id, a duration, one supervision, and audio in a file.
            lhotse's other sources are refused: one of them is a command that it would run.
    """
    try:
        cut = json.loads(line)
        (supervision,) = cut["supervisions"]
        sources = cut["recording"]["sources"] if cut.get("recording") else []
        checks = {
            "type": cut.get("type", "MonoCut") == "MonoCut",
            "id": _is_text(cut["id"]) and cut["id"] != "",
            "start": _is_seconds(cut.get("start", 0.0)),
            "duration": _is_seconds(cut["duration"]) and cut["duration"] > 0,
            "text": supervision.get("text") is None or _is_text(supervision["text"]),
            "speaker": supervision.get("speaker") is None or _is_text(supervision["speaker"]),
            "recording.sources": all(source["type"] == "file" and _is_text(source["source"]) for source in sources),
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ContractError(
            f"{where}: not a cut with an id, a duration and one supervision ({error!r}): make the manifest anew"
        ) from None
    for name, is_sound in checks.items():
        if not is_sound:
            raise ContractError(f"{where}: the cut's {name} is not what a manifest has there: make it anew")
    return dict(cut)


def is_unicode(text: str) -> bool:
    """Whether a UTF-8 file can hold it: JSON may spell halves of characters, file names of other bytes come as such."""
    return HALVES.search(text) is None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and is_unicode(value)


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def write_table(table: pa.Table, path: Path | str, metadata: dict[str, str] | None = None, **options: Any) -> None:
    """Write a whole Parquet file (zstd, pages with checksums) whose footer carries `metadata` under `kdtrans.` keys."""
    from kdtrans.artifacts import write_whole

    footer = {f"kdtrans.{key}": value for key, value in (metadata or {}).items()}
    table = table.replace_schema_metadata(footer)
    with write_whole(path) as temporary:
        pq.write_table(table, temporary, **{"compression": "zstd", "write_page_checksum": True, **options})


@contextmanager
def whole_parquet(path: Path | str) -> Iterator[None]:
    """Turn what pyarrow raises for damaged bytes, which is of a dozen types, into a ContractError naming the file."""
    try:
        yield
    except FileNotFoundError:
        raise ContractError(f"{path} does not exist: run the stage that makes it") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise ContractError(
            f"{path} is not a whole Parquet file ({reason}): delete it and rerun the stage that makes it"
        ) from None


def read_table(path: Path | str, schema: pa.Schema, needed: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file and check its columns.

    Args:
        path: the file.
        schema: its columns.
        needed: those of them in which no value may be missing; None: all.

    Raises:
        ContractError: naming the file, when it is not whole Parquet, its columns differ from the schema, or a needed
            value is missing.
    """
    with whole_parquet(path):
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
        if not table.schema.equals(schema, check_metadata=False):
            raise ContractError(f"{path}: columns are {_columns(table.schema)}, expected {_columns(schema)}")
        table.validate(full=True)  # text that is not UTF-8, lists that overlap
    for name in has_nulls(table if needed is None else table.select(needed)):
        raise ContractError(f"{path}: nulls in column {name}: delete it and rerun the stage that makes it")
    return table


def has_nulls(table: pa.Table) -> list[str]:
    """The columns with nulls, or with lists that have some."""
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    return [
        name
        for name, column in columns.items()
        if column.null_count or (pa.types.is_list(column.type) and column.flatten().null_count)
    ]


def read_footer(path: Path | str) -> dict[str, str]:
    """The `kdtrans.` entries of a Parquet footer, without the prefix.

    Raises:
        ContractError: when the file is not whole Parquet or no kdtrans stage wrote it.
    """
    with whole_parquet(path):
        metadata = pq.read_schema(path).metadata or {}
        footer = {key.decode()[8:]: value.decode() for key, value in metadata.items() if key.startswith(b"kdtrans.")}
    if not footer:
        raise ContractError(f"{path}: the footer has no kdtrans entries; it was not written by this workflow")
    return footer


def footer_number(footer: dict[str, str], key: str, source: Path | str) -> float:
    """A number from 0 up in a footer.

    Raises:
        ContractError: naming the file, when the entry is missing or no such number.
    """
    if key not in footer:
        raise ContractError(f"{source}: the footer lacks {key}: make the file anew")
    try:
        number = float(footer[key])
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise ContractError(
            f"{source}: {key} in the footer is {footer[key]!r}, not a number from 0 up: make the file anew"
        )
    return number


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}:{field.type}" for field in schema)
