"""What every registered corpus promises. A new corpus adds one line to EXAMPLES and is held to all
of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from pydantic import ValidationError

from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.speech.corpora.base import CORPORA, SPLITS, Corpus
from tests.speech.layouts import (
    aishell3,
    common_voice,
    crema_d,
    fluent_speech_commands,
    iemocap,
    libri2mix,
    librispeech,
    quesst14,
    snips,
    speech_commands,
    tedlium3,
    timit,
    voxceleb1,
)


def recordings(folder: Path) -> Path:
    """Six recordings at two rates with a manifest."""
    folder.mkdir()
    lines = ["path\tsplit\tspeaker"]
    for index in range(6):
        time_seconds = np.arange(1_600) / 16_000
        soundfile.write(
            folder / f"{index}.wav",
            0.3 * np.sin(900 * (index + 1) * time_seconds),
            (8_000, 16_000)[index % 2],
        )
        lines.append(f"{index}.wav\t{SPLITS[index % 3]}\ts{index % 2}")
    (folder / "manifest.tsv").write_text("\n".join(lines), encoding="utf-8")
    return folder


EXAMPLES: dict[str, tuple[dict[str, Any], Callable[[Path], Path] | None]] = {
    "aishell3": ({"dev_fraction": 0.2}, aishell3.lay_out),
    "common_voice": ({}, common_voice.lay_out),
    "crema_d": ({}, crema_d.lay_out),
    "fluent_speech_commands": ({}, fluent_speech_commands.lay_out),
    "iemocap": ({}, iemocap.lay_out),
    "libri2mix": ({}, libri2mix.lay_out),
    "librispeech": ({}, librispeech.lay_out),
    "manifest": ({}, recordings),
    "quesst14": ({}, quesst14.lay_out),
    "snips": ({}, snips.lay_out),
    "speech_commands": ({"silence_crops": 2}, speech_commands.lay_out),
    "tedlium3": ({}, tedlium3.lay_out),
    "timit": ({}, timit.lay_out),
    "voxceleb1": ({"task": "verification", "protocol": "clean"}, voxceleb1.lay_out),
    "synthetic": ({"part": "sf", "train": 3, "dev": 2, "test": 2}, None),
}
"""A small corpus of each kind: its options, and how to lay out its files where it needs some."""

ON_DISK = sorted(name for name, (_, lay_out) in EXAMPLES.items() if lay_out is not None)
ARCHIVES = [name for name in ON_DISK if name != "manifest"]
"""Corpora with a layout of their own, whose root is always a folder."""

AUDIO = (".wav", ".flac", ".mp3", ".sph")


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The small tree of each corpus, made once and only read."""
    made: dict[str, Path] = {}

    def tree(name: str) -> Path:
        lay_out = EXAMPLES[name][1]
        assert lay_out is not None
        if name not in made:
            made[name] = lay_out(tmp_path_factory.mktemp(name) / "root")
        return made[name]

    return tree


def opened_at(name: str, root: Path, cache: Path, **options: Any) -> Corpus:
    kind = CORPORA.get(name)
    corpus: Corpus = kind.open(
        kind.options.model_validate({**EXAMPLES[name][0], **options}), root, cache
    )
    return corpus


def audio_of(root: Path, corpus: Corpus | None = None) -> list[Path]:
    """All recordings of a tree, sorted; with a corpus, those of them that it reads."""
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in AUDIO)
    keys = {utterance.key.lower() for utterance in corpus.utterances} if corpus else set()
    return [path for path in found if path.relative_to(root).as_posix().lower() in keys] or found


def test_every_corpus_has_an_example() -> None:
    assert set(CORPORA.names()) == set(EXAMPLES), (
        "add the corpus to EXAMPLES, so that the contracts run on it"
    )


@pytest.fixture(scope="module", params=sorted(EXAMPLES))
def opening(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    laid_out: Callable[[str], Path],
) -> Callable[..., Corpus]:
    given, lay_out = EXAMPLES[request.param]
    place = tmp_path_factory.mktemp(request.param)
    root = laid_out(request.param) if lay_out else None
    kind = CORPORA.get(request.param)
    assert kind.needs_root == (root is not None)

    def opened(progress: Any = None) -> Corpus:
        return kind.open(kind.options.model_validate(given), root, place / "cache", progress)

    return opened


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_options_are_an_identity(name: str) -> None:
    kind, (given, _) = CORPORA.get(name), EXAMPLES[name]
    options = kind.options.model_validate(given)
    assert fingerprint(options) == fingerprint(kind.options.model_validate(options.model_dump()))
    with pytest.raises(ValidationError):
        kind.options.model_validate({**given, "no_such_option": 1})
    for field in kind.options.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(options, field, getattr(options, field))


def test_utterances_keep_their_promises(opening: Callable[..., Corpus]) -> None:
    corpus = opening()
    assert len({utterance.key for utterance in corpus.utterances}) == len(corpus.utterances) > 0
    assert sum(len(corpus.split(split)) for split in SPLITS) == len(corpus.utterances)
    for utterance in corpus.utterances:
        assert set(utterance.labels) == corpus.columns
        starts = [start for start, _ in utterance.alignment]
        assert starts == sorted(set(starts)) and all(
            0 <= start < utterance.samples for start in starts
        )


def test_reading_gives_what_the_utterance_says(opening: Callable[..., Corpus]) -> None:
    corpus = opening()
    for utterance in corpus.utterances:
        wave = corpus.read(utterance)
        assert wave.dtype == np.float32 and wave.shape == (utterance.samples,)
        assert 0.01 < np.abs(wave).max() <= 1.0
        wave *= 0  # the caller owns what it was given
        assert np.abs(corpus.read(utterance)).max() > 0.01


def test_opening_again_is_the_same_corpus(opening: Callable[..., Corpus]) -> None:
    first, second = opening(), opening()
    assert first.fingerprint == second.fingerprint
    assert list(first.utterances) == list(second.utterances)
    np.testing.assert_array_equal(
        first.read(first.utterances[-1]), second.read(second.utterances[-1])
    )


def test_progress_never_runs_backwards_nor_past_the_end(opening: Callable[..., Corpus]) -> None:
    steps: list[tuple[int, int]] = []
    opening(lambda done, total: steps.append((done, total)))
    assert all(0 <= done <= total for done, total in steps)
    assert steps == sorted(steps)


def test_trials_are_pairs_of_one_split(opening: Callable[..., Corpus]) -> None:
    corpus = opening()
    splits = {utterance.key: utterance.split for utterance in corpus.utterances}
    assert all(one != other and splits[one] == splits[other] for _, one, other in corpus.trials)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_a_corpus_says_how_it_is_laid_out_and_what_is_complete(name: str) -> None:
    kind, (given, _) = CORPORA.get(name), EXAMPLES[name]
    assert 20 < len(kind.layout) <= 120 and "\n" not in kind.layout
    expected = kind.expected(kind.options.model_validate(given))
    if expected is not None:
        assert expected.source and set(expected.utterances) <= set(SPLITS)
        for counted in (expected.hours, expected.speakers):
            assert set(counted) <= set(SPLITS)
    assert all(
        resource.url.startswith("https://") and not Path(resource.path).is_absolute()
        for resource in kind.resources
    )


@pytest.mark.parametrize("name", ON_DISK)
def test_identity_is_content_and_not_place_or_time(
    name: str, laid_out: Callable[[str], Path], tmp_path: Path
) -> None:
    first = opened_at(name, laid_out(name), tmp_path / "cache")
    moved = tmp_path / "moved"
    shutil.copytree(laid_out(name), moved, symlinks=True)
    for path in audio_of(moved):
        os.utime(path, (1, 1))
    second = opened_at(name, moved, tmp_path / "cache")
    assert second.fingerprint == first.fingerprint
    assert list(second.utterances) == list(first.utterances) and list(second.trials) == list(
        first.trials
    )
    (tmp_path / "link").symlink_to(moved)
    assert opened_at(name, tmp_path / "link", tmp_path / "cache").fingerprint == first.fingerprint
    heard = audio_of(moved, first)[0]
    known = soundfile.info(heard)
    soundfile.write(heard, 0.5 * soundfile.read(heard)[0], known.samplerate, format=known.format)
    assert opened_at(name, moved, tmp_path / "cache").fingerprint != first.fingerprint


@pytest.mark.parametrize("name", ON_DISK)
def test_bad_audio_is_told_with_its_path_or_skipped_and_counted(
    name: str, laid_out: Callable[[str], Path], tmp_path: Path
) -> None:
    whole = opened_at(name, laid_out(name), tmp_path / "cache")
    root = tmp_path / "root"
    shutil.copytree(laid_out(name), root, symlinks=True)
    files = audio_of(root, whole)
    cut, empty = files[0], files[-1]
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    empty.write_bytes(b"")
    if cut.suffix == ".mp3":  # frames of mp3 stand alone: half of one is a shorter recording
        cut.write_bytes(b"half")
    with pytest.raises(SpecError) as told:
        opened_at(name, root, tmp_path / "cache")
    assert len(told.value.mistakes) == 2 and all(
        path.name in str(told.value) for path in (cut, empty)
    )
    rest = opened_at(name, root, tmp_path / "cache", on_bad_audio="skip")
    # A file may hold several utterances.
    assert sum(rest.skipped.values()) == len(whole.utterances) - len(rest.utterances) >= 2
    assert any("2 bad files are left out" in note and cut.name in note for note in rest.notes)
    assert set(rest.skipped) <= set(SPLITS) and rest.fingerprint != whole.fingerprint


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_folder_one_level_off_names_the_right_one(
    name: str, laid_out: Callable[[str], Path], tmp_path: Path
) -> None:
    root = laid_out(name)
    below = next(path for path in sorted(root.iterdir()) if path.is_dir())
    for wrong, how in ((root.parent, "high"), (below, "low")):
        with pytest.raises(UserError, match=f"one level too {how}") as told:
            opened_at(name, wrong, tmp_path)
        assert str(root) in str(told.value)
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="is not the folder of the corpus"):
        opened_at(name, tmp_path / "other", tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        opened_at(name, tmp_path / "absent", tmp_path)


@pytest.mark.parametrize("name", ARCHIVES)
def test_every_list_and_folder_is_asked_for_by_name(
    name: str, laid_out: Callable[[str], Path], tmp_path: Path
) -> None:
    """Whatever part of a corpus is taken away, one sentence tells; or it is no part of these
    options."""
    root = tmp_path / "root"
    shutil.copytree(laid_out(name), root, symlinks=True)
    refused = 0
    for part in sorted(path for path in root.iterdir()):
        aside = tmp_path / "aside"
        part.rename(aside)
        try:
            opened_at(name, root, tmp_path / "cache")
        except UserError as error:
            refused += 1
            assert str(root) in str(error) and "Traceback" not in str(error)
        aside.rename(part)
    assert refused >= 1


@pytest.mark.parametrize("name", ARCHIVES)
def test_progress_counts_files(name: str, laid_out: Callable[[str], Path], tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    kind = CORPORA.get(name)
    options = kind.options.model_validate(EXAMPLES[name][0])
    kind.open(options, laid_out(name), tmp_path, lambda done, total: steps.append((done, total)))
    assert steps[-1][0] == steps[-1][1] > 0
