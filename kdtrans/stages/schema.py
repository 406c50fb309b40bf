"""Print the JSON schema of config.yaml."""

from __future__ import annotations

from pathlib import Path


def main(out: Path | None = None) -> None:
    """Print the JSON schema of config.yaml, for editors and for Snakemake's own check.

    Args:
        out: write it to this file instead.
    """
    import json

    from kdtrans.artifacts import write_json
    from kdtrans.config import json_schema

    if out is None:
        print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    else:
        write_json(out, json_schema())
