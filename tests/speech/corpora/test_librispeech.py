"""LibriSpeech: transcripts, the order of the lexicons, and words that they lack."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from speechft_ray.core.errors import UserError
from speechft_ray.speech.corpora._sampling import draw_speaker_splits
from speechft_ray.speech.corpora.base import Utterance
from speechft_ray.speech.corpora.librispeech import LEXICONS, LibriSpeechOptions
from speechft_ray.speech.synthesis.g2p import convert_to_arpabet, pronounce_words
from tests.speech.corpora.helpers import open_at, sizes
from tests.speech.layouts import librispeech


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return librispeech.lay_out(tmp_path_factory.mktemp("librispeech") / "root")


@pytest.fixture
def root(tree: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(tree, tmp_path / "root"))


def test_folders_are_splits_and_words_become_phones(tree: Path) -> None:
    corpus = open_at("librispeech", tree)
    assert sizes(corpus) == {"train": 8, "dev": 4, "test": 4}
    assert (
        corpus.columns == {"text", "speaker", "phones"}
        and not corpus.notes
        and not corpus.missing_columns
    )
    first = corpus.split("train")[0]
    assert first.key == "train-clean-100/103/1000/103-1000-0000.flac"
    assert first.labels == {
        "text": "THE BIRDS SANG",
        "speaker": "103",
        "phones": "DH AH0 B ER1 D Z S AE1 NG",
    }
    phones = {
        utterance.labels["text"]: utterance.labels["phones"] for utterance in corpus.utterances
    }
    # The first pronunciation of A and, over both files, of OF; no silence between words.
    assert phones["A BOOK OF BIRDS"] == "AH0 B UH1 K AH1 V B ER1 D Z"


def test_any_folders_may_be_a_split(tree: Path) -> None:
    corpus = open_at("librispeech", tree, train=["train-clean-100", "test-clean"], test=[])
    assert sizes(corpus) == {"train": 12, "dev": 4}
    for wrong in (["dev-clean"], ["../dev-clean"], ["/etc"]):
        with pytest.raises(ValidationError):
            LibriSpeechOptions.model_validate({"train": wrong})
    with pytest.raises(UserError, match=r"train-clean-360 \(its split train\)"):
        open_at("librispeech", tree, train=["train-clean-360"])


def test_without_a_lexicon_only_the_phones_are_missing(root: Path) -> None:
    (root / LEXICONS[0]).unlink()
    corpus = open_at("librispeech", root)
    assert corpus.columns == {"text", "speaker"}
    assert (
        LEXICONS[0] in corpus.missing_columns["phones"]
        and LEXICONS[1] not in corpus.missing_columns["phones"]
    )


def test_missing_words_are_counted_and_the_first_five_named(root: Path) -> None:
    (root / LEXICONS[0]).write_text("A\tAH0\n")
    (root / LEXICONS[1]).write_text("OF\tAH1 V\n")
    assert open_at("librispeech", root).columns == {"text", "speaker"}
    reason = open_at("librispeech", root).missing_columns["phones"]
    assert (
        "9 words have no pronunciation" in reason
        and "(BIRDS, BOOK, GAVE, HE, HER and 4 more)" in reason
    )
    assert "`g2p: espeak`" in reason


def test_espeak_pronounces_missing_words_with_a_note(root: Path) -> None:
    lines = (root / LEXICONS[0]).read_text().splitlines()
    (root / LEXICONS[0]).write_text(
        "".join(f"{line}\n" for line in lines if not line.startswith("GAVE"))
    )
    corpus = open_at("librispeech", root, g2p="espeak")
    phones = {
        utterance.labels["text"]: utterance.labels["phones"] for utterance in corpus.utterances
    }
    assert phones["HE GAVE HER A BOOK"] == "HH IY1 G EY1 V HH ER0 AH0 B UH1 K"
    assert corpus.notes == ("1 of 11 words are pronounced by espeak-ng (GAVE): approximate.",)


def test_spoken_words_have_the_phones_of_the_cmu_dictionary() -> None:
    """Entries of the CMU dictionary; words on which espeak-ng's American English agrees with it."""
    dictionary = {
        "HELLO": "HH AH0 L OW1",
        "JUDGE": "JH AH1 JH",
        "MEASURE": "M EH1 ZH ER0",
        "THOUGHT": "TH AO1 T",
        "UNIQUE": "Y UW0 N IY1 K",
        "CHILDREN'S": "CH IH1 L D R AH0 N Z",
        "BUTTON": "B AH1 T AH0 N",
    }
    assert pronounce_words(list(dictionary)) == dictionary
    assert convert_to_arpabet("ˈæŋ") == "AE0 NG" and convert_to_arpabet("") == ""


def test_recordings_without_words_and_words_with_mistakes_are_reported(root: Path) -> None:
    file = root / "dev-clean/84/1002/84-1002.trans.txt"
    text = file.read_text()
    file.write_text(text.splitlines()[0] + "\n")
    with pytest.raises(UserError, match=r"1 recordings .*no line in any .trans.txt: 84-1002-0001"):
        open_at("librispeech", root)
    file.write_text(text + "84-1002-0007 A LINE WITHOUT A FILE\n")
    with pytest.raises(UserError, match=r"84-1002-0007\.flac"):  # copied in part
        open_at("librispeech", root)
    file.write_text(text + "84-1002-0009\n")
    with pytest.raises(UserError, match="line 3 must be the name of a recording and its words"):
        open_at("librispeech", root)
    file.write_text(text)
    (root / LEXICONS[1]).write_text("THE\n")
    with pytest.raises(
        UserError, match="line 1 must be a word and its phones, but is `THE` instead"
    ):
        open_at("librispeech", root)
    shutil.rmtree(root / "test-clean")
    (root / "test-clean").mkdir()
    with pytest.raises(UserError, match=r"no \.flac file below"):
        open_at("librispeech", root)


SECOND = 1 / 3600


def test_hours_of_speakers_keep_every_speaker_in_every_split(root: Path) -> None:
    for folder in ("dev-clean", "test-clean"):  # they have other speakers, and are not needed
        shutil.rmtree(root / folder)
    corpus = open_at("librispeech", root, speaker_hours=0.1 * SECOND)
    assert sizes(corpus) == {"train": 2, "dev": 2, "test": 2} and corpus.columns == {
        "text",
        "speaker",
        "phones",
    }
    for split in ("train", "dev", "test"):
        assert {one.labels["speaker"] for one in corpus.split(split)} == {"103", "1034"}
        assert all(one.key.startswith("train-clean-100/") for one in corpus.split(split))
    assert len(corpus.read(corpus.split("dev")[0])) == corpus.split("dev")[0].samples
    assert set(corpus.audio_ids) == {one.key for one in corpus.utterances}
    again = open_at("librispeech", root, speaker_hours=0.1 * SECOND)
    assert again.fingerprint == corpus.fingerprint and again.utterances == corpus.utterances
    others = [
        open_at("librispeech", root, speaker_hours=0.1 * SECOND, seed=seed) for seed in range(1, 5)
    ]
    assert len({other.fingerprint for other in [corpus, *others]}) > 2
    everything = open_at("librispeech", root, speaker_hours=10)
    assert sizes(everything) == {"train": 4, "dev": 2, "test": 2} and not corpus.notes
    assert everything.notes == (
        "there are 0.00 hours to draw from, and `speaker_hours` needs 13.89.",
    )
    chapter = root / "train-clean-100/103/1000"
    lines = (chapter / "103-1000.trans.txt").read_text().splitlines()
    (chapter / "103-1000.trans.txt").write_text("\n".join(lines[2:]) + "\n")
    for line in lines[:2]:
        (chapter / f"{line.split()[0]}.flac").unlink()
    with pytest.raises(UserError, match="the speaker `103` has 2 recordings, and 3 are needed"):
        open_at("librispeech", root, speaker_hours=0.1 * SECOND)


def test_speakers_have_equal_numbers_and_splits_their_hours() -> None:
    everyone = [
        Utterance(
            key=f"{speaker}-{index}",
            split="train",
            samples=16_000 * (3 + index % 5),
            labels={"speaker": str(speaker)},
        )
        for speaker in range(20)
        for index in range(30 + speaker)
    ]
    hours = {"train": 720 * SECOND, "dev": 80 * SECOND, "test": 200 * SECOND}
    splits = draw_speaker_splits(everyone, hours, seed=3)
    for split, needed in hours.items():
        chosen = [one for one in everyone if splits.get(one.key) == split]
        assert (
            needed <= sum(one.seconds for one in chosen) / 3600 < needed + 7 * SECOND
            or split == "dev"
        )
        counts = Counter(one.labels["speaker"] for one in chosen)
        assert len(counts) == 20 and max(counts.values()) - min(counts.values()) <= 1
    assert draw_speaker_splits(everyone[::-1], hours, seed=3) == splits
    assert draw_speaker_splits(everyone, hours, seed=4) != splits


def test_without_hours_of_speakers_nothing_is_drawn(tree: Path) -> None:
    assert (
        open_at("librispeech", tree, seed=5).fingerprint == open_at("librispeech", tree).fingerprint
    )
