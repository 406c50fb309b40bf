"""Targets of a whole set, read one utterance at a time and in any order.

What a process holds does not grow with the corpus: index.arrow is memory-mapped, and of the shards only the row groups
and files used last are kept. No distribution is read before its utterance is visited.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from kdtrans.artifacts import sha256_file, write_whole
from kdtrans.contracts import ContractError
from kdtrans.targets.index import read_rows, rows_with_key, utterance_key
from kdtrans.targets.shards import Target, row_to_target

DECODED_BYTES = 32 << 20  # row groups kept decoded
OPEN_FILES = 16
TAIL_BYTES = 64 << 10  # read first from a shard: most footers lie within, so that a remote one costs one request
EXPECTED = ("teacher_sha256", "tokenizer_sha256", "vocab_size", "top_k", "frame_offset")
COLUMNS = [
    *("utt_id", "rank", "weight", "origin", "num_frames", "path", "topk_ids", "topk_logp"),
    *("path_logp", "total_logp", "text"),
]

Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True)
class TargetRow:
    """What the index says of one target: enough to choose what to train on without opening a shard."""

    rank: int
    weight: float  # posterior among the targets of its utterance
    num_frames: int  # teacher frames of 40 ms
    num_labels: int
    confidence: float  # posterior of the path among those of its labels
    repetition: float  # share of labels that repeat the label before them


class TargetStore:
    """The targets of every utterance in a verified set of shards, read when they are asked for.

    Safe after a fork and in any number of processes: each opens its own files. Not for several threads at once.

    Args:
        index: index.json as `kdtrans verify` wrote it, beside index.arrow; the shards lie where it says, relative to
            its folder. A path, or a URI of any file system of fsspec (s3:// with s3fs, gs:// with gcsfs, memory://) or,
            where fsspec's package is missing, of pyarrow's own (s3://, gs://, abfs://, hdfs://; no loader processes).
        tokenizer_sha256: of the tokenizer that the student trains with.
        vocab_size: its size.

    Attributes:
        teacher_sha256: fingerprint of the teacher that made the targets.
        top_k: classes stored at each node.
        frame_offset: teacher frames that the student has not, at the start.

    Raises:
        ContractError: when the index is missing, damaged, or belongs to another tokenizer, naming it and both values.
    """

    def __init__(self, index: str | Path, tokenizer_sha256: str, vocab_size: int) -> None:
        self.index = str(index)
        self._process = os.getpid()
        self._files, at = open_filesystem(self.index)
        self._folder = posixpath.dirname(at)
        with _reading(self.index):
            facts = json.loads(self._read_file(at))
            # What this reader goes by: each shard's footer has to say the same.
            self._expected = {key: facts[key] for key in EXPECTED}
            self._shards = [str(shard["path"]) for shard in facts["shards"]]
            self._footers = [bytes.fromhex(shard["footer_sha256"]) for shard in facts["shards"]]
            index_sha256 = str(facts["index_sha256"])
        for key, value in {"tokenizer_sha256": tokenizer_sha256, "vocab_size": vocab_size}.items():
            if self._expected[key] != value:
                raise ContractError(
                    f"{index}: {key} is {self._expected[key]}, expected {value}: give the tokenizer of the targets"
                )
        self.teacher_sha256: str = self._expected["teacher_sha256"]
        self.top_k: int = self._expected["top_k"]
        self.frame_offset: int = self._expected["frame_offset"]
        self._columns = self._read_columns(f"{posixpath.splitext(at)[0]}.arrow", index_sha256)
        self._open: Recent[int, pq.ParquetFile] = Recent(OPEN_FILES, lambda file: 1)
        self._decoded: Recent[tuple[int, int], pa.Table] = Recent(DECODED_BYTES, lambda table: table.nbytes)

    def __contains__(self, utt_id: str) -> bool:
        return len(self._positions(utt_id)) > 0

    def rows(self, utt_id: str) -> list[TargetRow]:
        """What the index says of an utterance's targets, best first.

        Raises:
            ContractError: when the utterance has no target, or the index is broken there.
        """
        positions = self._positions(utt_id)
        if not positions:
            raise ContractError(f"utterance {utt_id} has no target in {self.index}: dump its shard again")
        columns = [self._columns[name] for name in TargetRow.__dataclass_fields__]
        rows = [TargetRow(*(column[at].item() for column in columns)) for at in positions]
        if [row.rank for row in rows] != list(range(len(rows))):
            raise ContractError(
                f"{self.index}: utterance {utt_id} has ranks {[row.rank for row in rows]}, expected 0, 1, ...: "
                "two utterances have its key, or the index is damaged: run kdtrans verify again"
            )
        return rows

    def target(self, utt_id: str, rank: int) -> Target:
        """One of an utterance's targets; its arrays are its own.

        Raises:
            ContractError: when there is no such target, or its shard is missing, damaged or not the one that was
                verified, naming it.
        """
        rows = self.rows(utt_id)
        if rank >= len(rows):
            raise ContractError(f"utterance {utt_id} has {len(rows)} targets in {self.index}, asked for rank {rank}")
        at = self._positions(utt_id)[rank]
        shard, row_group, row = (int(self._columns[name][at]) for name in ("shard", "row_group", "row"))
        table = self._row_group(shard, row_group)
        with _reading(self._path(shard)):
            target = row_to_target(table, row, self.top_k)
        found = (target.utt_id, target.rank, target.weight, target.num_frames, len(target.labels))
        expected = (utt_id, rank, rows[rank].weight, rows[rank].num_frames, rows[rank].num_labels)
        if found != expected:
            raise ContractError(
                f"{self._path(shard)}: row {row} of row group {row_group} is {found}, the index says {expected} "
                "(utterance, rank, weight, frames, labels): run kdtrans verify again"
            )
        # Copied, because views would keep the whole row group in memory.
        return replace(
            target, path=target.path.copy(), topk_ids=target.topk_ids.copy(), topk_logp=target.topk_logp.copy()
        )

    def index_file(self, folder: Path) -> Path:
        """index.json as a file of this machine: itself, or a copy in `folder` of a remote one."""
        if isinstance(self._files, fs.LocalFileSystem):
            return Path(self.index.removeprefix("file://"))
        with write_whole(folder / "index.json") as temporary:
            temporary.write_bytes(self._read_file(open_filesystem(self.index)[1]))
        return folder / "index.json"

    def _positions(self, utt_id: str) -> range:
        """Where the utterance's rows lie in the index."""
        return rows_with_key(self._columns["key"], utterance_key(utt_id))

    def _row_group(self, shard: int, row_group: int) -> pa.Table:
        def decode() -> pa.Table:
            self._renew_after_fork()
            with _reading(self._path(shard)):
                file = self._open.get(shard, lambda: self._open_shard(shard))
                return file.read_row_group(row_group, columns=COLUMNS, use_threads=False)

        return self._decoded.get((shard, row_group), decode)

    def _open_shard(self, shard: int) -> pq.ParquetFile:
        """Open a shard whose footer is the verified one; its data pages have checksums of their own."""
        path = self._path(shard)
        file = self._files.open_input_file(path)
        footer = _footer_of(file)
        if hashlib.sha256(footer).digest() != self._footers[shard]:
            raise ContractError(f"{path} is not the shard that was verified: run kdtrans verify again")
        metadata = pq.read_metadata(pa.BufferReader(footer))
        said = {key.decode(): value.decode() for key, value in metadata.metadata.items()}
        for key, value in self._expected.items():
            if said.get(f"kdtrans.{key}") != str(value):
                raise ContractError(f"{path}: {key} is {said.get(f'kdtrans.{key}')}, {self.index} says {value}")
        # A remote row group comes in few large requests instead of one for each column.
        remote = not isinstance(self._files, fs.LocalFileSystem)
        return pq.ParquetFile(file, metadata=metadata, pre_buffer=remote, page_checksum_verification=True)

    def _renew_after_fork(self) -> None:
        """A forked process shares file positions and connections with its parent: open its own."""
        if os.getpid() == self._process:
            return
        if not isinstance(self._files, fs.LocalFileSystem | fs.PyFileSystem):
            raise ValueError(
                f"{self.index}: pyarrow's {self._files.type_name} connection does not survive a fork: "
                "install fsspec's package for it (s3fs, gcsfs, adlfs), or set training.workers to 0"
            )
        self._process = os.getpid()
        self._files, _ = open_filesystem(self.index)
        self._open.clear()

    def _read_columns(self, path: str, sha256: str) -> dict[str, np.ndarray]:
        """The columns of index.arrow, without copies: only the pages that lookups touch stay in memory."""
        if isinstance(self._files, fs.LocalFileSystem):
            with _reading(path):
                source, found = pa.memory_map(path), sha256_file(path)
        else:
            source = pa.py_buffer(self._read_file(path))
            found = hashlib.sha256(source).hexdigest()
        if found != sha256:
            raise ContractError(
                f"{path} has SHA-256 {found[:12]}, {self.index} says {sha256[:12]}: run kdtrans verify again"
            )
        rows = read_rows(source, path)
        # pyarrow's to_numpy would import pandas, 0.3 s and 40 MB.
        return {name: np.from_dlpack(rows[name]) for name in rows.schema.names}

    def _read_file(self, path: str) -> bytes:
        with _reading(path), self._files.open_input_stream(path) as file:
            return file.read()

    def _path(self, shard: int) -> str:
        if shard >= len(self._shards):
            raise ContractError(
                f"{self.index} lists {len(self._shards)} shards, index.arrow names {shard}: verify again"
            )
        return posixpath.join(self._folder, self._shards[shard])


class Recent(Generic[Key, Value]):
    """The values used last, as many as fit within a limit."""

    def __init__(self, limit: int, size: Callable[[Value], int]) -> None:
        self._limit, self._size, self._used = limit, size, 0
        self._kept: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The kept value, or a new one that is kept in place of those not used for longest."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        value = self._kept[key] = make()
        self._used += self._size(value)
        while self._used > self._limit and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._used -= self._size(oldest)
        return value

    def clear(self) -> None:
        self._kept.clear()
        self._used = 0


def open_filesystem(location: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the path within it; `TargetStore` names those that work.

    Raises:
        ValueError: when nothing that is installed knows the URI's scheme.
    """
    scheme, separator, path = location.partition("://")
    if not separator or scheme == "file":
        return fs.LocalFileSystem(), os.path.abspath(path if separator else location)
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]

    try:
        # fsspec's first, because pyarrow's own connections do not survive the fork of loader processes.
        files, path = url_to_fs(location)
        return fs.PyFileSystem(fs.FSSpecHandler(files)), path
    except (ImportError, ValueError) as error:
        try:
            return fs.FileSystem.from_uri(location)
        except (pa.ArrowException, OSError) as also:
            raise ValueError(
                f"{location}: no file system for {scheme}:// ({error}; {also}): install its package"
            ) from None


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn all that missing and damaged bytes raise, which is of a dozen types, into a ContractError with the name."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, MemoryError, RecursionError) as error:
        if isinstance(error, ContractError) and name in str(error):
            raise
        reason = " ".join(str(error).split())
        raise ContractError(
            f"{name} cannot be used ({type(error).__name__}: {reason}): kdtrans verify says what to dump again"
        ) from None


def _footer_of(file: pa.NativeFile) -> bytes:
    """The Parquet footer with its length and magic: the last (length + 8) bytes."""
    size = file.size()
    tail = _read_at(file, max(size - TAIL_BYTES, 0), min(size, TAIL_BYTES))
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] != b"PAR1" or length > size:
        raise ValueError("not a whole Parquet file")
    return tail[-length:] if length <= len(tail) else _read_at(file, size - length, length)


def _read_at(file: pa.NativeFile, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)
