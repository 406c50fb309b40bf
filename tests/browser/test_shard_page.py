"""The page of a target shard in Chromium: the table sorts and filters, sound plays, pictures are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdtrans.report.shard_page import shard_page
from kdtrans.report.stored_paths import ShardReader
from tests.browser.chromium import browser, run_in_page, screenshot
from tests.unit.report.shards import HOSTILE, PATH, target, write

PIECES = ["<blank>", "<unk>", "▁o<b>", "n", "e"]
SECONDS = 0.16  # of PATH
TABLE = """
    const column = n => [...document.querySelectorAll("#utterances tbody tr")].filter(row => !row.hidden)
        .map(row => row.cells[n].textContent);
    const press = name => [...document.querySelectorAll("#utterances th button")]
        .find(button => button.textContent === name).click();
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four utterances: the first two with pictures, the first with sound, the second with a hostile id and 2 ranks."""
    browser()
    folder = tmp_path_factory.mktemp("page")
    rows = [
        target("u10", "one two", 0.5),
        target(
            HOSTILE,
            "</script><img src=x onerror='failures.push(1)'> & \"quoted\" \u202eright to left",
            0.25,
            weight=0.7,
        ),
        target(HOSTILE, "second best", 0.125, rank=1, weight=0.3, path=[0, 0, 0, 2, 0]),
        target("u2", "ÜBER two", 1e-7),
        target("u3", "three", 0.9, path=[2, 0, 0]),
    ]
    shard = ShardReader.open(write(folder / "part.parquet", rows))
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(16000 * SECONDS)) / 16000)
    text = shard_page("part <1>", "by", shard.footer, shard.paths(), PIECES, {"u10": tone}, most=2)
    (folder / "page.html").write_text(text, encoding="utf-8")
    return folder / "page.html"


def test_table_sorts_both_ways_and_filters(page: Path, tmp_path: Path) -> None:
    script = f"""{TABLE}
        const orders = {{"as stored": column(0)}};
        for (const name of ["confidence", "utterance", "labels"]) {{
            press(name); orders[name + " up"] = column(0);
            press(name); orders[name + " down"] = column(0);
        }}
        const head = document.querySelector("th[aria-sort]"), sorted = head.textContent + " " + head.ariaSort;
        const set = (id, value) => {{ const box = document.getElementById(id); box.value = value; box.oninput(); }};
        press("utterance");
        set("find", "über"); orders["über"] = column(0);
        set("find", "TWO"); orders["two"] = column(0);
        set("least", "0.001"); orders["two, sure"] = column(0);
        const told = document.getElementById("shown").textContent;
        set("find", ""); set("least", ""); orders["all"] = column(0);
        return {{orders, told, sorted}};
    """
    found = run_in_page(page, script, tmp_path)
    by_confidence = ["u2", HOSTILE, "u10", "u3"]
    by_name = [HOSTILE, "u10", "u2", "u3"]
    assert found["orders"] == {
        "as stored": ["u10", HOSTILE, "u2", "u3"],
        "confidence up": by_confidence,
        "confidence down": by_confidence[::-1],
        "utterance up": by_name,
        "utterance down": by_name[::-1],
        "labels up": ["u3", "u2", "u10", HOSTILE],  # the sort is stable
        "labels down": ["u2", "u10", HOSTILE, "u3"],
        "über": ["u2"],
        "two": ["u10", "u2"],
        "two, sure": ["u10"],
        "all": by_name,
    }
    assert found["told"] == "1 of 4 utterances"
    assert found["sorted"] == "labels descending"


def test_sound_plays_and_moves_the_cursor(page: Path, tmp_path: Path) -> None:
    script = """
        const audio = document.getElementById("audio"), cursor = document.getElementById("cursor");
        await until(() => audio.readyState >= 2);
        const seen = {ready: audio.readyState, duration: audio.duration, before: cursor.hidden};
        stack.onclick({clientX: stack.getBoundingClientRect().left + geometry.x(0.08)});
        await until(() => !audio.seeking && !cursor.hidden);
        seen.sought = audio.currentTime;
        seen.place = parseFloat(cursor.style.left) - geometry.x(0.08);
        audio.currentTime = 0;
        audio.play();
        await until(() => audio.currentTime > 0);
        seen.played = audio.currentTime;
        rows[1].click();
        await wait(50);
        return {...seen, hidden: audio.hidden, paused: audio.paused};
    """
    seen = run_in_page(page, script, tmp_path)
    assert seen["ready"] >= 2
    assert seen["duration"] == pytest.approx(SECONDS, abs=1e-3)
    assert seen["sought"] == pytest.approx(0.08, abs=1e-3)
    assert abs(seen["place"]) < 1.5
    assert seen["played"] > 0
    assert (seen["before"], seen["hidden"], seen["paused"]) == (True, True, True)


def test_pictures_are_drawn(page: Path, tmp_path: Path) -> None:
    script = """
        const colours = id => {
            const {width, height} = document.getElementById(id);
            const points = document.getElementById(id).getContext("2d").getImageData(0, 0, width, height).data;
            return new Set(new Uint32Array(points.buffer)).size;
        };
        const look = () => ({
            colours: Object.fromEntries(["spectrogram", "entropy", "heat", "axis"].map(id => [id, colours(id)])),
            d: document.querySelector("#grid path").getAttribute("d"),
            labels: [...document.querySelectorAll("#grid text:not(.most)")].map(text => text.textContent),
            title: document.getElementById("spectrogram-title").textContent,
        });
        const left = (node, slot) => stack.getBoundingClientRect().left + geometry.x((node + slot) * 0.04);
        const told = () => document.getElementById("node").innerText;
        const pictures = {first: look()};
        stack.onpointermove({clientX: left(3, 0.1)});
        pictures.hovered = told();
        stack.onpointermove({clientX: left(3, 0.9)});
        pictures.last = told();
        rows[1].click();
        pictures.second = look();
        pictures.ranks = document.querySelectorAll("#ranks button").length;
        document.querySelectorAll("#ranks button")[1].click();
        pictures.other = look();
        rows[2].click();
        pictures.without = document.getElementById("pictures").hidden;
        return pictures;
    """
    found = run_in_page(page, script, tmp_path)
    assert min(found["first"]["colours"].values()) >= 4
    assert found["first"]["colours"]["spectrogram"] > 50
    for name, path in (("first", PATH), ("second", PATH), ("other", [0, 0, 0, 2, 0])):
        steps = [letter for letter in found[name]["d"] if letter.isalpha()]
        assert steps == ["M", *("H" if token == 0 else "V" for token in path)]
        assert found[name]["labels"] == [PIECES[token] for token in path if token]
    assert found["first"]["title"].startswith("Spectrogram")
    assert found["second"]["title"] == "Labels where they are emitted (no audio on this page)"
    assert found["ranks"] == 2
    assert found["without"] is True
    assert "0.12 s, emits n" in found["hovered"]
    assert "n\t0.750" in found["hovered"]
    assert "blank\t0.200" in found["hovered"]
    assert "others\t0.050" in found["hovered"]
    assert "0.12 s, blank" in found["last"]
    assert "▁o<b>" not in found["last"]  # the class that is left out
    assert "others\t0.250" in found["last"]


def test_hostile_texts_stay_texts(page: Path, tmp_path: Path) -> None:
    script = """
        rows[1].click();
        await wait(100);
        return {name: document.getElementById("name").textContent, images: document.images.length,
                spoken: document.getElementById("spoken").textContent, scripts: document.scripts.length};
    """
    found = run_in_page(page, script, tmp_path)  # fails when a hostile text runs
    assert found["name"] == HOSTILE
    assert found["spoken"].startswith("</script><img src=x")
    assert found["images"] == 0
    assert found["scripts"] == 4  # the data, the page's, and two of the test


@pytest.mark.parametrize("width", [1280, 500])
def test_pictures_fit_the_window(page: Path, tmp_path: Path, width: int) -> None:
    found = run_in_page(page, "return document.documentElement.scrollWidth", tmp_path, size=(width, 1400))
    assert found <= width
    screenshot(page, tmp_path / "page.png", tmp_path, (width, 1400))
    assert (tmp_path / "page.png").stat().st_size > 20_000
