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
from tests.speech.corpora.helpers import open_at
from tests.speech.corpora.in_memory import make_corpus
from tests.speech.layouts import speech_commands, tedlium3

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


RECORDING = 0.1 * np.random.default_rng(7).standard_normal(20_000)
CODES = np.round(RECORDING * 2**15).astype(np.int16)
COPIES = {
    "flac": ("a.flac", CODES, "PCM_16"),
    "aiff": ("a.aiff", CODES, "PCM_16"),
    "24 bits": ("a.wav", CODES / 2**15, "PCM_24"),
    "floats": ("a.wav", CODES / 2**15, "FLOAT"),
    "two equal channels": ("a.wav", np.stack([CODES, CODES], axis=1), "PCM_16"),
}
OTHERS = {
    "gain": ("a.wav", CODES // 2, "PCM_16"),
    "trim": ("a.wav", CODES[16:], "PCM_16"),
    "shorter at the end": ("a.wav", CODES[:-16], "PCM_16"),
    "another recording with the same beginning": (
        "a.wav",
        np.append(CODES[:-1], CODES[-1] + 1),
        "PCM_16",
    ),
    "lossy": ("a.ogg", CODES, "VORBIS"),
}


def write_one(folder: Path, split: str, name: str, samples: np.ndarray, subtype: str) -> Corpus:
    """Writes a manifest with one recording at 22.05 kHz, and opens it."""
    folder.mkdir()
    soundfile.write(folder / name, samples, 22_050, subtype=subtype)
    (folder / "manifest.tsv").write_text(f"path\tsplit\n{name}\t{split}\n")
    kind = CORPORA.get("manifest")
    corpus: Corpus = kind.open(kind.options(), folder, folder / "cache")
    return corpus


@pytest.mark.parametrize("name", [*COPIES, *OTHERS])
@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_lossless_copy_is_the_same_recording_and_an_altered_one_is_not(
    tmp_path: Path, name: str, split: str
) -> None:
    tuned = write_one(tmp_path / "tuned", split, *(COPIES | OTHERS)[name])
    tested = write_one(tmp_path / "tested", "test", "x.wav", CODES, "PCM_16")
    assert compute_overlap(tuned, tested).utterances == (name in COPIES)


def test_a_recording_that_cannot_be_decoded_any_more_is_no_copy(tmp_path: Path) -> None:
    tuned = write_one(tmp_path / "tuned", "train", "a.flac", CODES, "PCM_16")
    tested = write_one(tmp_path / "tested", "test", "x.wav", CODES, "PCM_16")
    (tmp_path / "tuned" / "a.flac").unlink()
    (tmp_path / "tested" / "x.wav").unlink()
    assert compute_overlap(tuned, tested).utterances == 0


def test_copies_of_recordings_that_a_corpus_changes_or_cuts_are_detected(tmp_path: Path) -> None:
    """Speech Commands is attenuated by 3 dB and TED-LIUM cut: compared is what the files hold."""
    for name, lay_out, options in (
        ("speech_commands", speech_commands.lay_out, {"silence_crops": 1}),
        ("tedlium3", tedlium3.lay_out, {}),
    ):
        corpus = open_at(name, lay_out(tmp_path / name / "root"), **options)
        folder = tmp_path / name / "copies"
        folder.mkdir()
        rows = ["path\tsplit"]
        gain = 10 ** (3 / 20) if name == "speech_commands" else 1
        for index, utterance in enumerate(corpus.split("test")):
            soundfile.write(
                folder / f"{index}.flac", gain * corpus.read(utterance).astype(float), 16_000
            )
            rows.append(f"{index}.flac\ttrain")
        (folder / "manifest.tsv").write_text("\n".join(rows))
        copies = open_at("manifest", folder)
        test = len(corpus.split("test"))
        assert compute_overlap(copies, corpus)[:2] == (test, test), name
