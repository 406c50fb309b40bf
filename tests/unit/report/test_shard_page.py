"""What is put on the page of a shard; how it looks and works is tested in tests/browser."""

from __future__ import annotations

import base64
import io
import json
import re
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrans.report.shard_page import LEFT_OUT, LOGP_UNIT, embedded_json, shard_page
from kdtrans.report.spectrogram import BANDS, log_mel_bytes, mel_filters
from kdtrans.report.stored_paths import ShardReader
from tests.unit.report.shards import HOSTILE, PATH, target, write


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="shard">(.*?)</script>', page, flags=re.DOTALL)
    assert found
    return json.loads(found[1])


def words(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<u2")


@pytest.fixture
def page(tmp_path: Path) -> str:
    rows = [
        target("u1", weight=0.6),
        target("u1", rank=1, weight=0.4, path=[2, 0]),
        target(HOSTILE, HOSTILE),
        target("u3"),
    ]
    shard = ShardReader.open(write(tmp_path / "part.parquet", rows, {"code_revision": HOSTILE}))
    samples = {"u1": np.array([0.0, 0.5, -2.0, 1.0])}
    return shard_page(HOSTILE, HOSTILE, shard.footer, shard.paths(), None, samples, most=2)


def test_what_comes_back_is_what_is_stored(page: str) -> None:
    data = data_of(page)
    first, second, third = data["utterances"]
    assert (first["id"], first["seconds"], first["labels"], first["rate"]) == ("u1", 0.16, 3, 18.75)
    assert ["paths" in entry for entry in (first, second, third)] == [True, True, False]
    assert ["wav" in entry for entry in (first, second, third)] == [True, False, False]
    best, other = first["paths"]
    assert words(best["path"]).tolist() == PATH
    assert (words(other["path"]).tolist(), other["weight"], other["k"]) == ([2, 0], 0.4, 2)
    logp = words(best["logp"]).reshape(-1, 2)
    assert logp[-1, 1] == LEFT_OUT
    stored = np.log(np.array([0.75, 0.2])).astype(np.float16)
    assert logp[0] * -LOGP_UNIT == pytest.approx(stored, abs=LOGP_UNIT)
    expected = -(0.75 * np.log(0.75) + 0.2 * np.log(0.2) + 0.05 * np.log(0.05))
    assert words(best["entropy"])[0] / 1000 == pytest.approx(expected, abs=2e-3)
    assert words(best["tail"])[-1] / 65535 == pytest.approx(0.25, abs=1e-3)


def test_sound_is_16_bit_wav_that_does_not_wrap(page: str) -> None:
    with wave.open(io.BytesIO(base64.b64decode(data_of(page)["utterances"][0]["wav"]))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
        assert np.frombuffer(file.readframes(9), "<i2").tolist() == [0, 16384, -32767, 32767]


def test_hostile_texts_are_escaped_and_nothing_is_loaded(page: str) -> None:
    assert HOSTILE not in page
    assert page.count("<script") == 2
    assert not re.search(r"(src|href)=.http|url\(|@import", page)
    assert "default-src 'none'" in page


@given(st.text() | st.sampled_from(["</script>", "<!--<script>", "\u2028\x00'\"&"]))
@settings(deadline=None)
def test_embedded_json_holds_any_text(text: str) -> None:
    embedded = embedded_json({"text": text})
    assert "<" not in embedded
    assert json.loads(embedded) == {"text": text}


def test_spectrogram_shows_a_tone_where_it_is() -> None:
    time = np.arange(8000) / 16000
    mel_FM = log_mel_bytes(np.where(time < 0.25, np.sin(2 * np.pi * 1000 * time), 0.0), 16000)
    assert mel_FM.shape == (51, BANDS)
    filters = mel_filters(512, 16000)
    assert filters.sum(1) == pytest.approx(np.ones(BANDS))
    assert mel_FM[5:20].mean(0).argmax() == filters[:, round(1000 * 512 / 16000)].argmax()
    assert mel_FM.max() == 255
    assert mel_FM[30:].max() == 0  # silence
    assert log_mel_bytes(np.zeros(10), 16000).shape == (1, BANDS)
