"""A small grammar of commands, dates, names, numbers and spelled words, in the upper case of LibriSpeech.

In RULES an upper-case word is read as it stands and a lower-case word stands for one of its expansions, each as likely
as the next (one that is listed twice is twice as likely).
"""

from __future__ import annotations

import random
from collections.abc import Iterator

_PHRASES = {
    "sentence": ["command", "command", "date", "person", "amount", "code", "code", "spelling", "route"],
    "command": [
        "please verb THE colour thing IN THE room",
        "please verb THE thing IN THE room AT clock",
        "please verb thing AND thing NUMBER number",
        "please verb THE colour thing AND THEN verb THE thing",
        "ERASE code",
        "PLEASE REPEAT code",
    ],
    "date": [
        "name name WAS BORN ON month day",
        "MEET name ON weekday AT clock",
        "weekday THE day OF month year",
        "month day year",
    ],
    "person": [
        "please CALL name name ON number number",
        "SEND THE MESSAGE TO name AND name ON weekday",
        "name LIVES IN city AND name IN city",
        "name letter name AT code",
    ],
    "amount": [
        "thousands thing AND tens colour thing",
        "thousands POINT digit digit",
        "number HUNDRED AND number IN city",
    ],
    "code": [
        "letter letter digit digit letter",
        "letter digit letter digit letter letter",
        "digit digit digit letter letter digit",
        "letter letter letter letter digit",
        "digit digit digit digit digit digit digit",
    ],
    "spelling": [
        "SPELL name letter letter letter letter letter",
        "ENTER letter letter letter letter letter number",
        "letter letter letter letter letter letter letter",
    ],
    "route": [
        "FROM city TO city AT clock",
        "please GO TO city AND THEN TO city",
        "GO TO STREET NUMBER number letter IN city",
    ],
    "please": ["PLEASE", "NOW", "name", "name", "name PLEASE"],
    "day": ["ordinal", "ordinal", "teenth", "TWENTY ordinal", "TWENTY ordinal"],
    "teenth": ["TENTH", "TWELFTH"],
    "year": ["NINETEEN tens", "TWENTY teen", "TWENTY TWENTY digit"],
    "clock": ["hour", "hour tens", "hour teen"],
    "tens": ["ty", "ty digit"],
    "number": ["digit", "teen", "tens", "tens"],
    "thousands": ["digit THOUSAND number", "digit HUNDRED number", "tens THOUSAND digit HUNDRED"],
}
_WORDS = {
    "name": "ANNA BEN CLARA DAVID EMMA FRANK GRACE HENRY IRENE JACK KAREN LEO MARY NINA OSCAR PETER ROSA SIMON VICTOR",
    "city": "LONDON PARIS BOSTON DALLAS DENVER MADRID OSLO ROME BERLIN",
    "weekday": "MONDAY TUESDAY WEDNESDAY THURSDAY FRIDAY SATURDAY SUNDAY",
    "month": "JANUARY FEBRUARY MARCH APRIL MAY JUNE JULY AUGUST SEPTEMBER OCTOBER NOVEMBER DECEMBER",
    "ordinal": "FIRST SECOND THIRD FOURTH FIFTH SIXTH SEVENTH EIGHTH NINTH",
    "hour": "ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE TEN ELEVEN TWELVE",
    "digit": "ZERO ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE",
    "teen": "ELEVEN TWELVE THIRTEEN FOURTEEN FIFTEEN SIXTEEN SEVENTEEN EIGHTEEN NINETEEN",
    "ty": "TWENTY THIRTY FORTY FIFTY SIXTY SEVENTY EIGHTY NINETY",
    "verb": "OPEN CLOSE START STOP SHOW FIND MOVE",
    "thing": "DOOR WINDOW LIGHT LAMP FILE PAGE CAMERA RADIO HEATER BOX",
    "colour": "RED GREEN BLUE YELLOW WHITE BLACK BROWN GREY",
    "room": "KITCHEN GARAGE OFFICE GARDEN HALL",
    "letter": "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z",
}
RULES = _PHRASES | {symbol: words.split() for symbol, words in _WORDS.items()}


def expand(symbol: str, rng: random.Random) -> str:
    """One random sentence (or phrase) of the grammar, words joined by single spaces."""
    if symbol not in RULES:
        return symbol
    return " ".join(expand(part, rng) for part in rng.choice(RULES[symbol]).split())


def vocabulary() -> list[str]:
    """Every word of the grammar, sorted."""
    parts = {part for expansions in RULES.values() for expansion in expansions for part in expansion.split()}
    return sorted(parts - RULES.keys())


def new_sentences(rng: random.Random, taken: set[str]) -> Iterator[str]:
    """Endless sentences that are not in `taken`, each added to it: what one split has, no other has."""
    while True:
        sentence = expand("sentence", rng)
        if sentence not in taken:
            taken.add(sentence)
            yield sentence
