"""Checks of one target shard: by itself, and against its manifest shard, its teacher and its tokenizer.

Shapes: R rows of a row group, N path nodes of all of them, K stored classes a node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdtrans.artifacts import read_json, sha256_file
from kdtrans.contracts import BLANK, ContractError, TargetsFooter, has_nulls, shortened, whole_parquet
from kdtrans.data.tokenizer import Tokenizer
from kdtrans.scoring.references import read_references
from kdtrans.targets.index import IndexedShard, index_shard, row_groups
from kdtrans.targets.shards import read_shard_footer

MASS_SLACK = 2.0e-2  # fp16 log-probs of K classes may sum to a little more than 1
WEIGHT_SLACK = 1.0e-3  # weights are fp32
SCORE_SLACK = 1.0e-2  # nats, and 1e-4 of the score: a path and all paths are summed in other orders


@dataclass
class Verdict:
    """What the check of one shard found."""

    path: Path
    problems: list[str] = field(default_factory=list)  # one line each
    footer: TargetsFooter | None = None
    indexed: IndexedShard | None = None  # None: there are problems
    foreign: bool = False  # from another teacher or tokenizer than the one given


@dataclass(frozen=True)
class Expected:
    """What a shard is compared with; None: unknown, its checks are left out."""

    teacher_sha256: str | None = None
    tokenizer: Tokenizer | None = None
    manifest: Path | None = None


class Findings:
    """Problems of a shard's rows: of each kind its first case, and how many utterances have it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._first: dict[str, str] = {}
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._first)

    def add(
        self,
        kind: str,
        utt_ids: list[str],
        bad: np.ndarray,
        say: Callable[[int], str],
        row_of: np.ndarray | None = None,
    ) -> None:
        """Note the bad ones among the rows (R,), or among the nodes (N,) whose rows are `row_of`."""
        found = np.flatnonzero(bad)
        if not len(found):
            return
        rows = found if row_of is None else np.unique(row_of[found])
        first = found[0] if row_of is None else row_of[found[0]]
        self._first.setdefault(kind, f"{say(int(found[0]))} (utterance {utt_ids[int(first)]}")
        self._counts[kind] += len(rows)

    def lines(self) -> list[str]:
        """One line each."""
        return [f"{self._path}: {text}, {self._counts[kind]} in all)" for kind, text in self._first.items()]


# ----------------------------------------------------------------------------------------------------------- one shard
def verify_shard(path: Path, expected: Expected) -> Verdict:
    """Check everything that can be wrong with a shard by itself, a row group at a time.

    Raises:
        ContractError: when the manifest, not the shard, is broken.
    """
    texts = None
    if expected.manifest is not None:
        texts = {utt_id: reference.text for utt_id, reference in read_references([expected.manifest]).items()}
    verdict = Verdict(path)
    findings = Findings(path)
    try:
        # Before anything is parsed: damaged bytes may do more to a parser than raise.
        with whole_parquet(path):
            sha256 = sha256_file(path)
        if wrong := _wrong_hash(path, sha256):
            verdict.problems.append(wrong)
            return verdict
        with whole_parquet(path):
            verdict.footer = read_shard_footer(path)
        _check_provenance(verdict, verdict.footer, expected)
        tokenizer = None if verdict.foreign else expected.tokenizer
        ranking: list[pa.Table] = []
        checked = _checked(path, verdict.footer, texts, tokenizer, findings, ranking)
        verdict.indexed = index_shard(path, verdict.footer, checked, sha256)
        if ranking:
            _check_ranking(pa.concat_tables(ranking), findings)
        verdict.problems += findings.lines()
        _check_utterances(verdict, ranking, texts, expected.manifest)
    except ContractError as error:
        verdict.problems += [*findings.lines(), str(error)]
    if verdict.problems:
        verdict.indexed = None
    return verdict


def _wrong_hash(path: Path, found: str) -> str | None:
    """What is wrong if the shard's record has another hash than the shard."""
    record = Path(f"{path}.run.json")
    if not record.exists():
        return None
    try:
        recorded = read_json(record).get("sha256")
    except (ValueError, AttributeError):
        return f"{record}: not a record of a stage: delete it and its shard, and dump the shard again"
    if recorded is None or recorded == found:
        return None
    return f"{path}: SHA-256 is {found[:12]}, its record says {recorded[:12]}: delete it and dump it again"


def _check_provenance(verdict: Verdict, footer: TargetsFooter, expected: Expected) -> None:
    wanted: dict[str, str | int] = {}
    if expected.teacher_sha256 is not None:
        wanted["teacher_sha256"] = expected.teacher_sha256
    if expected.tokenizer is not None:
        wanted["tokenizer_sha256"] = expected.tokenizer.sha256
        wanted["vocab_size"] = expected.tokenizer.vocab_size
    if expected.manifest is not None:
        wanted["manifest_sha256"] = sha256_file(expected.manifest)
    for key, value in wanted.items():
        found = getattr(footer, key)
        if found != value:
            verdict.foreign |= key != "manifest_sha256"
            verdict.problems.append(f"{verdict.path}: {key} is {shortened(found)}, expected {shortened(value)}")
    if not 1 <= footer.top_k <= footer.vocab_size:
        raise ContractError(f"{verdict.path}: top_k is {footer.top_k} of a vocabulary of {footer.vocab_size}")


def _checked(
    path: Path,
    footer: TargetsFooter,
    texts: dict[str, str | None] | None,
    tokenizer: Tokenizer | None,
    findings: Findings,
    ranking: list[pa.Table],
) -> Iterator[pa.Table]:
    """The shard's row groups, checked as they pass by; `ranking` collects what is checked over all of them."""
    for table in row_groups(path):
        for name in has_nulls(table):
            raise ContractError(f"{path}: nulls in column {name}: delete it and dump it again")
        ranking.append(table.select(["utt_id", "rank", "weight"]))
        if not _check_lengths(table, footer, findings):
            continue  # nothing else in it can be told apart
        _check_paths(table, footer, findings)
        _check_distributions(table, footer, findings)
        _check_scores(table, findings)
        _check_texts(table, texts, tokenizer, findings)
        yield table


def _check_lengths(table: pa.Table, footer: TargetsFooter, findings: Findings) -> bool:
    utt_ids, found = table["utt_id"].to_pylist(), len(findings)
    nodes = _lengths(table, "path")
    findings.add("empty", utt_ids, nodes == 0, lambda r: "the path is empty")
    for name in ("topk_ids", "topk_logp"):
        lengths = _lengths(table, name)
        findings.add(
            name,
            utt_ids,
            lengths != nodes * footer.top_k,
            lambda r, name=name, lengths=lengths: (  # type: ignore[misc]
                f"{name} has {lengths[r]} entries for {nodes[r]} nodes x top_k {footer.top_k}"
            ),
        )
    return len(findings) == found


def _check_paths(table: pa.Table, footer: TargetsFooter, findings: Findings) -> None:
    """T blanks, the last one at the end, and ids of the vocabulary."""
    utt_ids, tokens_N, ends_R = table["utt_id"].to_pylist(), _flat(table, "path"), _lengths(table, "path").cumsum()
    row_N = np.repeat(np.arange(len(table)), _lengths(table, "path"))
    blanks_R = np.diff(np.concatenate([[0], np.cumsum(tokens_N == BLANK)[ends_R - 1]]))
    frames_R, last_R = table["num_frames"].to_numpy(), tokens_N[ends_R - 1]
    findings.add(
        "blanks",
        utt_ids,
        blanks_R != frames_R,
        lambda r: f"the path's {blanks_R[r]} blanks differ from num_frames {frames_R[r]}",
    )
    findings.add("end", utt_ids, last_R != BLANK, lambda r: f"the path ends with token {last_R[r]}, not with blank")
    ids = {"path": (tokens_N, row_N), "topk_ids": (_flat(table, "topk_ids"), np.repeat(row_N, footer.top_k))}
    for name, (values, row_of) in ids.items():
        findings.add(
            f"ids {name}",
            utt_ids,
            values >= footer.vocab_size,
            lambda n, name=name, values=values: (  # type: ignore[misc]
                f"id {values[n]} in {name} is outside the vocabulary of {footer.vocab_size}"
            ),
            row_of,
        )


def _check_distributions(table: pa.Table, footer: TargetsFooter, findings: Findings) -> None:
    """Distinct classes, most probable first, that with their tail have the mass 1."""
    utt_ids, top_k = table["utt_id"].to_pylist(), footer.top_k
    row_N = np.repeat(np.arange(len(table)), _lengths(table, "path"))
    ids_NK = _flat(table, "topk_ids").astype(np.int64).reshape(-1, top_k)
    logp_NK = _flat(table, "topk_logp").astype(np.float32).reshape(-1, top_k)
    no_number_N = (np.isnan(logp_NK) | (logp_NK == np.inf)).any(1)
    findings.add("numbers", utt_ids, no_number_N, lambda n: "log-probabilities of a node are not numbers", row_N)
    is_stored_NK = logp_NK > -np.inf

    def add(kind: str, bad_N: np.ndarray, say: Callable[[int], str]) -> None:
        findings.add(kind, utt_ids, bad_N & ~no_number_N, say, row_N)

    add("first", ~is_stored_NK[:, 0], lambda n: "the most probable class of a node has probability 0")
    add(
        "order",
        np.any(logp_NK[:, 1:] > logp_NK[:, :-1], axis=1),
        lambda n: f"not most probable first: {logp_NK[n].tolist()}",
    )
    add("left out", ((ids_NK != 0) & ~is_stored_NK).any(1), lambda n: f"ids of classes left out: {ids_NK[n].tolist()}")
    # Ids beyond all vocabularies, each another, stand for the classes that are left out.
    sorted_NK = np.sort(np.where(is_stored_NK, ids_NK, 2**32 + np.arange(top_k)), axis=1)
    add("twice", (sorted_NK[:, 1:] == sorted_NK[:, :-1]).any(1), lambda n: f"a class twice: {ids_NK[n].tolist()}")
    with np.errstate(over="ignore"):
        p_NK = np.exp(logp_NK)
    mass_N, slack = p_NK.sum(1), MASS_SLACK + footer.logp_step
    add("mass", mass_N > 1 + slack, lambda n: f"probabilities of a node sum to more than 1: {mass_N[n]:.4f}")
    # No class outside is more probable than the last one inside, or than min_probability where the k were not needed.
    count_N = is_stored_NK.sum(1)
    largest_N = np.where(count_N == top_k, p_NK[:, -1], footer.min_probability)
    most_N = (footer.vocab_size - count_N) * largest_N * np.exp(footer.logp_step) + slack
    add(
        "tail",
        1 - mass_N > most_N,
        lambda n: (
            f"probabilities of a node are not normalised: {1 - mass_N[n]:.4f} is missing, at most {most_N[n]:.4f}"
            " can be in the tail"
        ),
    )


def _check_scores(table: pa.Table, findings: Findings) -> None:
    utt_ids = table["utt_id"].to_pylist()
    path_R, total_R = (table[name].to_numpy().astype(np.float64) for name in ("path_logp", "total_logp"))
    confidence_R = table["confidence"].to_numpy()
    with np.errstate(invalid="ignore", over="ignore"):
        above_R = path_R > total_R + SCORE_SLACK + 1e-4 * abs(total_R)
        finite_R = np.isfinite(path_R) & np.isfinite(total_R)
        posterior_R = np.exp(np.minimum(path_R - total_R, 0))
        wrong_R = ~(abs(confidence_R - posterior_R) <= SCORE_SLACK)
    say = [f"path_logp {path:.4f}, total_logp {total:.4f}" for path, total in zip(path_R, total_R, strict=True)]
    findings.add("finite", utt_ids, ~finite_R, lambda r: f"not finite: {say[r]}")
    findings.add("above", utt_ids, finite_R & above_R, lambda r: f"the path is more probable than all paths: {say[r]}")
    findings.add(
        "confidence",
        utt_ids,
        finite_R & wrong_R,
        lambda r: f"confidence {confidence_R[r]:.4f} does not follow: {say[r]}",
    )


def _check_texts(
    table: pa.Table, texts: dict[str, str | None] | None, tokenizer: Tokenizer | None, findings: Findings
) -> None:
    """The text is the manifest's where it has one, and the labels spell it."""
    utt_ids, found = table["utt_id"].to_pylist(), table["text"].to_pylist()
    is_given_R = np.array([origin == "viterbi" for origin in table["origin"].to_pylist()])
    if texts is not None:
        given = [text if is_given else None for text, is_given in zip(found, is_given_R, strict=True)]
        # Utterances that the manifest has not are found by the count.
        wrong = [utt_id in texts and texts[utt_id] != text for utt_id, text in zip(utt_ids, given, strict=True)]
        findings.add(
            "text",
            utt_ids,
            np.array(wrong),
            lambda r: f"text is {given[r]!r}, in the manifest it is {texts[utt_ids[r]]!r} (None: unlabelled)",
        )
    if tokenizer is None:
        return
    tokens_N, ends_R = _flat(table, "path"), _lengths(table, "path").cumsum()
    labels = [path[path != BLANK].tolist() for path in np.split(tokens_N, ends_R[:-1])]
    if max(map(max, filter(None, labels)), default=0) >= tokenizer.vocab_size:
        return  # noted already
    spelled = [tokenizer.decode(tokens) for tokens in labels]
    wrong = [
        tokens != tokenizer.encode(text) if is_given else spells != text
        for tokens, text, is_given, spells in zip(labels, found, is_given_R, spelled, strict=True)
    ]
    findings.add("labels", utt_ids, np.array(wrong), lambda r: f"the path spells '{spelled[r]}', text is '{found[r]}'")


def _check_ranking(table: pa.Table, findings: Findings) -> None:
    """An utterance's rows stand together, ranks 0, 1, ..., and their weights sum to 1."""
    rank_R, weight_R = table["rank"].to_numpy().astype(np.int64), table["weight"].to_numpy().astype(np.float64)
    utt_ids = table["utt_id"].to_pylist()
    names_R = np.array(utt_ids, dtype=object)
    starts = np.flatnonzero(np.concatenate([[True], names_R[1:] != names_R[:-1]]))
    sizes = np.diff(np.append(starts, len(table)))
    expected_R = np.arange(len(table)) - np.repeat(starts, sizes)
    findings.add(
        "ranks",
        utt_ids,
        rank_R != expected_R,
        lambda r: f"an utterance's ranks are not 0, 1, 2, ...: {rank_R[r]} where {expected_R[r]} should be",
    )
    findings.add("weight", utt_ids, ~(weight_R >= 0), lambda r: f"a weight is negative or not a number: {weight_R[r]}")
    sums_R = np.repeat(np.add.reduceat(weight_R, starts), sizes)
    findings.add(
        "weights",
        utt_ids,
        abs(sums_R - 1.0) > WEIGHT_SLACK,
        lambda r: f"an utterance's weights do not sum to 1, but to {sums_R[r]:.4f}",
    )


def _check_utterances(
    verdict: Verdict, ranking: list[pa.Table], texts: dict[str, str | None] | None, manifest: Path | None
) -> None:
    """A best target for each utterance of the manifest, once."""
    best = [utt_id for t in ranking for utt_id in t.filter(pc.equal(t["rank"], 0))["utt_id"].to_pylist()]
    counts = Counter(best)
    twice = [utt_id for utt_id, count in counts.items() if count > 1][:3]
    if texts is None:
        if twice or not best:
            verdict.problems.append(f"{verdict.path}: {len(best)} best targets, utterances twice: {twice}")
    elif twice or set(counts) != set(texts):
        missing, extra = sorted(set(texts) - set(counts))[:3], sorted(set(counts) - set(texts))[:3]
        verdict.problems.append(
            f"{verdict.path}: {len(best)} best targets for {len(texts)} utterances of {manifest} (missing {missing}, "
            f"not in the manifest {extra}, twice {twice})"
        )


def _flat(table: pa.Table, column: str) -> np.ndarray:
    return table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)


def _lengths(table: pa.Table, column: str) -> np.ndarray:
    return pc.list_value_length(table[column]).to_numpy().astype(np.int64)
