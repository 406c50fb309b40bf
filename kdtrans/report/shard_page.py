"""A target shard as one self-contained page: a table of its utterances, and for some of them sound and pictures.

Shapes: N = T + U path nodes, K stored classes a node, S samples, F frames of 10 ms, M mel bands.
"""

from __future__ import annotations

import base64
import io
import json
import wave
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby
from string import Template
from typing import Any

import numpy as np

from kdtrans.contracts import SAMPLE_RATE
from kdtrans.report.shard_script import SCRIPT
from kdtrans.report.shard_style import SHARD_STYLE
from kdtrans.report.spectrogram import BANDS, SHIFT_S, log_mel_bytes
from kdtrans.report.stored_paths import StoredPath
from kdtrans.report.style import STYLE

LOGP_UNIT = 1 / 2048  # nats; log-probabilities travel as uint16 multiples of it
LEFT_OUT = 65535  # in their place: the class is not stored

# The policy lets the page load nothing, whatever an utterance is called: it is one file, and quiet.
PAGE = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; media-src data:">
<title>$title</title>
<style>$style</style>
</head>
<body><main>
<h1>$title</h1>
<p class="byline">$byline</p>
<section class="list" aria-label="Utterances">
<form class="filters" onsubmit="return false">
<label>Find <input id="find" type="search" placeholder="id or text" autocomplete="off" spellcheck="false"></label>
<label>Confidence at least <input id="least" type="number" min="0" max="1" step="any" placeholder="0"></label>
<output id="shown"></output>
</form>
<div class="rows"><table id="utterances"><thead><tr></tr></thead><tbody></tbody></table></div>
</section>
<section id="detail" aria-label="Utterance" aria-live="off">
<h2 id="name"></h2>
<p id="spoken"></p>
<p id="facts" class="note"></p>
<div id="ranks" class="ranks" hidden></div>
<audio id="audio" controls preload="auto" hidden></audio>
<div id="pictures" class="pictures">
<div class="scroller" tabindex="0" aria-label="Pictures over time"><div class="stack">
<h3 id="spectrogram-title">Spectrogram, 0 to 8 kHz, with the labels where they are emitted</h3>
<canvas id="spectrogram"></canvas>
<h3>Path over the grid of frames and labels</h3>
<svg id="grid" role="img" aria-label="The path"></svg>
<h3>Entropy at each node, nats</h3>
<canvas id="entropy"></canvas>
<h3>Stored classes at each node, the most probable on top: <i class="blank"></i>blank, <i class="label"></i>labels;
a dot: the path's own token where it is not on top</h3>
<canvas id="heat"></canvas>
<canvas id="axis"></canvas>
<div id="pointer" class="hair" hidden></div><div id="cursor" class="hair now" hidden></div>
</div></div>
<aside id="node" aria-label="Node"></aside>
</div>
</section>
<details><summary>Provenance</summary>$provenance</details>
</main>
<script type="application/json" id="shard">$data</script>
<script>$script</script>
</body>
</html>
"""
)


def shard_page(
    title: str,
    byline: str,
    footer: Mapping[str, str],
    paths: Iterable[StoredPath],
    pieces: Sequence[str] | None,
    samples: Mapping[str, np.ndarray],
    most: int,
) -> str:
    """The whole page.

    Args:
        title: of the page.
        byline: below it.
        footer: the shard's provenance.
        paths: its rows in order; those of an utterance stand together, best first.
        pieces: the piece of each token id; ids are shown without it.
        samples: audio (S,) at 16 kHz in [-1, 1] by utterance id, of those that have it.
        most: the first so many utterances get pictures and, where `samples` has them, sound.
    """
    utterances: list[dict[str, Any]] = []
    for utt_id, group in groupby(paths, key=lambda row: row.utt_id):
        ranked = list(group)
        entry = table_entry(ranked[0])
        if len(utterances) < most:
            entry["paths"] = [path_entry(row) for row in ranked]
            if utt_id in samples:
                entry |= audio_entry(samples[utt_id])
        utterances.append(entry)
    data = {
        "utterances": utterances,
        "pieces": list(pieces) if pieces else None,
        "logp_unit": LOGP_UNIT,
        "left_out": LEFT_OUT,
        "bands": BANDS,
        "shift_s": SHIFT_S,
        "most": most,
    }
    items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in footer.items())
    return PAGE.substitute(
        title=escape(title),
        byline=escape(byline),
        style=STYLE + SHARD_STYLE,
        provenance=f"<dl>{items}</dl>",
        data=embedded_json(data),
        script=SCRIPT,
    )


def embedded_json(value: Any) -> str:
    """JSON that may stand in a <script> element: no `<` is left that could end it or open a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def table_entry(row: StoredPath) -> dict[str, Any]:
    """An utterance in the table, from its best path; numbers rounded to what is shown."""
    return {
        "id": row.utt_id,
        "seconds": round(row.seconds, 2),
        "labels": row.labels,
        "rate": round(row.labels / row.seconds, 2) if row.seconds else 0.0,
        "confidence": _significant(row.confidence),
        "tail": _significant(float(row.tails.mean())),
        "entropy": _significant(float(row.entropies.mean())),
        "text": row.text,
    }


def path_entry(row: StoredPath) -> dict[str, Any]:
    """A path and the distributions along it, as base64 of little-endian uint16: nodes (N,), classes (N, K)."""
    quantised_NK = np.round(-row.logp_NK.clip(max=0.0, min=-30.0) / LOGP_UNIT)
    logp_NK = np.where(np.isfinite(row.logp_NK), quantised_NK, LEFT_OUT)
    return {
        "rank": row.rank,
        "weight": _significant(row.weight),
        "origin": row.origin,
        "text": row.text,
        "confidence": _significant(row.confidence),
        "frames": row.num_frames,
        "frame_s": row.shift_s,
        "k": row.ids_NK.shape[1],
        "path": _base64(row.path_N.astype("<u2")),
        "ids": _base64(row.ids_NK.astype("<u2")),
        "logp": _base64(logp_NK.astype("<u2")),
        "entropy": _base64(np.round(row.entropies * 1000).astype("<u2")),  # milli-nats
        "tail": _base64(np.round(row.tails * 65535).astype("<u2")),
    }


def audio_entry(samples_S: np.ndarray) -> dict[str, str]:
    """The sound as a 16-bit WAV file and its spectrogram (F, M), both base64."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.round(samples_S.clip(-1, 1) * 32767).astype("<i2").tobytes())
    mel_FM = log_mel_bytes(samples_S, SAMPLE_RATE)
    return {"wav": base64.b64encode(buffer.getvalue()).decode(), "mel": _base64(mel_FM)}


def _significant(value: float) -> float | None:
    """Three significant digits; None where there is no number."""
    return float(f"{value:.3g}") if np.isfinite(value) else None


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
