"""A small CREMA-D: two actors of each of EMO-SUPERB's sets, six emotions each, with votes."""

from __future__ import annotations

from pathlib import Path

from tests.speech.layouts.voices import assign_voices, synthesise_lines, write_audio, write_text

ACTORS = (1001, 1018, 1019, 1036, 1037, 1054, 1055, 1072, 1073, 1091)
EMOTIONS = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
SENTENCES = {
    "DFA": "don't forget a jacket",
    "IEO": "it's eleven o'clock",
    "TSI": "the surface is slick",
}
COLUMNS = ("angry", "sad", "disgust", "fear", "neutral", "happy")
TIED = "1018_DFA_SAD_XX"
"""A tie of the acted sadness and neutral: 0.437273 of the votes each. In the other clips the votes
are for the acted emotion, and for neutral where disgust is acted."""


def clip_names() -> list[str]:
    """Names without ending."""
    names = [
        (actor, list(SENTENCES)[(place + index) % 3], emotion)
        for place, actor in enumerate(ACTORS)
        for index, emotion in enumerate(EMOTIONS)
    ]
    return [
        f"{actor}_{sentence}_{emotion}_{'HI' if sentence == 'IEO' else 'XX'}"
        for actor, sentence, emotion in names
    ]


def lay_out(root: Path, votes: bool = True) -> Path:
    """Writes the tree below ``root`` and returns it."""
    waves = synthesise_lines(assign_voices(tuple(SENTENCES.values()), 6))
    sentences = list(SENTENCES)
    for index, name in enumerate(clip_names()):
        wave = waves[sentences.index(name[5:8]) + 3 * (index // 6 % 2)]
        write_audio(root / "AudioWAV" / f"{name}.wav", wave * (0.4 + 0.01 * index))
    write_text(root / "README.md", ["CREMA-D Data Files"])
    if votes:
        rows = [
            f"{name}.wav,{_make_shares(name)},{name[:4]},Female,{_split(int(name[:4]))}"
            for name in clip_names()
        ]
        write_text(
            root / "labels_consensus_1.csv",
            [f"FileName,{','.join(COLUMNS)},SpkrID,Gender,Split_Set", *rows],
        )
    return root


def _make_shares(name: str) -> str:
    acted = name.split("_")[2].lower()
    winner = "neu" if acted == "dis" else acted
    winner = next(column for column in COLUMNS if column.startswith(winner))
    shares = dict.fromkeys(COLUMNS, 0.01) | {winner: 0.95}
    if name == TIED:
        shares |= {"neutral": 0.437273, "sad": 0.437273, "happy": 0.095455}
    return ",".join(str(shares[column]) for column in COLUMNS)


def _split(actor: int) -> str:
    return "Test" if actor <= 1018 else "Development" if actor <= 1036 else "Train"
