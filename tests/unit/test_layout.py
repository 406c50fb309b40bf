"""Which run is decoded with which search."""

from __future__ import annotations

import pytest

from kdtrans.config import Config, validate
from kdtrans.layout import Layout


@pytest.mark.parametrize(("predictor", "teachers"), [("lstm", ["greedy"]), ("stateless", ["greedy", "fsa", "again"])])
def test_a_search_decodes_the_runs_that_it_can(predictor: str, teachers: list[str]) -> None:
    """A streaming search streaming students; k2's, or what ranks it anew, the teacher with a stateless predictor."""
    values = {
        "teacher": {"predictor": {"type": predictor}},
        "systems": {"baseline": {}, "streaming": {"encoder": {"streaming": {}}}},
        "decode": {
            "searches": {
                "greedy": {},
                "beam_lm": None,
                "fsa": {"type": "fsa"},
                "again": {"type": "beam", "lm": "ngram", "rescore": "fsa"},
                "short": {"chunk_ms": 320},
            }
        },
    }
    layout = Layout(validate(Config, values, "here"))
    assert layout.searches_of("teacher") == teachers
    assert layout.searches_of("baseline") == ["greedy", "fsa", "again"]
    assert layout.searches_of("streaming") == ["greedy", "fsa", "again", "short"]
