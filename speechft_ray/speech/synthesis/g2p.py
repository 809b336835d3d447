"""Pronunciations of words that no lexicon has: espeak-ng's American English, mapped to ARPAbet with
stress. Approximate.

espeak-ng keeps one global state per process, so a process of its own is asked; its input and output
are JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_IPA_WITH_BARS = (ord("|") << 8) | 0x02
"""espeak-ng's speak_lib.h, ``espeak_TextToPhonemes``: bit 1 asks for IPA, bits 8 to 23 hold the
separator."""
_SYNCHRONOUS, _DO_NOT_EXIT, _UTF8 = 2, 0x8000, 1
_VOICE = b"en-us"

_CONSONANTS = {
    "b": "B", "d": "D", "dʒ": "JH", "ð": "DH", "f": "F", "h": "HH", "j": "Y", "k": "K", "l": "L", "m": "M", "n": "N", "p": "P",
    "s": "S", "t": "T", "tʃ": "CH", "v": "V", "w": "W", "z": "Z", "ŋ": "NG", "ɡ": "G", "ɹ": "R", "r": "R", "ɾ": "T", "ʃ": "SH",
    "ʒ": "ZH", "θ": "TH", "ʔ": "T", "x": "K", "ɬ": "L", "ç": "SH", "n̩": "AH0 N", "ʍ": "W", "ɫ": "L",
}  # fmt: skip
_VOWELS = {
    "a": "AE", "aɪ": "AY", "aʊ": "AW", "eɪ": "EY", "i": "IY", "iː": "IY", "iə": "IY AH0", "oʊ": "OW", "o": "OW", "oː": "AO",
    "u": "UW", "uː": "UW", "æ": "AE", "ɐ": "AH", "ɑ": "AA", "ɑː": "AA", "ɑ̃": "AA", "ɔ": "AO", "ɔː": "AO", "ɔɪ": "OY", "ə": "AH",
    "əl": "AH L", "ɚ": "ER", "ɛ": "EH", "ɜ": "ER", "ɜː": "ER", "ɪ": "IH", "ᵻ": "IH", "ʊ": "UH", "ʌ": "AH", "ɒ": "AA", "y": "UW",
    "e": "EY", "aɪɚ": "AY ER0", "aɪə": "AY AH0", "ɛɹ": "EH R", "ɔːɹ": "AO R", "ɑːɹ": "AA R", "ɪɹ": "IH R", "ʊɹ": "UH R",
    "oːɹ": "AO R", "æː": "AE", "ɔ̃": "AO", "ø": "ER", "œ": "ER", "ɐ̃": "AA", "eː": "EY", "ɛː": "EH",
}  # fmt: skip
"""IPA of the voice ``en-us`` (espeak-ng 1.52) to the ARPAbet of the CMU dictionary, which
LibriSpeech's lexicons use."""

_STRESS = {"ˈ": "1", "ˌ": "2"}


def pronunciations(words: Sequence[str]) -> dict[str, str]:
    """Returns the phones of each word, separated by blanks, vowels with stress: ``HELLO`` becomes
    ``HH AH0 L OW1``.

    Raises ``RuntimeError`` with the words of the process that speaks when it fails.
    """
    root = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
    ended = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps([word.lower() for word in words]),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"},
    )
    if ended.returncode != 0:
        raise RuntimeError(
            f"pronouncing {len(words)} words ended with code {ended.returncode}:\n{ended.stderr[-2000:]}"
        )
    spoken: list[str] = json.loads(ended.stdout)
    return {word: arpabet(ipa) or "SPN" for word, ipa in zip(words, spoken, strict=True)}


def arpabet(ipa: str) -> str:
    """Returns ARPAbet for IPA whose phones are separated by ``|`` or blanks. What has no
    counterpart is left out."""
    found: list[str] = []
    for token in ipa.replace(" ", "|").split("|"):
        bare = token.strip("ˈˌ")
        stress = next((digit for mark, digit in _STRESS.items() if mark in token), "0")
        if bare in _CONSONANTS:
            found.append(_CONSONANTS[bare])
        elif bare in _VOWELS:
            first, *rest = _VOWELS[bare].split()
            found += [first + stress, *rest]
        elif len(bare) > 1:  # a sound of two signs that the table lacks: sign by sign
            found += arpabet("|".join(bare.replace("ː", ""))).split()
    return " ".join(found)


def _speak() -> None:
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_Initialize(
        _SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), _DO_NOT_EXIT
    )
    library.espeak_SetVoiceByName(_VOICE)
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    found = []
    for word in json.load(sys.stdin):
        text = ctypes.c_char_p(word.encode())
        parts = []
        while text.value:  # the library reads up to the end of a clause and moves the pointer on
            parts.append(
                (
                    library.espeak_TextToPhonemes(ctypes.byref(text), _UTF8, _IPA_WITH_BARS) or b""
                ).decode()
            )
        found.append("|".join(parts))
    json.dump(found, sys.stdout, ensure_ascii=False)


if __name__ == "__main__":
    _speak()
