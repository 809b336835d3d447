"""A small LibriSpeech: 2 speakers per split with one chapter each, and a lexicon."""

from __future__ import annotations

from pathlib import Path

from tests.speech.layouts.voices import assign_voices, synthesise_lines, write_audio, write_text

TEXTS = ("THE BIRDS SANG", "HE GAVE HER A BOOK", "A BOOK OF BIRDS", "SHE SANG HER SONG")
SPEAKERS = {
    "train-clean-100": ("103", "1034"),
    "dev-clean": ("84", "174"),
    "test-clean": ("61", "121"),
}
LEXICON = {
    "lexicon/librispeech-lexicon-200k-g2p.txt": (
        "A\tAH0", "A\tEY1", "BIRDS\tB ER1 D Z", "BOOK\tB UH1 K", "GAVE\tG EY1 V", "HE\tHH IY1",
        "HER\tHH ER0", "OF\tAH1 V",
    ),
    "lexicon/librispeech-lexicon-allothers-g2p.txt": (
        "OF\tX X", "SANG\tS AE1 NG", "SHE\tSH IY1", "SONG\tS AO1 NG", "THE\tDH AH0",
    ),
}  # fmt: skip


def lay_out(root: Path, lexicon: bool = True) -> Path:
    """Writes the tree below ``root`` and returns it."""
    places = [(folder, speaker) for folder, speakers in SPEAKERS.items() for speaker in speakers]
    lines = [
        assign_voices(TEXTS[index % 4 :] + TEXTS[: index % 4], 4) for index in range(len(places))
    ]
    waves = synthesise_lines(tuple(line for chapter_lines in lines for line in chapter_lines))
    for index, (folder, speaker) in enumerate(places):
        chapter = f"{speaker}-{1000 + index}"
        place = root / folder / speaker / chapter.split("-")[1]
        count = 4 if folder.startswith("train") else 2
        for number in range(count):
            write_audio(place / f"{chapter}-{number:04d}.flac", waves[4 * index + number])
        write_text(
            place / f"{chapter}.trans.txt",
            [f"{chapter}-{n:04d} {line}" for n, (line, _) in enumerate(lines[index][:count])],
        )
    write_text(root / "SPEAKERS.TXT", ["; ID | SEX | SUBSET | MINUTES | NAME"])
    for name, entries in LEXICON.items() if lexicon else ():
        write_text(root / name, entries)
    return root
