"""What is said of k2's search where it cannot be done; what it finds is in tests/k2."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest

from kdtrans.config import SearchConfig
from kdtrans.losses.backends import INSTALL
from kdtrans.search.search import search
from tests.unit.search.test_search import make, some_speech


def test_without_k2_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> None:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(ValueError, match="k2: No module named 'k2'; to install it: ") as refused:
        search(make(1, kind="stateless"), *some_speech(1, [3]), SearchConfig(type="fsa"))
    assert INSTALL["k2"] in str(refused.value)


def test_an_lstm_predictor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace())
    with pytest.raises(ValueError, match=r"predictor\.type: stateless, .* LstmPredictor: decode it with type: beam"):
        search(make(1, kind="lstm"), *some_speech(1, [3]), SearchConfig(type="fsa"))
