"""Which run of a sweep is kept: the one with the lowest WER on dev, for each system."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdtrans.artifacts import read_json
from kdtrans.contracts import ContractError, ScoreSummary

DEV = "dev"


def read_summary(path: Path) -> ScoreSummary:
    """Read a score summary; raises ContractError naming the file that is none."""
    try:
        return ScoreSummary.from_json(read_json(path))
    except (KeyError, TypeError) as error:
        raise ContractError(f"{path} is not a score summary ({error!r}): score again") from None


def read_dev_scores(paths: Sequence[Path]) -> list[ScoreSummary]:
    """Read the scores to choose between, by rising WER.

    Raises:
        ContractError: naming the file that was scored on another set than dev (a WER that something was chosen by is no
            result any more), that repeats a run, or that was decoded with another search than the others.
        ValueError: when there is no score.
    """
    scores: dict[str, ScoreSummary] = {}
    for path in paths:
        score = read_summary(path)
        if score.testset != DEV:
            raise ContractError(f"{path} was scored on '{score.testset}': a choice is made on '{DEV}' only")
        if score.run in scores:
            raise ContractError(f"{path}: the run '{score.run}' is given twice: give each score once")
        scores[score.run] = score
        first = next(iter(scores.values()))
        if score.search != first.search:
            raise ContractError(
                f"{path} was decoded with '{score.search}', the run '{first.run}' with '{first.search}': choose "
                "between runs of one search"
            )
    if not scores:
        raise ValueError("sweep is empty: name systems and values in `sweep` of the configuration")
    return sorted(scores.values(), key=lambda score: score.wer)


def chosen_runs(scores: Sequence[ScoreSummary]) -> dict[str, str]:
    """System -> its run with the lowest WER; of equals the first."""
    best: dict[str, ScoreSummary] = {}
    for score in scores:
        if score.system not in best or score.wer < best[score.system].wer:
            best[score.system] = score
    return {system: score.run for system, score in best.items()}
