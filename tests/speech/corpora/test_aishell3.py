"""AISHELL-3: characters and pinyin, what is held out, and the rate of its recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechft_ray.core.errors import UserError
from speechft_ray.speech.corpora.aishell3 import Aishell3Options
from speechft_ray.speech.corpora.base import CORPORA
from tests.speech.corpora.helpers import open_at, sizes
from tests.speech.layouts import aishell3


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return aishell3.lay_out(tmp_path / "root")


def test_lists_become_columns_and_44_khz_becomes_16(root: Path) -> None:
    corpus = open_at("aishell3", root)
    assert sizes(corpus) == {"train": 5, "dev": 1, "test": 6} and corpus.columns == {
        "text",
        "pinyin",
        "speaker",
    }
    first = next(one for one in corpus.utterances if one.key == "test/wav/SSB0005/SSB00050402.wav")
    assert first.labels == {
        "text": "我们去哪儿",
        "pinyin": "wo3 men5 qu4 na3 er5",
        "speaker": "SSB0005",
    }
    assert soundfile.info(root / first.key).samplerate == 44_100
    assert (
        first.samples
        == -(-soundfile.info(root / first.key).frames * 160 // 441)
        == len(corpus.read(first))
    )
    assert any("44100 Hz" in note and "resampled" in note for note in corpus.notes)
    # The same sentence in the folder of another speaker has the same samples.
    other = next(one for one in corpus.utterances if one.key == "test/wav/SSB0737/SSB07370402.wav")
    np.testing.assert_array_equal(corpus.read(first), corpus.read(other))


def test_dev_is_drawn_from_train_by_utterance_and_again_the_same(root: Path) -> None:
    def dev(**options: float) -> set[str]:
        corpus = open_at("aishell3", root, **options)
        held_out = {one.key for one in corpus.split("dev")}
        assert all(key.startswith("train/") for key in held_out) and len(
            corpus.split("train")
        ) == 6 - len(held_out)
        return held_out

    assert len(dev()) == 1  # a hundredth of six is rounded up
    assert (
        len(dev(dev_fraction=0.5)) == 3 and dev(dev_fraction=0.5) == dev(dev_fraction=0.5) > dev()
    )
    assert len({frozenset(dev(dev_fraction=0.5, seed=seed)) for seed in range(5)}) > 1
    expected = CORPORA.get("aishell3").expected(Aishell3Options())
    assert expected is not None and dict(expected.utterances) == {
        "train": 62_629,
        "dev": 633,
        "test": 24_773,
    }


@pytest.mark.parametrize(
    "line",
    [
        "SSB00050001.wav",
        "SSB00050001.wav\t今 天",
        "SSB00050001.wav\tjin1 tian1",
        "../SSB00050001.wav\t今 jin1",
        "x\t今 jin1",
    ],
)
def test_lines_with_mistakes_are_reported(root: Path, line: str) -> None:
    file = root / "test/content.txt"
    file.write_text(file.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"line 7 must be a name like SSB00050001\.wav, a tab, and characters with"
    ):
        open_at("aishell3", root)


def test_pinyin_may_have_an_umlaut_and_capitals(root: Path) -> None:
    file = root / "test/content.txt"
    lines = file.read_text(encoding="utf-8").splitlines()
    name = lines[0].partition("\t")[0]
    file.write_text("\n".join([f"{name}\t绿 lü4 广 Guang3", *lines[1:]]) + "\n", encoding="utf-8")
    labels = next(u.labels for u in open_at("aishell3", root).utterances if name in u.key)
    assert (labels["text"], labels["pinyin"]) == ("绿广", "lü4 Guang3")


def test_lists_and_folders_that_are_missing_are_named(root: Path) -> None:
    (root / "test/content.txt").unlink()
    with pytest.raises(UserError, match=r"test/content\.txt, which has the transcripts"):
        open_at("aishell3", root)
