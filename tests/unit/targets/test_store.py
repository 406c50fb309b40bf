"""Reading targets one by one: the right one or a refusal, in bounded memory, from any process and file system."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs

from kdtrans.contracts import ContractError, TargetsFooter
from kdtrans.targets import store as store_module
from kdtrans.targets.index import index_shard, row_groups, write_index
from kdtrans.targets.shards import Target, read_shard, row_to_target, write_shard
from kdtrans.targets.store import Recent, TargetStore

K, V, TOKENIZER = 3, 20, "b" * 64
FOOTER = TargetsFooter("a" * 64, TOKENIZER, V, K, 1, "c" * 64)
Targets = dict[tuple[str, int], Target]


def random_target(utt_id: str, rank: int, weight: float, random: np.random.Generator) -> Target:
    frames, labels = int(random.integers(4, 9)), int(random.integers(1, 4))
    path = np.zeros(frames + labels, np.uint16)
    path[random.choice(frames + labels - 1, labels, replace=False)] = random.integers(2, V, labels)
    ids = random.integers(0, V, (len(path), K)).astype(np.uint16)
    logp = -np.sort(random.exponential(2.0, (len(path), K)), axis=1).astype(np.float16) - np.float16(1.1)
    ids[:, -1], logp[:, -1] = 0, -np.inf
    path_logp, total_logp = (float(np.float32(-nats)) for nats in (random.uniform(5, 9), random.uniform(0, 5)))
    return Target(utt_id, rank, weight, "beam", frames, path, ids, logp, path_logp, total_logp, f"text of {utt_id}")


def write_set(folder: Path, shards: int = 2, utterances: int = 3, seed: int = 0) -> Targets:
    """Shards of utterances with one or two targets each, and their index; returns what was written."""
    random = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    written: Targets = {}
    indexed = []
    for shard in range(shards):
        rows = []
        for utt_id in (f"s{shard}-u{i}" for i in range(utterances)):
            weights = (0.75, 0.25) if random.random() < 0.5 else (1.0,)
            rows += [random_target(utt_id, rank, weight, random) for rank, weight in enumerate(weights)]
        path = folder / f"part-{shard:05d}.parquet"
        write_shard(rows, FOOTER, path)
        indexed.append(index_shard(path, FOOTER, row_groups(path)))
        written |= {(target.utt_id, target.rank): target for target in rows}
    write_index(folder / "index.json", FOOTER, indexed)
    return written


def opened(folder: Path | str) -> TargetStore:
    return TargetStore(f"{folder}/index.json", TOKENIZER, V)


def same(one: Target, two: Target) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(two, name)) for name in Target.__dataclass_fields__)


# ------------------------------------------------------------------------------------------------------------- reading
def test_every_target_is_found_in_any_order(tmp_path: Path) -> None:
    written = write_set(tmp_path, shards=2, utterances=40)  # several row groups
    store = opened(tmp_path)
    assert (store.teacher_sha256, store.top_k, store.frame_offset) == ("a" * 64, K, 1)
    keys = list(written)
    for i in np.random.default_rng(1).permutation(len(keys)):
        assert same(store.target(*keys[i]), written[keys[i]])
    for utt_id in {utt_id for utt_id, _ in keys}:
        assert utt_id in store
        targets = [target for (other, _), target in written.items() if other == utt_id]
        for row, target in zip(store.rows(utt_id), targets, strict=True):
            expected = (target.rank, target.weight, target.num_frames, len(target.labels))
            assert (row.rank, row.weight, row.num_frames, row.num_labels) == expected
            assert row.confidence == pytest.approx(target.confidence)
    assert "nobody" not in store


def test_it_reads_what_reading_all_at_once_reads(tmp_path: Path) -> None:
    """The slow twin: the whole shard as a table."""
    write_set(tmp_path, shards=1)
    footer, table = read_shard(tmp_path / "part-00000.parquet")
    store = opened(tmp_path)
    for row in range(len(table)):
        target = row_to_target(table, row, footer.top_k)
        assert same(store.target(target.utt_id, target.rank), target)


def test_few_files_and_row_groups_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "OPEN_FILES", 2)
    monkeypatch.setattr(store_module, "DECODED_BYTES", 1)
    written = write_set(tmp_path, shards=8)
    store, before = opened(tmp_path), len(os.listdir("/proc/self/fd"))
    targets = [store.target(*key) for key in written]
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    assert len(store._decoded._kept) == 1
    for target in targets:  # none is a view of a row group
        assert target.path.base is None
        assert target.topk_ids.base is None or target.topk_ids.base.nbytes == target.topk_ids.nbytes


def test_recent_keeps_what_was_used_last() -> None:
    made: list[str] = []
    recent: Recent[str, int] = Recent(5, lambda size: size)
    for key in ["a3", "b2", "a3", "c1", "a3", "b2", "d9", "d9", "a3"]:
        recent.get(key, lambda key=key: made.append(key) or int(key[1]))  # type: ignore[misc,func-returns-value]
    assert made == ["a3", "b2", "c1", "b2", "d9", "a3"]


# ------------------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("tokenizer", "vocabulary", "message"),
    [("d" * 64, V, "tokenizer_sha256 is bbb.*, expected ddd"), (TOKENIZER, 21, "vocab_size is 20, expected 21")],
)
def test_another_tokenizer_is_refused(tmp_path: Path, tokenizer: str, vocabulary: int, message: str) -> None:
    write_set(tmp_path)
    with pytest.raises(ContractError, match=rf"index\.json: {message}"):
        TargetStore(tmp_path / "index.json", tokenizer, vocabulary)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"index\.json cannot be used .*kdtrans verify"):
        opened(tmp_path)
    write_set(tmp_path)
    store = opened(tmp_path)
    with pytest.raises(ContractError, match="utterance nobody has no target in"):
        store.target("nobody", 0)
    with pytest.raises(ContractError, match=r"utterance s0-u0 has . targets in .*, asked for rank 7"):
        store.target("s0-u0", 7)
    (tmp_path / "part-00001.parquet").unlink()
    store.target("s0-u0", 0)
    with pytest.raises(ContractError, match=r"part-00001\.parquet cannot be used \(FileNotFoundError"):
        store.target("s1-u0", 0)


@pytest.mark.parametrize(
    ("key", "value"), [("teacher_sha256", "d" * 64), ("top_k", 4), ("frame_offset", 0), ("shards", []), ("top_k", None)]
)
def test_an_index_that_the_shards_contradict_is_refused(tmp_path: Path, key: str, value: object) -> None:
    write_set(tmp_path)
    index = tmp_path / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {key: value}))
    with pytest.raises(
        ContractError, match=r"part-00000\.parquet: .* is .*, .*index\.json says|cannot be used|lists 0 shards"
    ):
        opened(tmp_path).target("s0-u0", 0)


def test_another_shard_of_the_same_name_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path / "one", seed=0)
    other = write_set(tmp_path / "two", seed=1)
    (tmp_path / "two" / "part-00000.parquet").replace(tmp_path / "one" / "part-00000.parquet")
    with pytest.raises(ContractError, match=r"part-00000\.parquet is not the shard that was verified"):
        opened(tmp_path / "one").target(*next(iter(other)))
    for name in ("index.arrow", "part-00001.parquet"):  # the whole set but for index.json
        (tmp_path / "two" / name).replace(tmp_path / "one" / name)
    with pytest.raises(ContractError, match=r"index\.arrow has SHA-256"):
        opened(tmp_path / "one")


def test_an_utterance_in_two_shards_is_refused(tmp_path: Path) -> None:
    written = write_set(tmp_path, shards=1)
    again = tmp_path / "again.parquet"
    again.write_bytes((tmp_path / "part-00000.parquet").read_bytes())
    paths = [tmp_path / "part-00000.parquet", again]
    write_index(tmp_path / "index.json", FOOTER, [index_shard(path, FOOTER, row_groups(path)) for path in paths])
    store = opened(tmp_path)
    for utt_id, _ in written:
        with pytest.raises(ContractError, match=f"utterance {utt_id} has ranks"):
            store.target(utt_id, 0)


def test_another_utterance_with_the_same_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path)
    real = store_module.utterance_key
    monkeypatch.setattr(store_module, "utterance_key", lambda utt_id: real("s0-u1" if utt_id == "twin" else utt_id))
    with pytest.raises(ContractError, match=r"part-00000.* is \('s0-u1', .*the index says \('twin'"):
        opened(tmp_path).target("twin", 0)


# ------------------------------------------------------------------------------------------------------------- damages
def outcomes(folder: Path, written: Targets) -> tuple[int, int]:
    """How many targets a store refuses, and how many it returns; none may be returned that was not written."""
    refused = returned = 0
    try:
        store = opened(folder)
    except ContractError:
        return len(written), 0
    for key, target in written.items():
        try:
            assert same(store.target(*key), target), f"{key} was read wrongly"
            returned += 1
        except ContractError:
            refused += 1
    return refused, returned


def after_damages(folder: Path, written: Targets, path: Path, damaged: list[bytes]) -> list[tuple[int, int]]:
    found = []
    for content in damaged:
        path.write_bytes(content)
        found.append(outcomes(folder, written))
    return found


@pytest.mark.parametrize("name", ["part-00000.parquet", "index.json", "index.arrow"])
def test_truncated_anywhere_nothing_wrong_is_read(tmp_path: Path, name: str) -> None:
    written = write_set(tmp_path, shards=1)
    whole = (tmp_path / name).read_bytes()
    found = after_damages(tmp_path, written, tmp_path / name, [whole[:kept] for kept in range(0, len(whole) - 1, 37)])
    print(f"{name}: {len(found)} truncations, all refused")
    assert all(returned == 0 for _, returned in found)


@pytest.mark.parametrize(("name", "flips"), [("part-00000.parquet", 300), ("index.json", 60), ("index.arrow", 60)])
def test_with_any_bit_flipped_nothing_wrong_is_read(tmp_path: Path, name: str, flips: int) -> None:
    written = write_set(tmp_path, shards=1)
    whole = (tmp_path / name).read_bytes()
    damaged = []
    for bit in np.random.default_rng(5).choice(8 * len(whole), flips, replace=False):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << (bit % 8)
        damaged.append(bytes(content))
    found = after_damages(tmp_path, written, tmp_path / name, damaged)
    harmless = sum(refused == 0 for refused, _ in found)
    print(f"{name}: {flips} flips: {flips - harmless} refused, {harmless} harmless, 0 read wrongly")
    assert harmless < flips / 2


# ----------------------------------------------------------------------------------------------------------- processes
def in_child(check: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            check()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return child


def ended_well(child: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_processes_read_beside_their_parent(tmp_path: Path) -> None:
    written = write_set(tmp_path, shards=4)
    store, keys = opened(tmp_path), list(written)
    store.target(*keys[0])  # an open file, before the fork

    def check() -> None:
        for _ in range(3):
            store._decoded.clear()
            assert all(same(store.target(*key), written[key]) for key in keys)

    children = [in_child(check) for _ in range(2)]
    check()
    assert all(map(ended_well, children))


def test_processes_of_their_own_read_disjoint_halves(tmp_path: Path) -> None:
    written = write_set(tmp_path, shards=4)

    def check(half: int) -> None:
        store = opened(tmp_path)
        assert all(same(store.target(*key), written[key]) for key in list(written)[half::2])

    assert all(map(ended_well, [in_child(partial(check, half)) for half in (0, 1)]))


# -------------------------------------------------------------------------------------------------------- file systems
def test_fsspecs_file_systems_work(tmp_path: Path) -> None:
    import fsspec

    written = write_set(tmp_path)
    memory = fsspec.filesystem("memory")
    memory.put(f"{tmp_path}/", "/bucket/targets/", recursive=True)
    store = opened("memory://bucket/targets")
    assert all(same(store.target(*key), target) for key, target in written.items())
    copied = store.index_file(tmp_path / "checkpoints")
    assert copied.read_bytes() == (tmp_path / "index.json").read_bytes()
    memory.pipe("/bucket/targets/part-00001.parquet", b"PAR1")
    with pytest.raises(ContractError, match=r"bucket/targets/part-00001\.parquet cannot be used"):
        opened("memory://bucket/targets").target("s1-u0", 0)
    store._decoded.clear()
    assert ended_well(in_child(lambda: store.target("s0-u0", 0)))
    memory.rm("/bucket", recursive=True)


def test_pyarrows_file_systems_work_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that pyarrow knows and fsspec does not, played by a folder of this machine."""
    written = write_set(tmp_path)
    assert same(opened(f"file://{tmp_path}").target("s0-u0", 0), written["s0-u0", 0])
    with pytest.raises(ValueError, match=r"nothing://x/index\.json: no file system for nothing://"):
        opened("nothing://x")

    def from_uri(uri: str) -> tuple[fs.FileSystem, str]:
        return fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), uri.removeprefix("nothing://x/")

    monkeypatch.setattr(store_module.fs, "FileSystem", type("Known", (), {"from_uri": staticmethod(from_uri)}))
    store = opened("nothing://x")
    assert all(same(store.target(*key), target) for key, target in written.items())
    store._process = -1  # as after a fork
    store._decoded.clear()
    with pytest.raises(ValueError, match=r"does not survive a fork: .*training\.workers to 0"):
        store.target("s0-u0", 0)
