"""gcin-voice: what the name of a folder says, and splits by syllable."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechft_ray.core.errors import UserError
from speechft_ray.speech.corpora.gcin_voice import split_of
from tests.speech.corpora.helpers import open_at
from tests.speech.layouts import gcin_voice


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gcin_voice.lay_out(tmp_path_factory.mktemp("gcin_voice") / "root")


def test_folder_names_are_syllables_with_tones(root: Path) -> None:
    corpus = open_at("gcin_voice", root)
    labels = {item.key: dict(item.labels) for item in corpus.utterances}
    assert len(labels) == 5 * 5 * 2
    assert labels["ogg/ㄏㄠ3/5.ogg"] == {
        "tone": "3",
        "initial": "ㄏ",
        "syllable": "ㄏㄠ",
        "speaker": "5",
    }
    assert labels["ogg/ㄨㄛ/3.ogg"]["initial"] == "none"
    assert labels["ogg/ㄨㄛ/3.ogg"]["tone"] == "1" and labels["ogg/ㄨㄛ1/3.ogg"]["tone"] == "5"


def test_a_syllable_is_in_one_split_with_all_tones_and_speakers(root: Path) -> None:
    corpus = open_at("gcin_voice", root)
    for item in corpus.utterances:
        assert item.split == split_of(item.labels["syllable"])
    assert {item.split for item in corpus.utterances} == {"train", "dev", "test"}


def test_another_folder_name_is_refused(root: Path) -> None:
    (root / "ogg" / "ma3").mkdir()
    with pytest.raises(UserError, match="ma3 is not named like a syllable in Zhuyin"):
        open_at("gcin_voice", root)
    (root / "ogg" / "ma3").rmdir()
