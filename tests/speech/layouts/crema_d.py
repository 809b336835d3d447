"""A small CREMA-D: 10 actors, two of each of EMO-SUPERB's sets, six emotions each, with its file of
votes."""

from __future__ import annotations

from pathlib import Path

from tests.speech.layouts.voices import lines_of, spoken, text, write

ACTORS = (1001, 1018, 1019, 1036, 1037, 1054, 1055, 1072, 1073, 1091)
EMOTIONS = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
SENTENCES = {
    "DFA": "don't forget a jacket",
    "IEO": "it's eleven o'clock",
    "TSI": "the surface is slick",
}
COLUMNS = ("angry", "sad", "disgust", "fear", "neutral", "happy")
TIED = "1018_DFA_SAD_XX"
"""As many heard sadness, as acted, as heard nothing: 0.437273 each. Disgust is heard as nothing,
the others as acted."""


def clips() -> list[str]:
    """Names without ending."""
    names = [(actor, list(SENTENCES)[(place + index) % 3], emotion) for place, actor in enumerate(ACTORS)
             for index, emotion in enumerate(EMOTIONS)]  # fmt: skip
    return [
        f"{actor}_{said}_{emotion}_{'HI' if said == 'IEO' else 'XX'}"
        for actor, said, emotion in names
    ]


def lay_out(root: Path, votes: bool = True) -> Path:
    """Writes the tree below ``root`` and returns it."""
    waves = spoken(lines_of(tuple(SENTENCES.values()), 6))
    said = list(SENTENCES)
    for index, name in enumerate(clips()):
        wave = waves[said.index(name[5:8]) + 3 * (index // 6 % 2)]
        write(root / "AudioWAV" / f"{name}.wav", wave * (0.4 + 0.01 * index))
    text(root / "README.md", ["CREMA-D Data Files"])
    if votes:
        rows = [
            f"{name}.wav,{_shares(name)},{name[:4]},Female,{_split(int(name[:4]))}"
            for name in clips()
        ]
        text(
            root / "labels_consensus_1.csv",
            [f"FileName,{','.join(COLUMNS)},SpkrID,Gender,Split_Set", *rows],
        )
    return root


def _shares(name: str) -> str:
    acted = name.split("_")[2].lower()
    heard = next(column for column in COLUMNS if column[:3] == ("neu" if acted == "dis" else acted))
    shares = dict.fromkeys(COLUMNS, 0.01) | {heard: 0.95}
    if name == TIED:
        shares |= {"neutral": 0.437273, "sad": 0.437273, "happy": 0.095455}
    return ",".join(str(shares[column]) for column in COLUMNS)


def _split(actor: int) -> str:
    return "Test" if actor <= 1018 else "Development" if actor <= 1036 else "Train"
