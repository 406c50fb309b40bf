"""A page in a real browser: Chromium without a window, driven by a script that is appended to the page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *(
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        "--mute-audio",
        "--force-device-scale-factor=1",
    ),
    "--autoplay-policy=no-user-gesture-required",
)


def browser() -> str:
    """The browser's program; the test is skipped where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser here: none of {', '.join(NAMES)} is on the PATH")
    return found


def run_in_page(page: Path, script: str, folder: Path, size: tuple[int, int] = (1280, 1400)) -> Any:
    """What the body of an async function returns in the loaded page, as JSON; errors of the page fail the test."""
    scripted = folder / "scripted.html"
    early = "<script>window.failures = []; onerror = message => { failures.push(message) };</script><title>"
    late = f"""<script>(async () => {{
        const out = document.body.appendChild(document.createElement("pre"));
        out.id = "results";
        const wait = ms => new Promise(done => setTimeout(done, ms));
        // The page's clock runs ahead of sound, which takes real time: many short waits give it some.
        const until = async met => {{ for (let i = 0; !met() && i < 500000; i++) await wait(1); }};
        let value = null;
        try {{ value = await (async () => {{ {script} }})(); }} catch (error) {{ failures.push(String(error)); }}
        out.textContent = JSON.stringify({{value, failures}});
    }})();</script></body>"""
    text = page.read_text(encoding="utf-8")
    scripted.write_text(text.replace("<title>", early, 1).replace("</body>", late), encoding="utf-8")
    dom = _run(scripted, folder, size, "--virtual-time-budget=2000000", "--dump-dom")
    found = re.search(r'<pre id="results">(.+?)</pre>', dom, flags=re.DOTALL)
    assert found, "the page's script did not end"
    results = json.loads(unescape(found[1]))
    assert results["failures"] == [], results["failures"]
    return results["value"]


def screenshot(page: Path, out: Path, folder: Path, size: tuple[int, int]) -> None:
    """A picture of the page, PNG."""
    _run(page, folder, size, "--virtual-time-budget=3000", f"--screenshot={out}")


def _run(page: Path, folder: Path, size: tuple[int, int], *flags: str) -> str:
    size_flag = f"--window-size={size[0]},{size[1]}"
    command = [browser(), *FLAGS, f"--user-data-dir={folder / 'profile'}", size_flag, *flags, page.resolve().as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
