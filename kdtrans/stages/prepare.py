"""Read a corpus into splits, checking its audio."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from kdtrans.artifacts import run_record, write_json, write_text
from kdtrans.config import CorpusConfig, read


def main(*, config: Path, root: Path, out_dir: Path) -> None:
    """Read the corpus's parts in their roles, split by speaker, check the audio, and write a manifest a split.

    Writes train.jsonl.gz, dev.jsonl.gz, {test set}.jsonl.gz, unlabelled_text.jsonl (for a diagnostic only) and, last,
    summary.json.

    Args:
        config: YAML file with the corpus section.
        root: folder of the corpus.
        out_dir: folder for the manifests.
    """
    from kdtrans.data.manifest import text_of, write_cuts
    from kdtrans.data.prepare import check_split, read_roles, shared_speakers

    corpus = read(CorpusConfig, config)
    with run_record(out_dir / "summary.json", "prepare", corpus.model_dump(mode="json")) as record:
        roles = read_roles(corpus, root)
        manifests: dict[str, list[Any]] = {}
        entries: dict[str, Any] = {}
        seen: dict[str, dict[str, Path]] = {}
        for name, utterances in roles.items():
            manifest = "train" if name.startswith("train-") else name
            cuts, entries[name] = check_split(name, utterances, corpus, seen.setdefault(manifest, {}))
            manifests.setdefault(manifest, []).extend(cuts)
        for name in roles:
            if name != "train-unlabelled" and entries[name]["utterances"] == 0:
                found, dropped = entries[name]["found"], entries[name]["dropped"]
                raise ValueError(f"{root}: nothing is left of {name}: found {found}, dropped {dropped}")
        for name, cuts in manifests.items():
            write_cuts(cuts, out_dir / f"{name}.jsonl.gz")
        kept = {cut.id for cut in manifests["train"] if text_of(cut) is None}
        hidden = [u for u in roles["train-unlabelled"] if u.text and u.id in kept]
        lines = [json.dumps({"utt_id": u.id, "text": u.text}, ensure_ascii=False) + "\n" for u in hidden]
        write_text(out_dir / "unlabelled_text.jsonl", "".join(lines))
        shared = shared_speakers(manifests)
        for pair, count in shared.items():
            print(f"kdtrans prepare: warning: {count} speakers are in {pair}", file=sys.stderr)
        write_json(out_dir / "summary.json", {"splits": entries, "shared_speakers": shared})
        record["utterances"] = {name: len(cuts) for name, cuts in manifests.items()}
