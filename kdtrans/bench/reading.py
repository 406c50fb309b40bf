"""Reading targets in a trainer's order: a synthetic corpus of shards, and a fresh process that reads it.

Shapes: N path nodes, K stored classes a node.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from kdtrans.bench.measure import resident_mb
from kdtrans.config import TargetsConfig
from kdtrans.contracts import BLANK, FRAME_SHIFT_MS, TargetsFooter
from kdtrans.targets.encoding import encode
from kdtrans.targets.index import IndexedShard, index_shard, row_groups, write_index
from kdtrans.targets.shards import Target, write_shard

SECONDS, LABELS, UTTERANCES = 12.0, 40, 30  # an utterance of LibriSpeech's length, in 256 pieces; a shard's utterances
SETTING = TargetsConfig()
VOCABULARY, TOP_K = 256, SETTING.top_k
SURE = 0.8  # share of blank nodes at which blank is all but certain
DIFFERENT = 300  # distributions drawn; the utterances share them, because reading does not tell
FOOTER = TargetsFooter(
    *("t" * 64, "p" * 64, VOCABULARY, TOP_K, 0, "m" * 64),
    min_probability=SETTING.min_probability,
    logp_step=SETTING.logp_step,
)
BATCH_SECONDS = 240.0
SAMPLE_EVERY = 20  # targets between two looks at the resident memory


def synthetic_target(random: np.random.Generator) -> Target:
    """A target of SECONDS: a random path, mostly confident blanks, and log-probabilities that fall off fast."""
    num_frames = int(SECONDS * 1000 / FRAME_SHIFT_MS)
    path_N = np.zeros(num_frames + LABELS, np.uint16)
    path_N[random.choice(len(path_N) - 1, LABELS, replace=False)] = random.integers(2, VOCABULARY, LABELS)
    is_sure_N = (path_N == BLANK) & (random.random(len(path_N)) < SURE)
    others_N = np.where(is_sure_N, 10 ** random.uniform(-6, -3, len(path_N)), random.uniform(0.01, 0.5, len(path_N)))
    share_NK = random.dirichlet(np.full(TOP_K - 1, 0.3), len(path_N)) * others_N[:, None]
    with np.errstate(divide="ignore"):
        logp_NK = np.log(np.concatenate([1 - others_N[:, None], -np.sort(-share_NK, axis=1)], axis=1))
    ids_NK = random.integers(2, VOCABULARY, logp_NK.shape)
    ids_NK[:, 0] = path_N
    stored_NK, stored_logp_NK = encode(ids_NK, logp_NK, FOOTER.min_probability, FOOTER.logp_step)
    path_logp = float(logp_NK[:, 0].sum())
    return Target(
        utt_id="",
        rank=0,
        weight=1.0,
        origin="greedy",
        num_frames=num_frames,
        path=path_N,
        topk_ids=stored_NK,
        topk_logp=stored_logp_NK,
        path_logp=path_logp,
        total_logp=path_logp + 0.2,
        text="synthetic text of a few words",
    )


def write_corpus(folder: Path, shards: int, deadline: float | None = None) -> int:
    """Write shards of synthetic targets and their index.

    Args:
        folder: where part-NNNNN.parquet, index.json and index.arrow go.
        shards: how many, of UTTERANCES each.
        deadline: time.monotonic() after which no further shard is begun; None: all are written.

    Returns:
        How many shards there are.
    """
    random = np.random.default_rng(0)
    targets = [synthetic_target(random) for _ in range(DIFFERENT)]
    written: list[IndexedShard] = []
    while len(written) < shards and (deadline is None or time.monotonic() < deadline or not written):
        path, number = folder / f"part-{len(written):05d}.parquet", len(written)
        chosen = random.integers(DIFFERENT, size=UTTERANCES)
        rows = [replace(targets[i], utt_id=utt_id) for i, utt_id in zip(chosen, names(number), strict=True)]
        write_shard(rows, FOOTER, path)
        written.append(index_shard(path, FOOTER, row_groups(path)))
    write_index(folder / "index.json", FOOTER, written)
    return len(written)


def names(shard: int) -> Iterator[str]:
    """The ids of a shard's utterances, in order."""
    return (f"synthetic-{shard:05d}-{utterance:02d}" for utterance in range(UTTERANCES))


def read_in_a_fresh_process(index: Path, shards: int, count: int) -> dict[str, float]:
    """What `main` below says of reading `count` targets of `shards` shards, on one core."""
    command = [sys.executable, "-m", "kdtrans.bench.reading", str(index), str(shards), str(count)]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if run.returncode != 0:
        raise OSError(f"reading {index} failed: {(run.stderr.strip().splitlines() or ['no message'])[-1]}")
    found: dict[str, float] = json.loads(run.stdout)
    return found


def main(index: str, shards: int, count: int) -> dict[str, float]:
    """Read targets as a trainer does, in the order of a `BatchOrder`.

    Returns:
        start_s: from an imported program to the first target; audio_s, read_s: of the targets after it; start_cpu_s and
        cpu_s: the same in CPU time; rss_growth_mb: the most by which resident memory, mapped files included, rose above
        what it was before the store was opened, 10^6 bytes.
    """
    from kdtrans.data.batches import BatchOrder
    from kdtrans.targets.store import TargetStore

    ids = [name for shard in range(shards) for name in names(shard)]
    order = BatchOrder([SECONDS] * len(ids), [False] * len(ids), BATCH_SECONDS)
    visits = (ids[i] for _, batch in order.stream() for i in batch)
    first = next(visits)
    before = resident_mb()
    started, cpu = time.perf_counter(), time.process_time()
    store = TargetStore(index, FOOTER.tokenizer_sha256, FOOTER.vocab_size)
    store.target(first, 0).node_targets(store.frame_offset)
    opened, opened_cpu, most = time.perf_counter(), time.process_time(), 0.0
    for number in range(count):
        store.target(next(visits), 0).node_targets(store.frame_offset)
        if number % SAMPLE_EVERY == 0:
            most = max(most, resident_mb())
    return {
        "start_s": opened - started,
        "start_cpu_s": opened_cpu - cpu,
        "audio_s": count * SECONDS,
        "read_s": time.perf_counter() - opened,
        "cpu_s": time.process_time() - opened_cpu,
        "rss_growth_mb": max(most, resident_mb()) - before,
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
