"""Audio SNIPS: one label per word, speakers by split."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from speechft_ray.core.errors import UserError
from speechft_ray.speech.corpora.snips import SnipsOptions
from speechft_ray.superb.tasks.sf import spell
from tests.speech.corpora.helpers import open_at, sizes
from tests.speech.layouts import snips


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return snips.lay_out(tmp_path_factory.mktemp("snips") / "root")


@pytest.fixture
def root(tree: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tree, tmp_path / "root"))


def test_words_have_labels_and_the_last_label_is_the_intent(tree: Path) -> None:
    corpus = open_at("snips", tree)
    assert sizes(corpus) == {"train": 24, "dev": 12, "test": 12}
    first = corpus.split("train")[0]
    assert first.key == "train/Ivy-snips-train-0.wav"
    assert first.labels == {
        "text": "PLAY BLUE MOON BY QUEEN",
        "slots": "O track track O artist",
        "intent": "PlayMusic",
        "speaker": "Ivy",
    }
    tokens = spell(first, ("text", "slots"))  # as in the task `sf`
    assert "".join(tokens) == "PLAY B-trackBLUE MOONE-track BY B-artistQUEENE-artist<eos>"


def test_speakers_of_a_split_can_be_chosen(tree: Path) -> None:
    corpus = open_at("snips", tree, train_speakers=["Ivy", "Salli"], dev_speakers=["Amy"])
    assert sizes(corpus) == {"train": 6, "dev": 3, "test": 12}
    with pytest.raises(
        UserError, match="no recording of Nobody: name other speakers in `dev_speakers`"
    ):
        open_at("snips", tree, dev_speakers=["Amy", "Nobody"])
    with pytest.raises(ValidationError, match="every speaker once"):
        SnipsOptions.model_validate({"train_speakers": ["Amy"]})


def test_recordings_without_a_line_are_left_out_and_counted(root: Path) -> None:
    lines = (root / "all.iob.snips.txt").read_text().splitlines()
    (root / "all.iob.snips.txt").write_text("\n".join(lines[2:]) + "\n")
    corpus = open_at("snips", root)
    assert sizes(corpus)["train"] == 22
    assert corpus.notes == ("2 recordings have no line in all.iob.snips.txt and are left out.",)


def test_lines_without_a_recording_are_told(root: Path) -> None:
    """A folder that was copied in part; voices that are not chosen are not missed."""
    for name in ("train/Ivy-snips-train-0", "valid/Amy-snips-valid-1"):
        (root / f"{name}.wav").unlink()
    expected = "2 lines in all.iob.snips.txt have no recording, of these speakers alone."
    assert open_at("snips", root).notes == (expected,)
    others = {"dev_speakers": ["Aditi"], "train_speakers": ["Joey"], "test_speakers": ["Brian"]}
    assert open_at("snips", root, **others).notes == ()


@pytest.mark.parametrize(
    "line",
    [
        "X-snips-train-0 PLAY EOS\tO O i",
        "X BOS PLAY EOS\tO i",
        "X BOS EOS\tO i",
        "X BOS A EOS O i j",
    ],
)
def test_lines_without_one_label_per_word_are_reported(root: Path, line: str) -> None:
    with (root / "all.iob.snips.txt").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(UserError, match=r"line 49 must be .* one label per word"):
        open_at("snips", root)


def test_slots_must_be_listed(root: Path) -> None:
    (root / "slots.txt").write_text("O\ntrack\nartist\ncity\nplaylist\nplaylist_owner")
    with pytest.raises(
        UserError,
        match=r"line 3 has the slots condition_description, which slots.txt does not list",
    ):
        open_at("snips", root)
    (root / "slots.txt").unlink()
    with pytest.raises(UserError, match=r"slots.txt: s3prl's preprocessing"):
        open_at("snips", root)
