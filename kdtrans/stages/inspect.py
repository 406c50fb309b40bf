"""Show what a file of the workflow holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from kdtrans.report.describe import Description

RECOGNISED = (
    "manifests (.jsonl.gz), target shards, hypotheses, alignments and per-utterance counts (.parquet), "
    "checkpoints and LSTM language models (.pt), score summaries (.score.json), and directories of these"
)


def main(file: Path, /, *, tokenizer: Path | None = None) -> None:
    """Summarise a manifest, target shard, checkpoint, hypothesis file or score; list the files of a directory.

    Args:
        file: the file or directory.
        tokenizer: sentencepiece model, to show the tokens of paths as text.
    """
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist")
    if file.is_dir():
        _list(file)
        return
    description = describe(file, tokenizer)
    if description is None:
        raise ValueError(f"{file} is not recognised; inspect reads {RECOGNISED}")
    console.print(
        f"[bold]{escape(file.name)}[/bold]  {description.kind}, {file.stat().st_size / 1e6:.2f} MB", highlight=False
    )
    _show(description, console)


def describe(file: Path, tokenizer: Path | None = None) -> Description | None:
    """The description of a file by its kind; None when it is no kind of file that is known here."""
    from kdtrans.report import describe as kinds

    if file.name.endswith(".jsonl.gz"):
        return kinds.describe_manifest(file)
    if file.name.endswith(".score.json"):
        return kinds.describe_score(file)
    if file.suffix == ".pt":
        return _describe_checkpoint(file)
    if file.suffix != ".parquet":
        return None
    match kinds.parquet_kind(file):
        case "targets":
            return kinds.describe_targets(file, _pieces(tokenizer))
        case "hypotheses":
            return kinds.describe_hypotheses(file)
        case "counts":
            return kinds.describe_counts(file)
        case "alignments":
            return kinds.describe_alignments(file)
    return None


def _describe_checkpoint(file: Path) -> Description:
    """A finished model (contracts.MODEL_KEYS), the state that a trainer resumes from, or an LSTM language model."""
    from kdtrans.report.describe import Description
    from kdtrans.training.checkpoint import load_torch, read_model

    content = load_torch(file)
    if "lm" in content:
        facts = {key: str(content[key]) for key in ("vocab_size", "tokenizer_sha256")}
        facts |= {"dev perplexity": f"{content['dev_perplexity']:.2f} a piece", "config": json.dumps(content["config"])}
        line = f"LSTM, dev perplexity {content['dev_perplexity']:.2f}"
        return Description("language model", line, facts)
    if "average" in content:
        step, weights = content["step"], content["average"]
        best_step, best_wer = content.get("best", (step, content.get("dev_wer")))
        facts = {"step": f"{step:,}", "lowest dev WER": f"{best_wer:.2f} % at step {best_step:,}"}
        purpose = "to resume from" if "optimizers" in content else "the best so far"
        description = Description("training state", f"step {step}, {purpose}", facts)
    else:
        content = read_model(file)
        line = f"{content['kind']}, step {content['step']}, dev WER {content['dev_wer']:.2f} %"
        facts = {key: str(content[key]) for key in ("kind", "step", "vocab_size", "fingerprint", "tokenizer_sha256")}
        facts |= {"dev WER": f"{content['dev_wer']:.2f} %", "config": json.dumps(content["config"])}
        description = Description("checkpoint", line, facts)
        weights = content["state_dict"]
    sizes: dict[str, int] = {}
    for name, tensor in weights.items():
        module = name.split(".")[0]
        sizes[module] = sizes.get(module, 0) + tensor.numel()
    total = sum(sizes.values())
    description.facts["parameters"] = f"{total:,}, of which decoding uses {total - sizes.get('ctc', 0):,}"
    description.header, description.table = ["module", "parameters", "share"], "parameters by module"
    description.rows = [[module, f"{size:,}", f"{100 * size / total:.1f} %"] for module, size in sizes.items()]
    return description


def _pieces(tokenizer: Path | None) -> list[str] | None:
    if tokenizer is None:
        return None
    from kdtrans.data.tokenizer import Tokenizer

    return Tokenizer(tokenizer).pieces


def _show(description: Description, console: Console) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for key, value in description.facts.items():
        facts.add_row(Text(key), Text(value))
    console.print(facts)
    if description.rows:
        table = Table(*description.header, box=box.SIMPLE_HEAD, title=description.table, title_justify="left")
        for row in description.rows:
            table.add_row(*map(Text, row))
        console.print(table)


def _list(folder: Path) -> None:
    """One line for each recognised file; a broken one is named and does not hide the others."""
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        try:
            description = describe(path)
        except (ValueError, OSError) as error:
            lines.append((str(path.relative_to(folder)), "broken", str(error)))
            continue
        if description:
            lines.append((str(path.relative_to(folder)), description.kind, description.line))
    if not lines:
        raise ValueError(f"{folder}: no file in it is recognised; inspect reads {RECOGNISED}")
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    for name, kind, text in lines:
        print(f"{name:{widths[0]}}  {kind:{widths[1]}}  {text}")
