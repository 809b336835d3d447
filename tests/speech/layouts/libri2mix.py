"""A small Libri2Mix: mixtures of two voices with Kaldi folders of absolute paths elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.speech.layouts.voices import VOICES, synthesise_lines, write_audio, write_text

TEXT = "he gave her a book about the birds"
FOLDERS = {"train": "train-100", "dev": "dev", "test": "test"}
ELSEWHERE = "/export/corpora/Libri2Mix"


def lay_out(root: Path) -> Path:
    """Writes the tree below ``root`` and returns it.

    In each mixture the second voice starts half a second later.
    """
    voices = synthesise_lines(tuple((TEXT, voice) for voice in VOICES[:4]))
    for split, folder in FOLDERS.items():
        tables: dict[str, list[str]] = {
            name: [] for name in ("wav.scp", "segments", "utt2spk", "spk2utt", "reco2dur", "rttm")
        }
        for index in range(4 if split == "train" else 2):
            speakers = (f"{100 + index}", f"{20 + index}")
            name = f"{speakers[0]}-1-0001_{speakers[1]}-2-0002"
            one, other = voices[index % 4], voices[(index + 1) % 4]
            mixed = np.zeros(max(len(one), 8_000 + len(other)))
            mixed[: len(one)] += 0.4 * one
            mixed[8_000 : 8_000 + len(other)] += 0.4 * other
            path = f"wav16k/max/{folder}/mix_both/{name}.wav"
            write_audio(root / path, mixed)
            tables["wav.scp"].append(f"{name} {ELSEWHERE}/{path}")
            tables["reco2dur"].append(f"{name} {len(mixed) / 16_000:.3f}")
            for speaker, start, length in (
                (speakers[0], 0.0, len(one)),
                (speakers[1], 0.5, len(other)),
            ):
                end = start + length / 16_000
                tables["segments"].append(f"{speaker}_{name}_0 {name} {start:.3f} {end:.3f}")
                tables["utt2spk"].append(f"{speaker}_{name}_0 {speaker}")
                tables["spk2utt"].append(f"{speaker} {speaker}_{name}_0")
                tables["rttm"].append(
                    f"SPEAKER {name} 1 {start:.3f} {end - start:.3f} <NA> <NA> {speaker} <NA> <NA>"
                )
        for file, lines in tables.items():
            write_text(root / "data" / split / file, lines)
    return root
