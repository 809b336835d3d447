"""Common Voice zh-CN: how sentences are normalised, and which recording of a clip is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from speechft_ray.core.errors import UserError
from speechft_ray.speech.corpora.common_voice import normalise_sentence
from tests.speech.corpora.helpers import open_at, sizes
from tests.speech.layouts import common_voice


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return common_voice.lay_out(tmp_path / "root")


def test_rows_become_characters(root: Path) -> None:
    corpus = open_at("common_voice", root)
    assert sizes(corpus) == {"train": 3, "dev": 1, "test": 1}
    assert {u.labels["text"] for u in corpus.split("train")} == {
        "今天天气很好",
        "我们去公园好吗",
        "老师写信",
    }
    assert corpus.split("test")[0].labels["speaker"].endswith("5")
    assert corpus.notes[0].startswith("1 sentences are left out")


def test_a_wav_beside_an_mp3_is_read_and_both_sound_alike(root: Path) -> None:
    clip = "zh-CN/clips/common_voice_zh-CN_18000000"
    with_wave = open_at("common_voice", root)
    wave = next(u for u in with_wave.utterances if u.key == f"{clip}.wav")
    original = with_wave.read(wave)
    (root / f"{clip}.wav").unlink()
    decoded = open_at("common_voice", root)
    other = decoded.read(next(u for u in decoded.utterances if u.key == f"{clip}.mp3"))
    count = min(len(original), len(other))
    assert abs(len(original) - len(other)) < 1_600
    # mp3 moves the sound by a fixed delay; at its best shift the two agree.
    spectra = np.fft.rfft(original[:count], 2 * count) * np.conj(
        np.fft.rfft(other[:count], 2 * count)
    )
    agreement = np.fft.irfft(spectra).max() / np.sqrt((original**2).sum() * (other**2).sum())
    assert agreement > 0.97


@pytest.mark.parametrize(
    ("sentence", "text"),
    [
        ("今天天气很好。", "今天天气很好"),
        ("「你好」， 世界！", "你好世界"),
        ("ＡＢ好", None),
        ("说OK", None),
        ("it’s", None),
        ("１９９０年", "1990年"),
        ("ㄧ个", "一个"),
        ("オ好", None),
        ("好䴕", None),
        ("……", None),
        ("", None),
    ],
)
def test_sentences_are_normalise_sentence(sentence: str, text: str | None) -> None:
    assert normalise_sentence(sentence) == text


def test_line_separators_of_unicode_do_not_end_a_row(root: Path) -> None:
    table = root / "zh-CN/dev.tsv"
    table.write_text(
        table.read_text(encoding="utf-8").replace("妈妈喝绿茶", "妈妈\u2028喝绿茶"),
        encoding="utf-8",
    )
    assert open_at("common_voice", root).split("dev")[0].labels["text"] == "妈妈喝绿茶"


def test_tables_that_are_not_the_archive_s_are_reported(root: Path) -> None:
    table = root / "zh-CN/dev.tsv"
    text = table.read_text(encoding="utf-8")
    table.write_text(text.replace("sentence", "text"), encoding="utf-8")
    with pytest.raises(UserError, match=r"dev.tsv lacks the columns sentence"):
        open_at("common_voice", root)
    table.write_text(text + "x\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 3 must be a row with a path and a sentence"):
        open_at("common_voice", root)
    table.unlink()
    with pytest.raises(UserError, match="its split dev"):
        open_at("common_voice", root)
