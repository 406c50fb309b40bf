"""What a hypothesis is compared with, read from the manifests without lhotse (which would import torch)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from kdtrans.contracts import ContractError, manifest_files, parse_cut, read_manifest_lines


@dataclass(frozen=True)
class Reference:
    """One utterance of a test set."""

    text: str | None  # None: unlabelled
    speaker: str
    seconds: float


def read_references(paths: Iterable[Path]) -> dict[str, Reference]:
    """Read the text, speaker and duration of every utterance of some manifest files or folders, by utterance id.

    Raises:
        ContractError: naming the file that is missing, not whole, not a manifest, or that repeats an id.
    """
    references: dict[str, Reference] = {}
    for path in manifest_files(paths):
        for number, line in enumerate(read_manifest_lines(path), 1):
            utt_id, reference = _parse(line, f"{path}:{number}")
            if utt_id in references:
                raise ContractError(f"{path}:{number}: id '{utt_id}' appears twice: ids must be unique")
            references[utt_id] = reference
    return references


def match_hypotheses(hypotheses: pa.Table, references: dict[str, Reference], source: Path) -> dict[str, str]:
    """The best hypothesis of every utterance, in the order of the references.

    Args:
        hypotheses: rows of contracts.HYPOTHESES; only rank 0 is used.
        references: the utterances that must be there, by id.
        source: the hypothesis file, for the message.

    Raises:
        ContractError: naming the utterances without a hypothesis, with two, or that are not in the manifest, and those
            that the manifest has no text for.
    """
    best = hypotheses.filter(pc.equal(hypotheses["rank"], 0))
    ids, texts = best["utt_id"].to_pylist(), best["text"].to_pylist()
    found = dict(zip(ids, texts, strict=True))
    twice = sorted(utt_id for utt_id in found if ids.count(utt_id) > 1) if len(found) < len(ids) else []
    problems = {
        "have no hypothesis": [utt_id for utt_id in references if utt_id not in found],
        "are not in the manifest": [utt_id for utt_id in found if utt_id not in references],
        "have two best hypotheses": twice,
        "have no reference text": [utt_id for utt_id, reference in references.items() if reference.text is None],
    }
    messages = [f"{len(utts)} utterances {what} ({_some(utts)})" for what, utts in problems.items() if utts]
    if messages:
        raise ContractError(f"{source}: {'; '.join(messages)}: decode and score the same, labelled manifest")
    return {utt_id: found[utt_id] or "" for utt_id in references}


def _parse(line: str, where: str) -> tuple[str, Reference]:
    cut = parse_cut(line, where)
    (supervision,) = cut["supervisions"]
    return cut["id"], Reference(supervision.get("text"), supervision.get("speaker") or "", float(cut["duration"]))


def _some(utterances: list[str]) -> str:
    return ", ".join(utterances[:3]) + (", ..." if len(utterances) > 3 else "")
