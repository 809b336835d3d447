"""A small IEMOCAP: 5 sessions with an improvised and a scripted dialogue each."""

from __future__ import annotations

import json
from pathlib import Path

from tests.speech.layouts.voices import assign_voices, synthesise_lines, write_audio, write_text

TEXTS = ("I am so happy for you", "leave me alone", "I do not know", "that is fine")
LABELS = ("neu", "hap", "ang", "sad", "exc", "fru", "xxx")


def lay_out(root: Path, metadata: bool = False) -> Path:
    """Writes the tree below ``root`` and returns it; ``metadata``: with unsorted lists of s3prl."""
    waves = synthesise_lines(assign_voices(TEXTS, 12))
    turns: dict[int, list[str]] = {}
    for session in range(1, 6):
        folder = root / f"Session{session}"
        for dialog in (f"Ses0{session}F_impro01", f"Ses0{session}M_script01_1"):
            names = [f"{dialog}_{who}{index:03d}" for who in "FM" for index in range(4)]
            lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
            for index, name in enumerate(names):
                label = LABELS[(index + session) % len(LABELS)]
                write_audio(
                    folder / "sentences/wav" / dialog / f"{name}.wav",
                    waves[(index + session) % len(waves)],
                )
                lines += [
                    f"[{index}.2901 - {index}.8357]\t{name}\t{label}\t[2.5000, 2.5000, 2.5000]"
                ]
                lines += ["C-E2:\tNeutral;\t()", "A-E3:\tval 3; act 2; dom  2;\t()", ""]
                if label not in ("fru", "xxx"):
                    path = f"Session{session}/sentences/wav/{dialog}/{name}.wav"
                    turns.setdefault(session, []).append(path)
            write_text(folder / "dialog/EmoEvaluation" / f"{dialog}.txt", lines)
            write_text(
                folder / "dialog/EmoEvaluation/Categorical" / f"{dialog}_e2_cat.txt",
                [f"{names[0]} :Neutral state; ()"],
            )
    for fold in turns if metadata else ():
        paths = [
            path
            for session, session_turns in turns.items()
            if session != fold
            for path in reversed(session_turns)
        ]
        metadata_file = {
            "labels": {},
            "meta_data": [{"path": path, "label": "neu", "speaker": "x"} for path in paths],
        }
        write_text(
            root / f"meta_data/Session{fold}/train_meta_data.json", [json.dumps(metadata_file)]
        )
    return root
