"""A small AISHELL-3: two speakers in train and test, at 44.1 kHz."""

from __future__ import annotations

from pathlib import Path

from scipy.signal import resample_poly

from tests.speech.layouts.voices import MANDARIN, synthesise_lines, write_audio, write_text

CONTENT = (
    ("今天天气很好", "今 jin1 天 tian1 天 tian1 气 qi4 很 hen3 好 hao3"),
    ("我们去哪儿", "我 wo3 们 men5 去 qu4 哪 na3 儿 er5"),
    ("老师写信", "老 lao3 师 shi1 写 xie3 信 xin4"),
)
SPEAKERS = ("SSB0005", "SSB0737")
RATE_HZ = 44_100


def lay_out(root: Path) -> Path:
    """Writes the tree below ``root`` and returns it."""
    waves = synthesise_lines(tuple((sentence, MANDARIN) for sentence, _ in CONTENT))
    for folder, first in (("train", 1), ("test", 401)):
        lines = []
        for speaker in SPEAKERS:
            for index, (_, content) in enumerate(CONTENT):
                name = f"{speaker}{first + index:04d}.wav"
                write_audio(
                    root / folder / "wav" / speaker / name,
                    resample_poly(waves[index], 441, 160),
                    RATE_HZ,
                )
                lines.append(f"{name}\t{content}")
        write_text(root / folder / "content.txt", lines)
    write_text(
        root / "train/label_train-set.txt",
        ["#", "SSB00050001|jin1 tian1 % tian1 qi4 hen3 hao3 $|今天%天气很好$"],
    )
    write_text(
        root / "spk-info.txt",
        ["## speaker\tage group\tgender\taccent", "SSB0005\tB\tfemale\tnorth"],
    )
    return root
