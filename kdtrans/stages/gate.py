"""Stop the workflow when the teacher is too weak to teach."""

from __future__ import annotations

from pathlib import Path


def main(config: Path, model: Path, out: Path) -> None:
    """Compare the teacher's dev WER with max_wer; above it, exit 1 and write nothing.

    Args:
        config: YAML of the teacher section.
        model: the teacher's checkpoint.
        out: the JSON to write when the teacher is good enough.

    Raises:
        ValueError: naming both values, when the teacher is too weak.
        ContractError: when the file is no whole model or holds no dev WER.
    """
    from kdtrans.artifacts import run_record, write_json
    from kdtrans.config import TeacherConfig, read
    from kdtrans.contracts import ContractError
    from kdtrans.training.checkpoint import read_model

    max_wer = read(TeacherConfig, config).max_wer
    with run_record(out, "gate", {"max_wer": max_wer}, [model]):
        dev_wer = read_model(model)["dev_wer"]
        if not isinstance(dev_wer, int | float):
            raise ContractError(
                f"{model}: the checkpoint's dev_wer is {dev_wer!r}, not a number: train the teacher again"
            )
        print(f"teacher: {dev_wer:.2f} % WER on dev, at most {max_wer:.2f} % is allowed")
        if not dev_wer <= max_wer:  # so written, NaN is refused too
            raise ValueError(
                f"{model}: dev WER {dev_wer:.2f} % is above teacher.max_wer {max_wer:.2f} %. A student "
                "learns its teacher's errors: train it longer (teacher.training.updates), on more labelled speech or "
                "from a better encoder; or raise teacher.max_wer to go on all the same"
            )
        write_json(out, {"dev_wer": dev_wer, "max_wer": max_wer})
