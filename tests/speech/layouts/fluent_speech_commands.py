"""A small Fluent Speech Commands: three tables and recordings by speaker."""

from __future__ import annotations

from pathlib import Path

from tests.speech.layouts.voices import assign_voices, synthesise_lines, write_audio, write_text

COMMANDS = (
    ("Turn on the lights", "activate", "lights", "none"),
    ("Turn up the heat, please", "increase", "heat", "none"),
    ("Bring me my shoes", "bring", "shoes", "none"),
    ("Turn off the bedroom lights", "deactivate", "lights", "bedroom"),
)
SPEAKERS = {
    "train": ("2BqVo8kVB2Skwgyb", "4BrX8aDqK2cLZRYl"),
    "valid": ("2ojo7YRL7Gck83Z3",),
    "test": ("4aGjX3AG5xcxeL7a",),
}


def lay_out(root: Path) -> Path:
    """Writes the tree below ``root`` and returns it."""
    waves = synthesise_lines(assign_voices([command for command, *_ in COMMANDS], 16))
    number = 0
    for split, speakers in SPEAKERS.items():
        lines = [",path,speakerId,transcription,action,object,location"]
        for speaker in speakers:
            for command, action, thing, location in COMMANDS:
                path = f"wavs/speakers/{speaker}/{number:08d}-4507-11e9-aa2d.wav"
                quoted = f'"{command}"' if "," in command else command
                write_audio(root / path, waves[number])
                lines.append(
                    f"{len(lines) - 1},{path},{speaker},{quoted},{action},{thing},{location}"
                )
                number += 1
        write_text(root / "data" / f"{split}_data.csv", lines)
    return root
