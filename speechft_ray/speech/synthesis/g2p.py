"""Grapheme to phoneme with espeak-ng: American English in ARPAbet with stress, approximate.

espeak-ng keeps one global state per process, so it runs in a process of its own, with JSON as input
and output.
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
"""``espeak_TextToPhonemes`` of espeak-ng's speak_lib.h: bit 1 selects IPA, bits 8 to 23 hold the
separator."""
_SYNCHRONOUS, _DO_NOT_EXIT, _UTF8 = 2, 0x8000, 1
_VOICE = b"en-us"

_CONSONANTS = {
    "b": "B", "d": "D", "dʒ": "JH", "ð": "DH", "f": "F", "h": "HH", "j": "Y", "k": "K", "l": "L",
    "m": "M", "n": "N", "p": "P", "s": "S", "t": "T", "tʃ": "CH", "v": "V", "w": "W", "z": "Z",
    "ŋ": "NG", "ɡ": "G", "ɹ": "R", "r": "R", "ɾ": "T", "ʃ": "SH", "ʒ": "ZH", "θ": "TH", "ʔ": "T",
    "x": "K", "ɬ": "L", "ç": "SH", "n̩": "AH0 N", "ʍ": "W", "ɫ": "L",
}  # fmt: skip
_VOWELS = {
    "a": "AE", "aɪ": "AY", "aʊ": "AW", "eɪ": "EY", "i": "IY", "iː": "IY", "iə": "IY AH0",
    "oʊ": "OW", "o": "OW", "oː": "AO", "u": "UW", "uː": "UW", "æ": "AE", "ɐ": "AH", "ɑ": "AA",
    "ɑː": "AA", "ɑ̃": "AA", "ɔ": "AO", "ɔː": "AO", "ɔɪ": "OY", "ə": "AH", "əl": "AH L", "ɚ": "ER",
    "ɛ": "EH", "ɜ": "ER", "ɜː": "ER", "ɪ": "IH", "ᵻ": "IH", "ʊ": "UH", "ʌ": "AH", "ɒ": "AA",
    "y": "UW", "e": "EY", "aɪɚ": "AY ER0", "aɪə": "AY AH0", "ɛɹ": "EH R", "ɔːɹ": "AO R",
    "ɑːɹ": "AA R", "ɪɹ": "IH R", "ʊɹ": "UH R", "oːɹ": "AO R", "æː": "AE", "ɔ̃": "AO", "ø": "ER",
    "œ": "ER", "ɐ̃": "AA", "eː": "EY", "ɛː": "EH",
}  # fmt: skip
"""IPA of the voice ``en-us`` (espeak-ng 1.52) to the ARPAbet of the CMU dictionary, which
LibriSpeech's lexicons use."""

_STRESS = {"ˈ": "1", "ˌ": "2"}


def pronounce_words(words: Sequence[str]) -> dict[str, str]:
    """Returns the phones of each word, separated by blanks: ``HELLO`` becomes ``HH AH0 L OW1``.

    Vowels carry stress. Raises ``RuntimeError`` with the standard error of the process when it
    fails.
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
            f"pronouncing {len(words)} words ended with code {ended.returncode}:\n"
            f"{ended.stderr[-2000:]}"
        )
    outputs: list[str] = json.loads(ended.stdout)
    return {
        word: convert_to_arpabet(ipa) or "SPN" for word, ipa in zip(words, outputs, strict=True)
    }


def convert_to_arpabet(ipa: str) -> str:
    """Returns ARPAbet for IPA whose phones are separated by ``|`` or blanks.

    Symbols without a counterpart are left out.
    """
    phones: list[str] = []
    for token in ipa.replace(" ", "|").split("|"):
        bare = token.strip("ˈˌ")
        stress = next((digit for mark, digit in _STRESS.items() if mark in token), "0")
        if bare in _CONSONANTS:
            phones.append(_CONSONANTS[bare])
        elif bare in _VOWELS:
            first, *rest = _VOWELS[bare].split()
            phones += [first + stress, *rest]
        elif len(bare) > 1:  # two symbols that the table lacks as one phone: symbol by symbol
            phones += convert_to_arpabet("|".join(bare.replace("ː", ""))).split()
    return " ".join(phones)


def _main() -> None:
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_Initialize(
        _SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), _DO_NOT_EXIT
    )
    library.espeak_SetVoiceByName(_VOICE)
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    outputs = []
    for word in json.load(sys.stdin):
        text = ctypes.c_char_p(word.encode())
        parts = []
        while text.value:  # the library reads one clause and moves the pointer behind it
            ipa = library.espeak_TextToPhonemes(ctypes.byref(text), _UTF8, _IPA_WITH_BARS)
            parts.append((ipa or b"").decode())
        outputs.append("|".join(parts))
    json.dump(outputs, sys.stdout, ensure_ascii=False)


if __name__ == "__main__":
    _main()
