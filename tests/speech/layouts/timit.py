"""A small TIMIT: SPHERE recordings, phones and words; 3 speakers per split, 1 without."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.speech.layouts.voices import assign_voices, synthesise_lines, write_text

SPEAKERS = {
    "TRAIN/DR1": ("FCJF0", "MCPM0"),
    "TRAIN/DR2": ("MARC0",),
    "TEST/DR1": ("FAKS0", "MDAB0"),
    "TEST/DR2": ("MWEW0", "MMDB1"),
    "TEST/DR3": ("FPKT0",),
    "TEST/DR4": ("FADG0", "FCRH0"),
}
"""Real names: of TEST, FAKS0, MMDB1 and FADG0 are dev, MDAB0, MWEW0 and FPKT0 core test, and FCRH0
is in no list."""
SENTENCES = {
    "SA1": "She had your dark suit in greasy wash water all year.",
    "SX37": "Critical equipment needs proper maintenance.",
    "SI648": "A sailboat may have a bone in her teeth one minute.",
}
_PHONES = "h# sh ix hv eh dcl jh ih q aa r kcl k s uw ux epi en pau zh axr h#"
PHONES = _PHONES.split()
"""Labels of the 61 phones, with a glottal stop; all have equal lengths in each recording."""


def write_sphere(path: Path, wave: np.ndarray) -> Path:
    """Writes ``(samples,)`` at 16 kHz as 16-bit SPHERE with the fields of TIMIT's own headers."""
    samples = (32_767 * wave).astype("<i2")
    fields = {
        "database_id": "-s5 TIMIT",
        "database_version": "-s3 1.0",
        "utterance_id": "-s8 cjf0_sa1",
        "channel_count": "-i 1",
        "sample_count": f"-i {len(samples)}",
        "sample_rate": "-i 16000",
        "sample_min": f"-i {samples.min()}",
        "sample_max": f"-i {samples.max()}",
        "sample_n_bytes": "-i 2",
        "sample_byte_format": "-s2 01",
        "sample_sig_bits": "-i 16",
    }
    lines = [
        "NIST_1A",
        "   1024",
        *(f"{name} {value}" for name, value in fields.items()),
        "end_head",
        "",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\n".join(lines).encode().ljust(1024) + samples.tobytes())
    return path


def phone_starts(samples: int) -> list[int]:
    """Returns the start of each of ``PHONES`` in a recording of ``samples``."""
    return [samples * index // len(PHONES) for index in range(len(PHONES))]


def lay_out(root: Path, lower: bool = False) -> Path:
    """Writes the tree below ``root`` and returns it; ``lower``: with all names in lower case."""
    waves = synthesise_lines(assign_voices(tuple(SENTENCES.values()), 6))
    folders = [(part, speaker) for part, speakers in SPEAKERS.items() for speaker in speakers]
    for number, (part, speaker) in enumerate(folders):
        for index, (name, words) in enumerate(SENTENCES.items()):
            wave = waves[(3 * number + index) % len(waves)][: 24_000 + 500 * number]
            place = f"{part}/{speaker}/{name}"
            _write_sentence(root, place.lower() if lower else place, wave, words, lower)
    write_text(root / "README.DOC", ["The DARPA TIMIT corpus"])
    return root


def _write_sentence(root: Path, place: str, wave: np.ndarray, words: str, lower: bool) -> None:
    def path(ending: str) -> Path:
        return root / f"{place}.{ending.lower() if lower else ending}"

    write_sphere(path("WAV"), wave)
    _write_lines(path("PHN"), [*phone_starts(len(wave)), len(wave)], PHONES)
    spelled = words.rstrip(".").lower().split()
    _write_lines(
        path("WRD"),
        [len(wave) * index // len(spelled) for index in range(len(spelled) + 1)],
        spelled,
    )
    write_text(path("TXT"), [f"0 {len(wave)} {words} "])


def _write_lines(path: Path, edges: Sequence[int], labels: Sequence[str]) -> None:
    write_text(
        path,
        [
            f"{start} {end} {label}"
            for start, end, label in zip(edges, edges[1:], labels, strict=False)
        ],
    )
