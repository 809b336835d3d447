"""Overlap of two corpora: of recordings by identity or key, of speakers by namespace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechft_ray.speech.corpora.base import CORPORA, NO_SPEAKER, Corpus
from speechft_ray.speech.corpora.overlap import Overlap, compute_overlap
from tests.speech.corpora.in_memory import make_corpus

TUNED = make_corpus(
    [("a", "train", "ann"), ("b", "train", "bob"), ("c", "dev", "cid"), ("d", "test", "dan")]
)
TESTED = make_corpus(
    [
        ("a", "test", "ann"),
        ("c", "test", "cid"),
        ("d", "test", "dan"),
        ("e", "test", "ann"),
        ("b", "train", "bob"),
    ]
)


def test_what_is_tuned_on_or_chosen_by_and_then_tested_on_is_shared() -> None:
    """Key d is test in both and b is not tested on: neither leaks. Dan is in no tuning data."""
    assert compute_overlap(TUNED, TESTED) == Overlap(2, 4, 2, 3)


def test_keys_and_speakers_mean_nothing_between_two_corpora() -> None:
    assert compute_overlap(replace(TUNED, name="other"), TESTED) == Overlap(0, 4, 0, 0)


def test_one_recording_is_found_under_another_key_and_name() -> None:
    tuned = replace(TUNED, name="other", audio_ids={"a": "x", "b": "y", "c": "z", "d": "w"})
    tested = replace(TESTED, audio_ids={"a": "new", "c": "y", "d": "w", "e": "x", "b": "x"})
    assert compute_overlap(tuned, tested)[:2] == (2, 4), "y as c and x as e; a is another recording"
    assert compute_overlap(replace(tuned, name="one"), TESTED)[:2] == (2, 4), (
        "by key where only one side has audio ids"
    )


def test_speakers_are_compared_within_a_namespace_without_no_speaker() -> None:
    tuned = make_corpus(
        [("m", "train", "ann bob"), ("n", "train", NO_SPEAKER)],
        "mixtures",
        speaker_namespace="them",
    )
    tuned = replace(tuned, columns=frozenset({"speaker", "segments"}))
    tested = make_corpus(
        [("p", "test", "bob"), ("q", "test", NO_SPEAKER), ("r", "test", "cid"), ("s", "test", "")],
        "plain",
        speaker_namespace="them",
    )
    assert compute_overlap(tuned, tested)[2:] == (1, 2)
    assert compute_overlap(replace(tuned, columns=frozenset({"speaker"})), tested)[2:] == (0, 2), (
        "`ann bob` is one name"
    )


def write_manifest(folder: Path, rows: Mapping[str, tuple[str, int]]) -> Corpus:
    """Writes a manifest corpus; ``rows``: by file, its split and the seed of its noise."""
    folder.mkdir()
    for name, (_, seed) in rows.items():
        soundfile.write(
            folder / name, 0.1 * np.random.default_rng(seed).standard_normal(1600), 16_000
        )
    lines = [
        "path\tsplit\tspeaker",
        *(f"{name}\t{split}\tann" for name, (split, _) in rows.items()),
    ]
    (folder / "manifest.tsv").write_text("\n".join(lines) + "\n")
    kind = CORPORA.get("manifest")
    corpus: Corpus = kind.open(kind.options(), folder, folder / "cache")
    return corpus


def test_recordings_on_disk_are_identified_by_their_bytes(tmp_path: Path) -> None:
    tuned = write_manifest(
        tmp_path / "tuned", {"a.wav": ("train", 1), "b.wav": ("dev", 2), "c.wav": ("test", 3)}
    )
    tested = write_manifest(
        tmp_path / "tested", {"x.wav": ("test", 2), "y.wav": ("test", 3), "a.wav": ("test", 4)}
    )
    assert compute_overlap(tuned, tested) == Overlap(1, 3, 0, 0)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Corpus]:
    folder, kind = tmp_path_factory.mktemp("synthetic"), CORPORA.get("synthetic")
    sizes = {"speakers": 2, "train": 4, "dev": 0, "test": 4}
    options = {
        "plain": {"part": "sid", **sizes},
        "more": {"part": "sid", **sizes, "test": 6},
        "other seed": {"part": "sid", **sizes, "seed": 1},
    }
    return {
        name: kind.open(kind.options.model_validate(values), None, folder)
        for name, values in options.items()
    }


def test_equal_audio_ids_are_equal_samples(synthetic: dict[str, Corpus]) -> None:
    """Equal identities are equal samples, and different ones different samples."""
    plain, more, other = synthetic["plain"], synthetic["more"], synthetic["other seed"]
    for one, two in ((plain, more), (plain, other)):
        for first in one.utterances:
            for second in two.utterances:
                alike = one.audio_ids[first.key] == two.audio_ids[second.key]
                assert alike == np.array_equal(one.read(first), two.read(second))
    assert sum(
        plain.audio_ids[item.key] == more.audio_ids[item.key] for item in plain.utterances
    ) == len(plain.utterances)


def test_synthetic_corpora_have_one_speaker_namespace(synthetic: dict[str, Corpus]) -> None:
    assert compute_overlap(synthetic["plain"], synthetic["more"]) == Overlap(0, 6, 2, 2), (
        "train and dev share speakers with test, not utterances"
    )
