"""A small Common Voice 7.0 zh-CN: mp3 clips at 48 kHz, one of them also as wav."""

from __future__ import annotations

from pathlib import Path

from scipy.signal import resample_poly

from tests.speech.layouts.voices import MANDARIN, synthesise_lines, write_audio, write_text

SENTENCES = {
    "train": ("今天天气很好。", "我们去公园，好吗？", "他说OK。", "老师 写信"),
    "dev": ("妈妈喝绿茶",),
    "test": ("朋友看电影！",),
}
HEADER = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccent\tlocale\tsegment"


def lay_out(root: Path) -> Path:
    """Writes the tree below ``root`` and returns it."""
    number = 0
    waves = iter(
        synthesise_lines(
            tuple(
                (sentence, MANDARIN) for sentences in SENTENCES.values() for sentence in sentences
            )
        )
    )
    for split, sentences in SENTENCES.items():
        lines = [HEADER]
        for sentence in sentences:
            wave = next(waves)
            clip = f"common_voice_zh-CN_{18_000_000 + number}"
            write_audio(root / "zh-CN/clips" / f"{clip}.mp3", resample_poly(wave, 3, 1), 48_000)
            if number == 0:
                write_audio(root / "zh-CN/clips" / f"{clip}.wav", wave)
            lines.append(f"{number:064x}\t{clip}.mp3\t{sentence}\t2\t0\t\t\t\tzh-CN\t")
            number += 1
        write_text(root / "zh-CN" / f"{split}.tsv", lines)
    return root
