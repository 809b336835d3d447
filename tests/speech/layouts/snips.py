"""A small Audio SNIPS after s3prl's preprocessing: every voice of a split has every sentence."""

from __future__ import annotations

from pathlib import Path

from tests.speech.layouts.voices import VOICES, synthesise_lines, write_audio, write_text

REQUESTS = (
    ("PLAY BLUE MOON BY QUEEN", "O track track O artist", "PlayMusic"),
    (
        "ADD QUEEN TO MY ROAD TRIP LIST",
        "O artist O playlist_owner playlist playlist O",
        "AddToPlaylist",
    ),
    ("WILL IT RAIN IN PARIS", "O O condition_description O city", "GetWeather"),
)
SLOTS = ("O", "artist", "city", "condition_description", "playlist", "playlist_owner", "track")
SPEAKERS = {
    "train": ("Ivy", "Joanna", "Joey", "Justin", "Kendra", "Kimberly", "Matthew", "Salli"),
    "valid": ("Aditi", "Amy", "Geraint", "Nicole"),
    "test": ("Brian", "Emma", "Raveena", "Russell"),
}


def lay_out(root: Path) -> Path:
    """Writes the tree below ``root`` and returns it."""
    waves = synthesise_lines(tuple((words, voice) for words, _, _ in REQUESTS for voice in VOICES))
    lines = []
    for split, speakers in SPEAKERS.items():
        for voice, speaker in enumerate(speakers):
            for index, (words, slots, intent) in enumerate(REQUESTS):
                name = f"{speaker}-snips-{split}-{index}"
                write_audio(
                    root / split / f"{name}.wav", waves[len(VOICES) * index + voice % len(VOICES)]
                )
                lines.append(f"{name} BOS {words} EOS\tO {slots} {intent}")
    write_text(root / "all.iob.snips.txt", lines)
    # The last line has no line end, as in the original.
    (root / "slots.txt").write_text("\n".join(SLOTS), encoding="utf-8")
    return root
