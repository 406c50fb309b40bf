"""espeak-ng through ctypes: a speaker is an accent, a voice variant, a pitch, an intonation range and a rate."""

from __future__ import annotations

import ctypes
import random
import shutil
import tempfile
from dataclasses import dataclass
from types import TracebackType

import numpy as np

# Two accents that pronounce most words alike: a student has minutes, not days, to learn the others.
ACCENTS = ("en-us", "en-us-nyc")
# The variants of espeak-ng that sound like somebody: whispers, robots, echoes and noisy extremes are left out.
_VARIANTS = """
m1 m2 m3 m4 m5 m6 m7 m8 f1 f2 f3 f4 f5 klatt klatt2 klatt3 klatt4 Alex Annie Denis Diogo Gene Gene2 Henrique Hugo Mario
Michael Mike Nguyen adam anika antonio benjamin david ed edward grandpa gustave linda max michel miguel paul pedro
quincy rob robert steph2
"""
VARIANTS = _VARIANTS.split()

# speak_lib.h and espeak_ng.h
_ENOUTPUT_MODE_SYNCHRONOUS = 1
_POS_CHARACTER = 1
_CHARS_UTF8, _ENDPAUSE = 0x1, 0x1000
_RATE, _PITCH, _RANGE = 1, 3, 4
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Speaker:
    """One reader of the embedded corpus."""

    accent: str
    variant: str
    pitch: int  # 0..100, 50 is the variant's own
    pitch_range: int  # 0..100, 50 is the variant's own
    words_per_minute: int

    @property
    def voice(self) -> str:
        """The name by which espeak-ng knows the accent and variant."""
        return f"{self.accent}+{self.variant}"


def draw_speakers(count: int, rng: random.Random) -> list[Speaker]:
    """Speakers that differ in accent or variant as long as the combinations last (96 of them)."""
    voices = [(accent, variant) for accent in ACCENTS for variant in VARIANTS]
    if count > len(voices):
        raise ValueError(f"synth.voices is {count}, but there are only {len(voices)} voices: lower it")
    return [
        Speaker(accent, variant, rng.randint(35, 65), rng.randint(30, 70), rng.randint(105, 165))
        for accent, variant in rng.sample(voices, count)
    ]


class Synthesizer:
    """espeak-ng: `with Synthesizer() as synthesizer: synthesizer.read(text, speaker, seed)`."""

    def __init__(self) -> None:
        try:
            import espeakng_loader  # GPL-3: an optional extra, used by the embedded corpus only
        except ImportError:
            raise ValueError("the embedded corpus is read by espeak-ng: pip install 'kdtrans[demo]'") from None
        # The library's state outlives espeak_ng_Terminate; a copy under another name is loaded anew, with fresh state.
        with tempfile.TemporaryDirectory() as folder:
            self._library = ctypes.CDLL(shutil.copy(espeakng_loader.get_library_path(), folder))
        self._library.espeak_ng_InitializePath.argtypes = [ctypes.c_char_p]
        self._library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        self._library.espeak_ng_InitializePath(espeakng_loader.get_data_path().encode())
        self._check("espeak_ng_Initialize", None)
        self._check("espeak_ng_InitializeOutput", _ENOUTPUT_MODE_SYNCHRONOUS, 0, None)
        self._blocks: list[bytes] = []
        self._callback = _CALLBACK(self._collect)  # kept alive as long as the library may call it
        self._library.espeak_SetSynthCallback(self._callback)
        self.sampling_rate: int = self._library.espeak_ng_GetSampleRate()

    def __enter__(self) -> Synthesizer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._library.espeak_ng_Terminate()

    def read(self, text: str, speaker: Speaker, seed: int) -> np.ndarray:
        """Samples (N,) in -1..1 at `sampling_rate` of one sentence.

        espeak-ng draws random numbers and keeps state, so the same samples come again only for the same calls in the
        same order since it was opened.
        """
        self._library.espeak_ng_SetRandSeed(seed)
        self._check("espeak_ng_SetVoiceByName", speaker.voice.encode())
        for parameter, value in (
            (_RATE, speaker.words_per_minute),
            (_PITCH, speaker.pitch),
            (_RANGE, speaker.pitch_range),
        ):
            self._check("espeak_ng_SetParameter", parameter, value, 0)
        self._blocks.clear()
        spoken = pronounceable(text).encode()
        flags = _CHARS_UTF8 | _ENDPAUSE
        self._check("espeak_ng_Synthesize", spoken, len(spoken) + 1, 0, _POS_CHARACTER, 0, flags, None, None)
        self._check("espeak_ng_Synchronize")
        return np.frombuffer(b"".join(self._blocks), dtype=np.int16).astype(np.float32) / 32768

    def _collect(self, samples: ctypes._Pointer[ctypes.c_short], count: int, _events: int | None) -> int:
        if count > 0:
            self._blocks.append(ctypes.string_at(samples, 2 * count))
        return 0

    def _check(self, function: str, *arguments: object) -> None:
        status = getattr(self._library, function)(*arguments)
        if status != 0:
            raise ValueError(f"espeak-ng: {function}{arguments} failed with status {status:#x}")


def pronounceable(text: str) -> str:
    """Text as espeak-ng is given it: words in lower case, letters by their names.

    A lone A would be read as the article and a lone I without stress; espeak-ng names the other letters by itself.
    """
    letters = {"A": "eigh", "I": "eye"}
    return " ".join(word if len(word) == 1 else word.lower() for word in (letters.get(w, w) for w in text.split()))
