"""Fish Fillets NG: what is a line, who speaks it, and in which split."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from speechft_ray.core.errors import UserError
from speechft_ray.core.records import Place
from speechft_ray.core.specs import CorpusSpec
from speechft_ray.speech.corpora import fillets as module
from speechft_ray.speech.corpora.base import CORPORA, SPLITS, CorpusKind
from speechft_ray.stages.sources import open_corpus
from tests.speech.corpora.helpers import open_at, sizes
from tests.speech.layouts import fillets


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fillets.lay_out(tmp_path_factory.mktemp("fillets") / "root")


def test_lines_have_text_character_and_language(root: Path) -> None:
    corpus = open_at("fillets", root)
    assert sizes(corpus) == {"train": 8, "dev": 4, "test": 4}
    labels = {item.key: dict(item.labels) for item in corpus.split("test")}
    assert labels == {
        "sound/chest/cs/let-m-divna.ogg": {
            "text": "co je to za divnou loď",
            "character": "small",
            "language": "cs",
            "speaker": "cs-small",
        },
        "sound/chest/cs/let-v-oko.ogg": {
            "text": "je to oko gyroskop",
            "character": "big",
            "language": "cs",
            "speaker": "cs-big",
        },
        "sound/chest/nl/let-m-divna.ogg": {
            "text": "wat een schip",
            "character": "small",
            "language": "nl",
            "speaker": "nl-small",
        },
        "sound/chest/nl/let-v-oko.ogg": {
            "text": "t is een oog",
            "character": "big",
            "language": "nl",
            "speaker": "nl-big",
        },
    }
    notes = " ".join(corpus.notes)
    assert "1 recordings without a line in the script of their level are left out" in notes
    assert "8 lines with digits or in another script are left out" in notes


def test_options_choose_language_and_characters(root: Path) -> None:
    assert {
        item.labels["language"] for item in open_at("fillets", root, language="nl").utterances
    } == {"nl"}
    both = open_at("fillets", root, characters="all")
    assert Counter(item.labels["character"] for item in both.utterances) == {
        "small": 8,
        "big": 8,
        "parrot": 8,
    }


def test_hours_are_drawn_from_the_training_lines(root: Path) -> None:
    whole = open_at("fillets", root)
    (shortest,) = sorted(item.seconds for item in whole.split("train"))[:1]
    few = open_at("fillets", root, train_hours=2 * shortest / 3600)
    assert 1 <= len(few.split("train")) <= 2 and sizes(few)["test"] == 4
    other = open_at("fillets", root, train_hours=2 * shortest / 3600, seed=1)
    assert few.fingerprint not in (whole.fingerprint, other.fingerprint)


def test_hours_of_dev_and_test_are_drawn_too(root: Path) -> None:
    whole = open_at("fillets", root)
    hours = {split: min(item.seconds for item in whole.split(split)) / 3600 for split in SPLITS}
    few = open_at("fillets", root, dev_hours=hours["dev"], test_hours=hours["test"])
    assert sizes(few) == {"train": sizes(whole)["train"], "dev": 1, "test": 1}
    drawn = {item.key: item.split for item in few.utterances}
    assert drawn.items() <= {item.key: item.split for item in whole.utterances}.items()
    assert [note for note in few.notes if "drawn" in note] == [
        f"1 of {sizes(whole)[split]} lines of {split} are drawn." for split in ("dev", "test")
    ]


def test_a_level_is_in_one_split_in_both_languages(root: Path) -> None:
    corpus = open_at("fillets", root)
    for item in corpus.utterances:
        assert item.split == fillets.LEVELS[item.key.split("/")[1]]


def test_a_language_that_is_not_installed_is_named(root: Path, tmp_path: Path) -> None:
    (tmp_path / "sound").mkdir()
    (tmp_path / "script").symlink_to(root / "script")
    for level in fillets.LEVELS:
        (tmp_path / "sound" / level).mkdir()
        (tmp_path / "sound" / level / "nl").symlink_to(root / "sound" / level / "nl")
    assert len(open_at("fillets", tmp_path, language="nl").utterances) == 8
    with pytest.raises(UserError, match=r"no recording of a line in `cs`: `apt install fillets"):
        open_at("fillets", tmp_path)


def test_the_folder_of_the_package_is_read_by_itself(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = CorpusSpec(name="fillets", options={"language": "nl"})
    kind = CORPORA.get("fillets")

    def move_package(folder: Path) -> None:
        fields = {**kind.__dict__, "package_folder": folder}
        monkeypatch.setitem(CORPORA._parts, "fillets", CorpusKind(**fields))

    move_package(tmp_path / "missing")
    place = Place(storage=str(tmp_path / "runs"), encoder="none", corpora=str(tmp_path))
    with pytest.raises(UserError, match=module.INSTALL):
        open_corpus(spec, place)
    move_package(root)
    assert len(open_corpus(spec, place).utterances) == 8
