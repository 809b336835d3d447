"""TIMIT: speakers of the splits, the mapping of 61 phones to 39, names and formats of files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.speech.corpora._timit_tables import CORE_TEST_SPEAKERS, DEV_SPEAKERS, PHONE_MAP
from speechft_ray.speech.corpora.base import CORPORA
from speechft_ray.speech.corpora.timit import read_phones
from speechft_ray.speech.heads.base import IGNORED
from speechft_ray.speech.heads.frame import FrameOptions, make_targets, read_tokens
from speechft_ray.speech.text import Vocabulary
from tests.speech.corpora.helpers import open_at, sizes
from tests.speech.layouts import timit

PHONES_39 = """
    aa ae ah aw ay b ch d dh dx eh er ey f g hh ih iy jh k l m n ng ow oy p r s sh sil t th uh uw v
    w y z
"""
"""Lee & Hon 1989, table II, with its closures and silences as one."""
SPLITS = {
    "train": {"fcjf0", "mcpm0", "marc0"},
    "dev": {"faks0", "mmdb1", "fadg0"},
    "test": {"mdab0", "mwew0", "fpkt0"},
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return timit.lay_out(tmp_path_factory.mktemp("timit") / "root")


@pytest.fixture
def root(tree: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tree, tmp_path / "root"))


def test_the_tables_are_complete() -> None:
    assert sorted(set(PHONE_MAP.values())) == PHONES_39.split() and len(PHONE_MAP) == 60
    assert all(PHONE_MAP[phone] == phone for phone in PHONES_39.split() if phone != "sil")
    assert (len(DEV_SPEAKERS), len(CORE_TEST_SPEAKERS), len(DEV_SPEAKERS & CORE_TEST_SPEAKERS)) == (
        50,
        24,
        0,
    )
    women = {name for name in CORE_TEST_SPEAKERS if name.startswith("f")}
    assert len(women) == 8, "a woman of each dialect region"
    expected = CORPORA.get("timit").expected(CORPORA.get("timit").options())
    assert expected is not None and expected.utterances == {
        "train": 462 * 8,
        "dev": 50 * 8,
        "test": 24 * 8,
    }


def test_splits_are_the_usual_speakers_without_the_sentences_of_all(tree: Path) -> None:
    corpus = open_at("timit", tree)
    assert sizes(corpus) == {"train": 6, "dev": 6, "test": 6}
    for split, speakers in SPLITS.items():
        assert {utterance.labels["speaker"] for utterance in corpus.split(split)} == speakers
    names = {utterance.key.rsplit("/", 1)[1] for utterance in corpus.utterances}
    assert names == {"sx37.wav", "si648.wav"} and not any(
        "fcrh0" in utterance.key for utterance in corpus.utterances
    )
    assert {utterance.labels["text"] for utterance in corpus.utterances} == set(
        list(timit.SENTENCES.values())[1:]
    )


def test_phones_are_folded_and_keep_their_times(tree: Path) -> None:
    utterance = open_at("timit", tree).split("test")[0]
    folded = "sil sh ih hh eh sil jh ih aa r sil k s uw uw sil n sil sh er sil"
    assert utterance.labels["phones"] == folded
    begins = timit.phone_starts(utterance.samples)
    assert [start for start, _ in utterance.alignment] == begins
    assert [label for _, label in utterance.alignment if label] == folded.split()
    assert utterance.alignment[timit.PHONES.index("q")] == (begins[8], "")


def test_the_frame_head_learns_all_but_glottal_stops(tree: Path) -> None:
    utterance = open_at("timit", tree).split("train")[0]
    vocabulary = Vocabulary.of(read_tokens(FrameOptions(), utterance, "phones"), reserved=0)
    labels = make_targets(FrameOptions(), utterance, "phones", vocabulary)
    centres = torch.arange(len(labels)) * 320 + 200
    begins = timit.phone_starts(utterance.samples)
    silent = (centres >= begins[8]) & (centres < begins[9])
    assert (
        silent.any()
        and bool((labels[silent] == IGNORED).all())
        and bool((labels[~silent] != IGNORED).all())
    )
    assert vocabulary.symbols[labels[0]] == "sil"


def test_spelling_and_storage_of_a_copy_do_not_matter(
    tree: Path, root: Path, tmp_path: Path
) -> None:
    upper, lower = (
        open_at("timit", tree),
        open_at("timit", timit.lay_out(tmp_path / "lower" / "root", lower=True)),
    )
    assert lower.fingerprint == upper.fingerprint and list(lower.utterances) == list(
        upper.utterances
    )
    for path in root.rglob("*.WAV"):  # as converted copies keep them, in place or beside
        samples = soundfile.read(path, dtype="int16")[0]
        soundfile.write(path.with_name(f"{path.name}.wav"), samples, 16_000, format="WAV")
        path.unlink()
    riff = open_at("timit", root)
    assert list(riff.utterances) == list(upper.utterances)
    for utterance in upper.split("dev"):
        np.testing.assert_array_equal(riff.read(utterance), upper.read(utterance))


def test_what_is_missing_is_reported(root: Path) -> None:
    folder = root / "TRAIN/DR1/FCJF0"
    (folder / "SX37.PHN").rename(folder / "aside")
    with pytest.raises(
        UserError,
        match=r"a sentence in .*FCJF0 lacks its .WAV, .PHN or .TXT: there is only SX37.TXT, "
        "SX37.WAV",
    ):
        open_at("timit", root)
    (folder / "aside").rename(folder / "SX37.PHN")
    (folder / "SX37.TXT").write_text("Critical equipment\n")
    with pytest.raises(
        UserError, match=r"SX37.TXT line 1 must be `start end` in samples and the words"
    ):
        open_at("timit", root)
    shutil.rmtree(root / "TRAIN")
    with pytest.raises(UserError, match=r"lacks the folder .*TRAIN \(or train\)"):
        open_at("timit", root)
    (root / "TRAIN").mkdir()
    for part in ("DR1", "DR2", "DR3"):
        (root / "TEST" / part).rename(root / part)
    with pytest.raises(UserError, match="no speaker of the split train, test"):
        open_at("timit", root)


@pytest.mark.parametrize(
    ("lines", "mistake"),
    [
        ("0 100 h#\n100 x sh\n", "line 2 must be `start end phone` in samples"),
        ("0 100 h#\n100 200 ZZ\n", "one of TIMIT's 61 phones"),
        ("0 100 h#\n0 200 sh\n", "a phone that starts after sample 0"),
        ("100 100 h#\n", "line 1 must be `start end phone`"),
        ("0 100 q\n", "holds no phone"),
    ],
)
def test_a_bad_line_of_phones_is_reported(lines: str, mistake: str, tmp_path: Path) -> None:
    (tmp_path / "SX1.PHN").write_text(lines)
    with pytest.raises(UserError, match=mistake):
        read_phones(tmp_path / "SX1.PHN")
