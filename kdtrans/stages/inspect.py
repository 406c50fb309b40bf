"""Show what a file of the workflow holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from kdtrans.report.describe import Description
    from kdtrans.report.stored_paths import ShardReader, StoredPath

RECOGNISED = (
    "manifests (.jsonl.gz), target shards, hypotheses, alignments and per-utterance counts (.parquet), "
    "checkpoints and LSTM language models (.pt), score summaries (.score.json), and directories of these"
)


def main(
    file: Path,
    /,
    *,
    tokenizer: Path | None = None,
    utt: str | None = None,
    html: Path | None = None,
    cuts: list[Path] | None = None,
    most: int = 50,
) -> None:
    """Summarise a manifest, target shard, checkpoint, hypothesis file or score; list the files of a directory.

    A directory of target shards is summarised as a whole. Of targets, --utt shows one utterance's paths over time, and
    --html writes a page with tables, pictures and sound.

    Args:
        file: the file or directory.
        tokenizer: sentencepiece model, to show the tokens of paths as text.
        utt: show the paths of this utterance of a target shard, or of a directory of them.
        html: write a page of a target shard; with --utt, of this utterance alone.
        cuts: manifests of the shard's utterances, or their directory, for sound and spectrograms on the page.
        most: pictures and sound are put on the page for the first so many utterances.
    """
    from rich.console import Console
    from rich.markup import escape

    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist")
    if (cuts or most != 50) and html is None:
        raise ValueError("--cuts and --most are for a page: give --html OUT.html too")
    if utt is not None or html is not None:
        _inspect_paths(file, tokenizer, utt, html, cuts or [], most)
        return
    console = Console()
    if shards := _shards_of(file):
        from kdtrans.report.describe_targets import describe_target_folder

        console.print(f"[bold]{escape(str(file))}[/bold]  target shards", highlight=False, soft_wrap=True)
        _show(describe_target_folder(file, shards), console)
        return
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
    from kdtrans.report.describe_targets import describe_targets

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
            return describe_targets(file, _pieces(tokenizer, file))
        case "hypotheses":
            return kinds.describe_hypotheses(file)
        case "counts":
            return kinds.describe_counts(file)
        case "alignments":
            return kinds.describe_alignments(file)
    return None


def _inspect_paths(
    file: Path, tokenizer: Path | None, utt: str | None, html: Path | None, cuts: list[Path], most: int
) -> None:
    """Paths of target shards: one utterance's on the terminal, or a page."""
    from kdtrans.report.describe import parquet_kind
    from kdtrans.report.describe_targets import describe_path, find_paths
    from kdtrans.report.stored_paths import ShardReader

    is_shard = file.suffix == ".parquet" and parquet_kind(file) == "targets"
    files = [file] if is_shard else _shards_of(file)
    if not files:
        raise ValueError(f"{file}: --utt and --html are for target shards: give one, or their directory")
    if utt is None and file.is_dir():
        raise ValueError(f"{file}: a page is of one shard: give one of its {len(files):,}, or --utt")
    if utt is None:
        shard = ShardReader.open(file)
        paths = list(shard.paths())
    else:
        shard, paths = find_paths(map(ShardReader.open, _shards_with(file, files, utt)), utt)
    pieces = _pieces(tokenizer, shard.path)
    if html is not None:
        _write_page(html, shard, paths, pieces, cuts, most)
        return
    from rich.console import Console

    for path in paths:
        _show(describe_path(path, pieces), Console())


def _write_page(
    html: Path, shard: ShardReader, paths: list[StoredPath], pieces: list[str] | None, cuts: list[Path], most: int
) -> None:
    """Write the page and say what is on it."""
    from kdtrans.artifacts import code_revision, write_text
    from kdtrans.report.shard_page import shard_page

    if most < 0:
        raise ValueError(f"--most is {most}, but pictures are made of 0 utterances or more")
    utterances = list(dict.fromkeys(path.utt_id for path in paths))
    drawn = utterances[:most]
    samples = _samples(cuts, drawn) if cuts else {}
    created = shard.footer.get("created", "").replace("T", " ").replace("Z", " UTC")
    byline = f"kdtrans {code_revision()}, targets of {created or 'unknown date'}"
    write_text(html, shard_page(shard.path.name, byline, shard.footer, paths, pieces, samples, most))
    print(
        f"{html}: {len(utterances):,} utterances, {len(drawn):,} with pictures, {len(samples):,} with sound, "
        f"{html.stat().st_size / 1e6:.1f} MB"
    )


def _samples(cuts: list[Path], utterances: Sequence[str]) -> dict[str, np.ndarray]:
    """Audio (S,) of some utterances; manifests are read only until all are found.

    Raises:
        ValueError: when the manifests have none of them, or a file of sound cannot be read.
    """
    from kdtrans.contracts import manifest_files, parse_cut, read_manifest_lines
    from kdtrans.data.batches import load_waveform
    from kdtrans.data.manifest import read_cut

    wanted, samples = set(utterances), {}
    for path in manifest_files(cuts):
        for number, line in enumerate(read_manifest_lines(path), 1):
            where = f"{path}:{number}"
            utt_id = parse_cut(line, where)["id"]
            if utt_id in wanted:
                wanted.remove(utt_id)
                samples[utt_id] = load_waveform(read_cut(line, where)).numpy()
        if not wanted:
            break
    if utterances and not samples:
        raise ValueError(
            f"{cuts[0]} does not have '{utterances[0]}' or any other utterance: give this shard's manifests"
        )
    return samples


def _shards_of(folder: Path) -> list[Path]:
    """The shards of a directory that holds nothing else to be listed; else none."""
    if not folder.is_dir():
        return []
    known = (".jsonl.gz", ".score.json", ".pt", ".parquet")
    files = [path for path in folder.rglob("*") if path.name.endswith(known) and not path.name.startswith(".")]
    is_shard = [path.parent == folder and path.match("part-*.parquet") for path in files]
    return sorted(files) if all(is_shard) else []


def _shards_with(file: Path, files: list[Path], utt: str) -> list[Path]:
    """The shard that an index beside the shards names for an utterance; all of them where it names none."""
    arrow = file / "index.arrow"
    if not arrow.is_file():
        return files
    import pyarrow as pa

    from kdtrans.artifacts import read_json, sha256_file
    from kdtrans.contracts import ContractError
    from kdtrans.targets.index import read_rows, rows_with_key, utterance_key

    index = arrow.with_suffix(".json")
    try:
        facts = read_json(index)
        expected, shards = facts.get("index_sha256"), [file / shard["path"] for shard in facts["shards"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ContractError(f"{index} is not an index ({error!r}): run kdtrans verify again") from None
    # Damaged bytes may do more to the parser than raise.
    found = sha256_file(arrow)
    if expected is not None and found != expected:
        raise ContractError(f"{arrow} has SHA-256 {found}, {index} says {expected}: run kdtrans verify again")
    with pa.memory_map(str(arrow)) as source:
        rows = read_rows(source, str(arrow))
        numbers = {rows["shard"][row].as_py() for row in rows_with_key(rows["key"].to_numpy(), utterance_key(utt))}
    return [path for number, path in enumerate(shards) if number in numbers] or files


def _describe_checkpoint(file: Path) -> Description:
    """A finished model (contracts.MODEL_KEYS), the state that a trainer resumes from, or an LSTM language model."""
    from kdtrans.contracts import ContractError
    from kdtrans.training.checkpoint import load_torch

    content = load_torch(file)
    try:
        return _describe_content(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ContractError(f"{file} is no checkpoint and no language model of this workflow ({error!r})") from None


def _describe_content(content: dict[str, Any]) -> Description:
    from kdtrans.report.describe import Description

    if "lm" in content:
        facts = {key: str(content[key]) for key in ("vocab_size", "tokenizer_sha256")}
        facts |= {"dev perplexity": f"{content['dev_perplexity']:.2f} a piece", "config": json.dumps(content["config"])}
        line = f"LSTM, dev perplexity {content['dev_perplexity']:.2f}"
        return Description("language model", line, facts)
    if "optimizers" in content:
        step, weights, best = content["step"], content["average"], content["best"]
        facts = {"step": f"{step:,}", "lowest dev WER": f"{best['dev_wer']:.2f} % at step {best['step']:,}"}
        description = Description("training state", f"step {step}, to resume from", facts)
    else:
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


def _pieces(tokenizer: Path | None, shard: Path) -> list[str] | None:
    """The pieces of the tokenizer given, if any; it must be the one that the shard was made with."""
    if tokenizer is None:
        return None
    from kdtrans.contracts import ContractError, read_footer
    from kdtrans.data.tokenizer import Tokenizer

    given = Tokenizer(tokenizer)
    made_with = read_footer(shard).get("tokenizer_sha256", given.sha256)
    if made_with != given.sha256:
        raise ContractError(
            f"{shard} was made with tokenizer {made_with[:12]}, {tokenizer} is {given.sha256[:12]}: give its own"
        )
    return given.pieces


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
        table = Table(
            *description.header, box=box.SIMPLE_HEAD, pad_edge=False, title=description.table, title_justify="left"
        )
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
