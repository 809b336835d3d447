"""A small Audio SNIPS as s3prl's preprocessing leaves it: every voice of a split says every
sentence of that split."""

from __future__ import annotations

from pathlib import Path

from tests.speech.layouts.voices import VOICES, spoken, text, write

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
    waves = spoken(tuple((said, voice) for said, _, _ in REQUESTS for voice in VOICES))
    lines = []
    for split, speakers in SPEAKERS.items():
        for voice, speaker in enumerate(speakers):
            for index, (said, slots, intent) in enumerate(REQUESTS):
                name = f"{speaker}-snips-{split}-{index}"
                write(
                    root / split / f"{name}.wav", waves[len(VOICES) * index + voice % len(VOICES)]
                )
                lines.append(f"{name} BOS {said} EOS\tO {slots} {intent}")
    text(root / "all.iob.snips.txt", lines)
    (root / "slots.txt").write_text(
        "\n".join(SLOTS), encoding="utf-8"
    )  # no line end at the end, as there
    return root
