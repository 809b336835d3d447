"""Speech Commands: the hash of the splits, twelve classes, and silence."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.speech.audio import read_audio
from speechft_ray.speech.corpora.speech_commands import split_of
from tests.speech.corpora.helpers import open_at, sizes
from tests.speech.layouts import speech_commands
from tests.speech.layouts.voices import write_audio


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speech_commands.lay_out(tmp_path_factory.mktemp("speech_commands") / "root")


@pytest.fixture
def root(tree: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tree, tmp_path / "root"))


def test_the_hash_gives_the_lists_that_the_archive_ships() -> None:
    """Speakers of the official ``validation_list.txt`` are dev; those of ``testing_list.txt`` are
    in no split."""
    for speaker in (
        *speech_commands.VALIDATION,
        "a6d586b7",
        "0e17f595",
        "ff2b842e",
        "7fd25f7c",
        "3cc595de",
    ):
        assert split_of(f"{speaker}_nohash_3.wav") == "dev"
    for speaker in (
        *speech_commands.TESTING,
        "dc75148d",
        "3f170018",
        "18f8afd5",
        "e1469561",
        "5c8af87a",
    ):
        assert split_of(f"{speaker}_nohash_0.wav") is None


def test_four_fifths_of_all_speakers_are_train() -> None:
    """Against the same rule in whole numbers: a tenth of 2^27 buckets is dev, a tenth is
    discarded."""
    names = [hashlib.sha256(str(index).encode()).hexdigest()[:8] for index in range(2_000)]
    buckets = [
        int.from_bytes(hashlib.sha1(name.encode()).digest(), "big") & 0x7FFFFFF for name in names
    ]
    tenths = [bucket * 10 // 0x7FFFFFF for bucket in buckets]
    assert [split_of(f"{name}_nohash_1.wav") for name in names] == [
        {0: "dev", 1: None}.get(tenth, "train") for tenth in tenths
    ]


def test_twelve_classes_in_three_splits(tree: Path) -> None:
    corpus = open_at("speech_commands", tree, silence_crops=3)
    train = sum(
        split_of(f"{speaker}_nohash_0.wav") == "train" for speaker in speech_commands.INVENTED
    )
    dev = len(speech_commands.SPEAKERS) - len(speech_commands.TESTING) - train
    assert sizes(corpus) == {"train": 12 * train + 6, "dev": 12 * dev + 6, "test": 13}
    for split in ("train", "dev", "test"):
        labels = [utterance.labels["keyword"] for utterance in corpus.split(split)]
        assert set(labels) == {*speech_commands.KEYWORDS, "_unknown_", "_silence_"}
        assert labels.count("_unknown_") == 2 * labels.count("yes")
    speakers = {
        split: {u.labels["speaker"] for u in corpus.split(split)} - {"none"}
        for split in ("train", "dev")
    }
    assert (
        not speakers["train"] & speakers["dev"]
        and set(speech_commands.VALIDATION) <= speakers["dev"]
    )


def test_everything_is_three_decibels_quieter(tree: Path) -> None:
    corpus = open_at("speech_commands", tree, silence_crops=1)
    for utterance in (corpus.split("dev")[-1], corpus.split("test")[-1]):
        power = np.mean(corpus.read(utterance) ** 2) / np.mean(read_audio(utterance.key, tree) ** 2)
        assert abs(10 * np.log10(power) + 3) < 1e-4


def test_silence_is_seconds_of_the_background(tree: Path) -> None:
    corpus = open_at("speech_commands", tree, silence_crops=4)
    silent = [
        u for u in corpus.utterances if u.labels["keyword"] == "_silence_" and u.split != "test"
    ]
    assert len(silent) == 2 * 2 * 4 and {u.samples for u in silent} == {16_000}
    assert len({corpus.read(u).tobytes() for u in silent}) == len(silent), (
        "each crop is another second"
    )
    whole = read_audio(silent[0].key.split("#")[0], tree) * np.float32(10 ** (-3 / 20))
    crop = corpus.read(silent[0])
    assert any(
        np.array_equal(whole[start : start + 16_000], crop)
        for start in np.flatnonzero(whole == crop[0])
    )


def test_clean_silence_shares_no_second(tree: Path) -> None:
    def places(protocol: str) -> dict[str, set[int]]:
        corpus = open_at("speech_commands", tree, silence_crops=30, protocol=protocol)
        positions: dict[str, set[int]] = {"train": set(), "dev": set()}
        for utterance in corpus.utterances:
            if "pink_noise.wav#" in utterance.key:
                whole = read_audio(utterance.key.split("#")[0], tree) * np.float32(10 ** (-3 / 20))
                crop = corpus.read(utterance)
                start = next(
                    s
                    for s in np.flatnonzero(whole == crop[0])
                    if np.array_equal(whole[s : s + 16_000], crop)
                )
                positions[utterance.split].update(range(start, start + 16_000))
        return positions

    assert places("superb")["train"] & places("superb")["dev"]
    clean = places("clean")
    assert not clean["train"] & clean["dev"] and max(clean["train"]) < 80_000 <= min(clean["dev"])


def test_what_is_missing_is_reported(root: Path) -> None:
    noise = root / "speech_commands_v0.01/_background_noise_"
    write_audio(noise / "short.wav", np.full(10_000, 0.1))
    with pytest.raises(
        UserError, match=r"short.wav is too short to cut seconds of silence for train"
    ):
        open_at("speech_commands", root)
    (noise / "short.wav").write_bytes(b"x")
    with pytest.raises(SpecError, match=r"short.wav is not a readable audio file"):
        open_at("speech_commands", root)
    assert open_at("speech_commands", root, on_bad_audio="skip").skipped == {"train": 1}
    for folder, words in (
        ("speech_commands_v0.01/_background_noise_", "source of the silence"),
        ("speech_commands_test_set_v0.01/_unknown_", "a class"),
        ("speech_commands_v0.01/go", "lacks the words go"),
        ("speech_commands_test_set_v0.01", "the official test set"),
    ):
        shutil.rmtree(root / folder)
        with pytest.raises(UserError, match=words):
            open_at("speech_commands", root)
