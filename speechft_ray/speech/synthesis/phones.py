"""Maps the phone names of espeak-ng to labels: no stress, no length, allophones merged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

SILENCE = "sil"

_STRESS = "',%="
_ALLOPHONES = {
    "@": "@2 a#",
    "A": "0 0# aa A@ A#",
    "E": "e@ E# e# E2",
    "I": "I2 I#",
    "O": "O2 O@ o@ U@",
    "aI": "aI@ aI3",
    "aU": "aU@",
    "d": "d#",
    "i": "i@ i@3",
    "j": ";",
    "l": "@L L l- l/2",
    "m": "m-",
    "n": "n-",
    "oU": "oU#",
    "r": "r- r/",
    "t": "t# t2",
    "z": "z/2",
}
"""Phones of American English (``en-us`` of espeak-ng 1.52) and the allophones that map to them."""
_MERGED = {name: label for label, names in _ALLOPHONES.items() for name in names.split()}

_SPLIT_FRACTION = 0.6


def normalise_phone(name: str) -> str:
    """Returns the label of one espeak-ng phone; every kind of pause is ``sil``."""
    if name.startswith("_"):
        return SILENCE
    bare = name.lstrip(_STRESS).rstrip(":")
    return _MERGED.get(bare, bare)


def make_alignment(onsets: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """Returns ``(start_sample, label)`` from sample 0 on, strictly ascending.

    Silence comes first; neighbouring silences are joined. espeak-ng renders an ``l`` or ``r`` after
    a vowel as the end of that vowel and then marks it with no length: such a phone gets the last
    two fifths of its predecessor. Pauses without length only mark boundaries and are left out.
    """
    aligned: list[tuple[int, str]] = [(0, SILENCE)]
    for index, (start, name) in enumerate(onsets):
        label, previous = normalise_phone(name), aligned[-1]
        empty = index + 1 < len(onsets) and onsets[index + 1][0] == start
        if label == SILENCE and (empty or previous[1] == SILENCE):
            continue
        if empty:
            start = previous[0] + max(1, round(_SPLIT_FRACTION * (start - previous[0])))
        aligned.append((start, label))
    return aligned


def join_phones(aligned: Iterable[tuple[int, str]]) -> str:
    """Returns the phones of an alignment, separated by blanks, without silence."""
    return " ".join(label for _, label in aligned if label != SILENCE)
