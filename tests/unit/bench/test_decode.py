"""The decoding benchmark's parts: torchaudio is given the same network, and what was made says what it was made for."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdtrans.bench.decode import BEAM, LIMITS, MAX_SYMBOLS, measure_searches, measure_streaming, torchaudio_beam
from kdtrans.bench.peaky import Material, synthetic
from kdtrans.scoring.wer import word_error_rate
from kdtrans.search.beam import beam
from kdtrans.search.greedy import greedy


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return synthetic(tmp_path_factory.mktemp("bench"), utterances=3)


def test_the_network_says_what_it_was_made_for(material: Material) -> None:
    decoded = greedy(material.model, material.enc_BTE, material.lengths_B, MAX_SYMBOLS)
    assert word_error_rate(material.references, [material.text(found.tokens) for found in decoded]) < 5


def test_torchaudio_finds_the_same(material: Material) -> None:
    pytest.importorskip("torchaudio")
    enc_BTE, lengths_B = material.enc_BTE[-1:, :40], material.lengths_B[-1:].clamp(max=40)
    (ours,) = beam(material.model, enc_BTE, lengths_B, BEAM, MAX_SYMBOLS)
    assert ours[0].tokens
    assert torchaudio_beam(material.model, enc_BTE, lengths_B) == [ours[0].tokens]


def test_every_ratio_is_there(material: Material, tmp_path: Path) -> None:
    pytest.importorskip("torchaudio")
    rows, ratios = measure_searches(material, peer_utterances=1, repeats=1)  # of torchaudio, the longest one
    assert ratios.keys() >= LIMITS.keys()
    assert all(value > 0 for value in ratios.values())
    assert {row.unit for row in rows} == {"CPU s", "%"}
    streaming = measure_streaming(material)
    assert [row.name.split(",")[1].strip() for row in streaming] == ["greedy", "greedy", "beam", "beam"]
    for p50, p90 in zip(streaming[::2], streaming[1::2], strict=True):
        assert 0 < p50.median <= p90.median
