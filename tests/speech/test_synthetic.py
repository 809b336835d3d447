"""Synthetic corpora: equal bytes from equal options, exact alignments, labels of every part."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from speechft_ray.core.fingerprint import file_sha256, fingerprint
from speechft_ray.speech.corpora import synthetic
from speechft_ray.speech.corpora.base import Corpus
from speechft_ray.speech.corpora.synthetic import SyntheticOptions, make_corpus, open_synthetic
from speechft_ray.speech.synthesis import workers
from speechft_ray.speech.synthesis.acoustics import render
from speechft_ray.speech.synthesis.espeak import SOURCE_RATE_HZ, Speech
from speechft_ray.speech.synthesis.parts import PARTS, make_items
from speechft_ray.speech.synthesis.phones import make_alignment, normalise_phone
from speechft_ray.speech.synthesis.speakers import (
    SpeakingStyle,
    UtteranceSpec,
    make_speaker_pools,
    make_speakers,
    make_utterance_spec,
)
from speechft_ray.superb.tasks.sd import parse_turns

SMALL = {"train": 5, "dev": 2, "test": 3}
ENGLISH = {
    *("sil", "@", "3", "A", "E", "I", "O", "OI", "U", "V", "a", "aI", "aU", "b", "d", "dZ", "D"),
    *("eI", "f", "g", "h", "i", "j", "k", "l", "m", "n", "N", "oU", "p", "r", "s", "S", "t"),
    *("tS", "T", "u", "v", "w", "z", "Z"),
}


def options(part: str, **sizes: int) -> SyntheticOptions:
    return SyntheticOptions.model_validate({"part": part, **SMALL, **sizes})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def corpus(cache: Path) -> Corpus:
    return open_synthetic(options("pr"), None, cache)


def make_clean_spec(**changes: Any) -> UtteranceSpec:
    """Returns an utterance of the first speaker with nearly no noise and reverberation."""
    neutral = make_utterance_spec(
        "word", "en-us", make_speakers()[0], SpeakingStyle(), random.Random(0)
    )
    quiet = {
        "snr_db": 90.0,
        "reverberation_seconds": 0.05,
        "tilt_db_per_octave": 0.0,
        "down": 441,
        "level_db": -30.0,
    }
    return replace(neutral, **{**quiet, **changes})


# --- Reproducible -------------------------------------------------------------------------


def test_two_generations_agree_whatever_the_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "CHUNK_UTTERANCES", 3)
    make_corpus(options("er"), tmp_path / "one", workers=1)
    make_corpus(options("er"), tmp_path / "many", workers=3)
    for name in ("audio.npy", "items.jsonl", "manifest.json"):
        assert file_sha256(tmp_path / "one" / name) == file_sha256(tmp_path / "many" / name), name


def test_another_seed_is_another_corpus(corpus: Corpus, tmp_path: Path) -> None:
    other = open_synthetic(options("pr", seed=1), None, tmp_path)
    assert other.fingerprint != corpus.fingerprint
    assert [u.labels["text"] for u in other.utterances] != [
        u.labels["text"] for u in corpus.utterances
    ]


def test_a_larger_corpus_begins_with_the_smaller_one(corpus: Corpus, tmp_path: Path) -> None:
    larger = open_synthetic(options("pr", train=7), None, tmp_path)
    for split in ("train", "dev", "test"):
        for one, other in zip(corpus.split(split), larger.split(split), strict=False):
            assert one == other
            np.testing.assert_array_equal(corpus.read(one), larger.read(other))


def compute_plan_fingerprint(part: str) -> str:
    def round_value(value: object) -> object:  # the last bits of a logarithm belong to the platform
        return round(value, 9) if isinstance(value, float) else value

    items = make_items(part, 0, {"train": 30, "test": 30}, 24)
    specs = [
        {name: round_value(value) for name, value in asdict(item.spec).items()} for item in items
    ]
    return fingerprint([specs, [dict(item.labels) for item in items]])


def test_plans_are_pinned() -> None:
    """Audio and labels follow from the plan: raise GENERATOR_VERSION and pin anew on a change."""
    assert (
        synthetic.GENERATOR_VERSION,
        {part: compute_plan_fingerprint(part) for part in PARTS},
    ) == (
        1,
        PINNED,
    )


PINNED = {
    "pretrain": "a16b6481710c188a",
    "phones": "06d5e299b27fc9c9",
    "pr": "eb2186ca2849d955",
    "sid": "8504a26d09bf8bcb",
    "er": "77588ffa7d61ae27",
    "sf": "d85bab0e7001624b",
    "ks": "50e3781bc38cab4d",
    "ic": "98521bc4eceb68e6",
    "zh": "09ff3f7fb26c02fc",
    "sd": "1f40ba1a535ab7ae",
    "qbe": "1bfec53db353cae7",
}


# --- Published once -----------------------------------------------------------------------


def test_a_second_open_makes_nothing(
    corpus: Corpus, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "synthesise", lambda *_: pytest.fail("made again"))
    again = open_synthetic(options("pr"), None, cache)
    assert again.fingerprint == corpus.fingerprint
    assert again.utterances == corpus.utterances
    assert not list(cache.glob(".making*"))


@pytest.mark.parametrize("damage", ["cut", "flip", "items", "manifest"])
def test_a_damaged_cache_is_made_again(tmp_path: Path, damage: str) -> None:
    first = open_synthetic(options("ks"), None, tmp_path)
    (folder,) = tmp_path.glob("synthetic-ks-*")
    name = {"items": "items.jsonl", "manifest": "manifest.json"}.get(damage, "audio.npy")
    content = bytearray((folder / name).read_bytes())
    if damage == "cut":
        del content[-100:]
    else:
        content[len(content) // 2] ^= 1
    (folder / name).unlink()
    (folder / name).write_bytes(content)
    again = open_synthetic(options("ks"), None, tmp_path)
    assert again.fingerprint == first.fingerprint
    assert bytes(content) != (folder / name).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_the_corpus_of_a_faster_process_is_used(tmp_path: Path) -> None:
    make_corpus(options("ks"), tmp_path / "slow", workers=1)
    make_corpus(options("ks"), tmp_path / "place", workers=1)
    assert synthetic._publish(tmp_path / "slow", tmp_path / "place")["options"]["part"] == "ks"
    assert (tmp_path / "slow").is_dir()


def test_the_error_of_a_failing_worker_is_reported_and_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [
        replace(item, spec=replace(item.spec, voice="xx-none"))
        for item in make_items("ks", 0, {"train": 1}, 2)
    ]
    monkeypatch.setattr(synthetic, "make_items", lambda *_: broken)
    with pytest.raises(
        RuntimeError, match=r"(?s)ks-train-00000 ended with code 1.*refused voice xx-none"
    ):
        open_synthetic(options("ks"), None, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_workers_start_light_and_espeak_only_once() -> None:
    code = (
        "import sys; from speechft_ray.speech.synthesis import chunk, espeak; "
        "print(sorted({'torch', 'scipy', 'ray', 'pydantic'} & set(sys.modules))); "
        "espeak.start(1); espeak.start(1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]"
    assert "start it once per process" in done.stderr


# --- Alignments ------------------------------------------------------------------------


@pytest.mark.parametrize("down", [400, 441, 495])
def test_an_onset_stays_with_its_sound(down: int) -> None:
    """A click at one sample of the source comes out at its onset through every filter."""
    wave = np.zeros(22_050, dtype=np.int16)
    wave[12_345] = 30_000
    audio, onsets = render(
        Speech(wave=wave, onsets=((12_345, "t"),)),
        make_clean_spec(down=down, tilt_db_per_octave=-2.0),
    )
    assert onsets[0][1] == "t"
    assert abs(int(np.abs(audio.astype(int)).argmax()) - onsets[0][0]) <= 1


@pytest.mark.parametrize("down", [400, 441, 495])
def test_the_vocal_tract_scales_by_down_over_441(down: int) -> None:
    wave = (8_000 * np.sin(2 * np.pi * 1_000 * np.arange(22_050) / SOURCE_RATE_HZ)).astype(np.int16)
    audio, _ = render(Speech(wave=wave, onsets=()), make_clean_spec(down=down))
    middle = audio[2_000:10_000]
    peak_hz = np.abs(np.fft.rfft(middle * np.hanning(len(middle)))).argmax() * 16_000 / len(middle)
    assert peak_hz == pytest.approx(1_000 * down / 441, abs=3)


@pytest.mark.parametrize("snr_db", [3.0, 12.0, 20.0])
def test_noise_has_the_snr_of_the_spec(snr_db: float) -> None:
    wave = (8_000 * np.sin(np.arange(22_050) / 9)).astype(np.int16)
    clean, _ = render(Speech(wave=wave, onsets=()), make_clean_spec(snr_db=200.0))
    noisy, _ = render(Speech(wave=wave, onsets=()), make_clean_spec(snr_db=snr_db))
    noise = noisy.astype(float) - clean
    assert 10 * np.log10((clean.astype(float) ** 2).mean() / (noise**2).mean()) == pytest.approx(
        snr_db, abs=0.05
    )
    assert 10 * np.log10(((clean / 32767.0) ** 2).mean()) == pytest.approx(-30, abs=0.05)


def test_reverberation_falls_by_sixty_decibels_in_its_time() -> None:
    wave = np.zeros(22_050, dtype=np.int16)
    wave[2_000] = 30_000
    audio, ((start, _),) = render(
        Speech(wave=wave, onsets=((2_000, "t"),)),
        make_clean_spec(reverberation_seconds=0.4, snr_db=120.0, level_db=-35.0),
    )
    blocks = [audio[start + round(at * 16_000) :][:800].astype(float) for at in (0.05, 0.25)]
    fall_db = 10 * np.log10((blocks[0] ** 2).mean() / (blocks[1] ** 2).mean())
    assert fall_db == pytest.approx(60 * 0.2 / 0.4, abs=3)


def test_alignment_follows_the_sound(corpus: Corpus) -> None:
    """Frames labelled as silence are clearly quieter than vowels, in the corpus' own noise."""
    quiet, loud = [], []
    for utterance in corpus.utterances:
        wave = corpus.read(utterance)
        ends = [*(start for start, _ in utterance.alignment[1:]), utterance.samples]
        for (start, label), end in zip(utterance.alignment, ends, strict=True):
            power = float((wave[start:end] ** 2).mean())
            if start == 0:
                quiet.append(power)
            elif label in ("a", "i", "aI", "oU", "eI", "A"):
                loud.append(power)
    assert np.median(loud) > 3 * np.median(quiet)


def test_alignments_ascend_and_spell_the_phones(corpus: Corpus) -> None:
    for utterance in corpus.utterances:
        starts = [start for start, _ in utterance.alignment]
        assert utterance.alignment[0] == (0, "sil")
        assert all(before < after for before, after in pairwise(starts))
        assert starts[-1] < utterance.samples
        labels = [label for _, label in utterance.alignment]
        assert " ".join(label for label in labels if label != "sil") == utterance.labels["phones"]
        assert set(labels) <= ENGLISH
        assert ("sil", "sil") not in set(pairwise(labels))


def test_marks_of_no_length() -> None:
    onsets = [
        (100, "h"),
        (200, "'I"),
        (300, "l"),
        (300, "_:"),
        (400, "_"),
        (500, "_|"),
        (500, "t#"),
        (600, "_:"),
    ]
    assert make_alignment(onsets) == [
        (0, "sil"),
        (100, "h"),
        (200, "I"),
        (260, "l"),
        (300, "sil"),
        (500, "t"),
        (600, "sil"),
    ]


def test_phone_names_lose_stress_and_length() -> None:
    labels = {
        "'i:": "i",
        ",oU": "oU",
        "I2": "I",
        "'A@": "A",
        "t#": "t",
        "_:": "sil",
        "_|": "sil",
        "tS;h": "tS;h",
        "@L": "l",
    }
    assert {name: normalise_phone(name) for name in labels} == labels


# --- Labels ---------------------------------------------------------------------------


def test_test_speakers_and_voices_are_not_in_train() -> None:
    pools = make_speaker_pools()
    for column in ("name", "variant"):
        sets = [
            {getattr(speaker, column) for speaker in pools[pool]}
            for pool in ("train", "dev", "test")
        ]
        assert sum(map(len, sets)) == len(set.union(*sets))
    items = make_items("pr", 0, {"train": 200, "dev": 50, "test": 100}, 60)
    speakers = {
        split: {i.labels["speaker"] for i in items if i.split == split}
        for split in ("train", "dev", "test")
    }
    assert not speakers["train"] & speakers["test"] and not speakers["train"] & speakers["dev"]
    assert len(speakers["train"]) == 60


def test_speaker_identification_has_all_speakers_in_all_splits() -> None:
    items = make_items("sid", 0, {"train": 800, "dev": 200, "test": 1000}, 48)
    speakers = {
        split: {i.labels["speaker"] for i in items if i.split == split}
        for split in ("train", "dev", "test")
    }
    assert speakers["train"] == speakers["dev"] == speakers["test"]
    assert len(speakers["train"]) == 48
    assert len({(s.variant, s.pitch, s.down) for s in make_speakers()}) == len(make_speakers())


@pytest.mark.parametrize(
    ("part", "column", "classes"),
    [("er", "emotion", 4), ("ks", "keyword", 20), ("ic", "action", 6)],
)
def test_classes_are_balanced_and_not_tied_to_speakers(
    part: str, column: str, classes: int
) -> None:
    items = make_items(part, 0, {"train": 1200}, 6)
    counts = Counter(item.labels[column] for item in items)
    assert len(counts) == classes
    if part != "ic":  # Fluent Speech Commands has more of some actions, and so has this
        assert set(counts.values()) == {1200 // classes}
    assert len({(item.labels["speaker"], item.labels[column]) for item in items}) == 6 * classes


def test_every_word_of_a_request_has_its_slot() -> None:
    items = make_items("sf", 0, {"train": 300}, 10)
    for item in items:
        assert len(item.labels["slots"].split()) == len(item.labels["text"].split())
        assert item.labels["text"] == item.labels["text"].upper()
    names = {slot for item in items for slot in item.labels["slots"].split()}
    assert len(names) == 15 and "O" in names and not any(name[1:2] == "-" for name in names)
    assert len({item.labels["intent"] for item in items}) == 6


def test_emotions_are_audible(tmp_path: Path) -> None:
    """The audio has the contrasts of the plan: anger is fast and bright, sadness slow and dark."""
    corpus = open_synthetic(options("er", train=40, dev=0, test=0), None, tmp_path)
    pace: dict[str, list[float]] = {}
    bright: dict[str, list[float]] = {}
    for utterance in corpus.utterances:
        emotion, wave = utterance.labels["emotion"], corpus.read(utterance)
        power = np.abs(np.fft.rfft(wave)) ** 2
        hertz = np.fft.rfftfreq(len(wave), 1 / 16_000)
        pace.setdefault(emotion, []).append(
            len(utterance.labels["phones"].split()) / utterance.seconds
        )
        high = power[(hertz > 1500) & (hertz < 3400)].sum()
        bright.setdefault(emotion, []).append(
            float(np.log(high / power[(hertz > 200) & (hertz < 800)].sum()))
        )
    assert np.mean(pace["angry"]) > 1.3 * np.mean(pace["sad"])
    assert np.mean(bright["angry"]) > np.mean(bright["neutral"]) > np.mean(bright["sad"])


def test_mandarin_speaks_other_phones(tmp_path: Path) -> None:
    corpus = open_synthetic(options("zh", dev=0, test=0), None, tmp_path)
    phones = {
        phone for utterance in corpus.utterances for phone in utterance.labels["phones"].split()
    }
    assert len(phones - ENGLISH) > 8


# --- Options ------------------------------------------------------------------------------


def test_sizes_left_out_are_filled_in_and_are_identity() -> None:
    short = SyntheticOptions.model_validate({"part": "sid"})
    assert (short.train, short.dev, short.test, short.speakers) == (800, 200, 1000, 48)
    assert short == SyntheticOptions.model_validate(
        {"part": "sid", "train": 800, "dev": None, "speakers": 48}
    )
    assert short != SyntheticOptions.model_validate({"part": "sid", "train": 801})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"part": "songs"}, "Input should be 'pretrain'"),
        ({}, "part"),
        ({"part": "pr", "speakers": 121}, r"within \[2, 120\] for the part `pr`, but is 121"),
        ({"part": "sid", "speakers": 193}, r"within \[2, 192\]"),
        ({"part": "pr", "train": 0, "dev": 0, "test": 0}, "at least one split"),
        ({"part": "pr", "train": -1}, "greater than or equal to 0"),
        ({"part": "pr", "speed": 2}, "Extra inputs"),
    ],
)
def test_wrong_options_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SyntheticOptions.model_validate(values)


def test_every_part_can_be_selected() -> None:
    assert {SyntheticOptions.model_validate({"part": name}).part for name in PARTS} == set(PARTS)


def test_progress_reaches_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "CHUNK_UTTERANCES", 4)
    steps: list[tuple[int, int]] = []
    make_corpus(
        options("ks"),
        tmp_path / "made",
        workers=2,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps[-1] == (10, 10)
    assert steps == sorted(steps) and len(steps) == 4


# --- Two speakers at once -----------------------------------------------------------------


def test_a_mixture_is_two_utterances_over_noise(tmp_path: Path) -> None:
    mixed = open_synthetic(options("sd"), None, tmp_path)
    assert {split: len(mixed.split(split)) for split in SMALL} == SMALL
    assert mixed.columns == {"segments", "speaker"}
    for utterance in mixed.utterances:
        one, other = parse_turns(utterance, "segments")
        assert one.speaker != other.speaker
        assert utterance.labels["speaker"] == " ".join(sorted([one.speaker, other.speaker]))
        # They overlap, neither is in silence, and both lie inside of the recording.
        assert 0 < one.start < other.start < one.end and max(one.end, other.end) < utterance.samples
        wave = mixed.read(utterance)
        assert wave.shape == (utterance.samples,) and wave.dtype == np.float32
        np.testing.assert_array_equal(wave, mixed.read(utterance))
        # Only noise before the first speaks, 5 to 20 dB below the whole.
        noise, whole = (float(np.mean(np.square(part))) for part in (wave[: one.start // 2], wave))
        assert 3.0 < 10 * np.log10(whole / noise) < 23.0
    again = open_synthetic(options("sd", train=7), None, tmp_path)
    for utterance, same in zip(mixed.split("train"), again.split("train"), strict=False):
        assert utterance == same
        np.testing.assert_array_equal(mixed.read(utterance), again.read(same))
    assert len(set(again.audio_ids.values())) == len(again.utterances)


def test_a_mixture_is_louder_where_a_turn_is_labelled(tmp_path: Path) -> None:
    """In the mean over a recording, at least by a factor of two in power."""
    mixed = open_synthetic(options("sd"), None, tmp_path)
    for utterance in mixed.utterances:
        turns = parse_turns(utterance, "segments")
        wave = mixed.read(utterance)
        spoken = np.zeros(len(wave), dtype=bool)
        for turn in turns:
            spoken[turn.start : turn.end] = True
        assert np.square(wave[spoken]).mean() > 2 * np.square(wave[~spoken]).mean()


# --- Spoken queries -----------------------------------------------------------------------


def test_a_query_matches_the_documents_that_have_its_word(tmp_path: Path) -> None:
    corpus = open_synthetic(options("qbe", train=40, dev=4, test=6), None, tmp_path)
    documents = {utterance.key: utterance for utterance in corpus.split("train")}
    assert {utterance.labels["matches"] for utterance in documents.values()} == {""}
    queries = [*corpus.split("dev"), *corpus.split("test")]
    assert len({query.labels["text"] for query in queries}) > 5
    for query in queries:
        matches = query.labels["matches"].split()
        assert set(matches) == {
            key
            for key, document in documents.items()
            if f" {query.labels['text']} " in f" {document.labels['text']} "
        }
        # By the phones, too: espeak-ng speaks the word alike wherever it stands, but for its end.
        start = query.labels["phones"].split()[:3]
        assert all(" ".join(start) in documents[key].labels["phones"] for key in matches), (
            query.labels
        )
    matched = [len(query.labels["matches"].split()) for query in queries]
    assert 40 / 23 < np.mean(matched) < 4 * 40 / 23
