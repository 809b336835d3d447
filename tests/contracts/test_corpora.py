"""Contract of every registered corpus. A new corpus adds one line to EXAMPLES."""

from __future__ import annotations

import os
import re
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
    fillets,
    fluent_speech_commands,
    gcin_voice,
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


def write_manifest_corpus(folder: Path) -> Path:
    """Writes six recordings at two rates with a manifest."""
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
    "fillets": ({"characters": "all"}, fillets.lay_out),
    "fluent_speech_commands": ({}, fluent_speech_commands.lay_out),
    "gcin_voice": ({}, gcin_voice.lay_out),
    "iemocap": ({}, iemocap.lay_out),
    "libri2mix": ({}, libri2mix.lay_out),
    "librispeech": ({}, librispeech.lay_out),
    "manifest": ({}, write_manifest_corpus),
    "quesst14": ({}, quesst14.lay_out),
    "snips": ({}, snips.lay_out),
    "speech_commands": ({"silence_crops": 2}, speech_commands.lay_out),
    "tedlium3": ({}, tedlium3.lay_out),
    "timit": ({}, timit.lay_out),
    "voxceleb1": ({"task": "verification", "protocol": "clean"}, voxceleb1.lay_out),
    "synthetic": ({"part": "sf", "train": 3, "dev": 2, "test": 2}, None),
}
"""A small corpus of each kind: its options, and the function that writes its files, if any."""

ON_DISK = sorted(name for name, (_, lay_out) in EXAMPLES.items() if lay_out is not None)
ARCHIVES = [name for name in ON_DISK if name != "manifest"]
"""Corpora with a layout of their own, whose root is always a folder."""

APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(60)
"""How a file of macOS begins that holds what another file system has no place for."""

AUDIO = (".wav", ".flac", ".mp3", ".sph", ".ogg")


def open_at(name: str, root: Path, cache: Path, **options: Any) -> Corpus:
    kind = CORPORA.get(name)
    corpus: Corpus = kind.open(
        kind.options.model_validate({**EXAMPLES[name][0], **options}), root, cache
    )
    return corpus


def list_audio(root: Path, corpus: Corpus | None = None) -> list[Path]:
    """Returns the recordings of a tree, sorted; with a corpus, those that it reads."""
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in AUDIO)
    keys = {utterance.key.lower() for utterance in corpus.utterances} if corpus else set()
    return [path for path in paths if path.relative_to(root).as_posix().lower() in keys] or paths


def test_every_corpus_has_an_example() -> None:
    assert set(CORPORA.names()) == set(EXAMPLES), (
        "add the corpus to EXAMPLES, so that the contracts run on it"
    )


@pytest.fixture(scope="module", params=sorted(EXAMPLES))
def open_example(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    trees: Callable[[str], Path],
) -> Callable[..., Corpus]:
    options, lay_out = EXAMPLES[request.param]
    place = tmp_path_factory.mktemp(request.param)
    root = trees(request.param) if lay_out else None
    kind = CORPORA.get(request.param)
    assert kind.needs_root == (root is not None)

    def open_with(progress: Any = None) -> Corpus:
        model = kind.options.model_validate(options)
        return kind.open(model, root, place / "cache", progress)

    return open_with


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_options_are_an_identity(name: str) -> None:
    kind, (values, _) = CORPORA.get(name), EXAMPLES[name]
    options = kind.options.model_validate(values)
    assert fingerprint(options) == fingerprint(kind.options.model_validate(options.model_dump()))
    with pytest.raises(ValidationError):
        kind.options.model_validate({**values, "no_such_option": 1})
    for field in kind.options.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(options, field, getattr(options, field))


def test_utterances_fulfil_the_contract(open_example: Callable[..., Corpus]) -> None:
    corpus = open_example()
    assert len({utterance.key for utterance in corpus.utterances}) == len(corpus.utterances) > 0
    assert sum(len(corpus.split(split)) for split in SPLITS) == len(corpus.utterances)
    for utterance in corpus.utterances:
        assert set(utterance.labels) == corpus.columns
        starts = [start for start, _ in utterance.alignment]
        assert starts == sorted(set(starts)) and all(
            0 <= start < utterance.samples for start in starts
        )


def test_reading_returns_the_samples_of_the_utterance(open_example: Callable[..., Corpus]) -> None:
    corpus = open_example()
    for utterance in corpus.utterances:
        wave = corpus.read(utterance)
        assert wave.dtype == np.float32 and wave.shape == (utterance.samples,)
        assert 0.01 < np.abs(wave).max() <= 1.0
        wave *= 0  # the caller owns the array
        assert np.abs(corpus.read(utterance)).max() > 0.01


def test_opening_again_is_the_same_corpus(open_example: Callable[..., Corpus]) -> None:
    first, second = open_example(), open_example()
    assert first.fingerprint == second.fingerprint
    assert list(first.utterances) == list(second.utterances)
    np.testing.assert_array_equal(
        first.read(first.utterances[-1]), second.read(second.utterances[-1])
    )


def test_progress_never_runs_backwards_nor_past_the_end(
    open_example: Callable[..., Corpus],
) -> None:
    steps: list[tuple[int, int]] = []
    open_example(lambda done, total: steps.append((done, total)))
    assert all(0 <= done <= total for done, total in steps)
    assert steps == sorted(steps)


def test_trials_are_pairs_of_one_split(open_example: Callable[..., Corpus]) -> None:
    corpus = open_example()
    splits = {utterance.key: utterance.split for utterance in corpus.utterances}
    assert all(one != other and splits[one] == splits[other] for _, one, other in corpus.trials)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_layout_and_expected_counts_are_documented(name: str) -> None:
    kind, (values, _) = CORPORA.get(name), EXAMPLES[name]
    assert 20 < len(kind.layout) <= 120 and "\n" not in kind.layout
    expected = kind.expected(kind.options.model_validate(values))
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
    name: str, trees: Callable[[str], Path], tmp_path: Path
) -> None:
    first = open_at(name, trees(name), tmp_path / "cache")
    moved = tmp_path / "moved"
    shutil.copytree(trees(name), moved, symlinks=True)
    for path in list_audio(moved):
        os.utime(path, (1, 1))
    second = open_at(name, moved, tmp_path / "cache")
    assert second.fingerprint == first.fingerprint
    assert list(second.utterances) == list(first.utterances) and list(second.trials) == list(
        first.trials
    )
    (tmp_path / "link").symlink_to(moved)
    assert open_at(name, tmp_path / "link", tmp_path / "cache").fingerprint == first.fingerprint
    path = list_audio(moved, first)[0]
    info = soundfile.info(path)
    soundfile.write(path, 0.5 * soundfile.read(path)[0], info.samplerate, format=info.format)
    assert open_at(name, moved, tmp_path / "cache").fingerprint != first.fingerprint


@pytest.mark.parametrize("name", ON_DISK)
def test_bad_audio_is_reported_with_its_path_or_skipped_and_counted(
    name: str, trees: Callable[[str], Path], tmp_path: Path
) -> None:
    whole = open_at(name, trees(name), tmp_path / "cache")
    root = tmp_path / "root"
    shutil.copytree(trees(name), root, symlinks=True)
    files = list_audio(root, whole)
    cut, empty = files[0], files[-1]
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    empty.write_bytes(b"")
    with pytest.raises(SpecError) as error:
        open_at(name, root, tmp_path / "cache")
    assert len(error.value.mistakes) == 2 and all(
        path.name in str(error.value) for path in (cut, empty)
    )
    rest = open_at(name, root, tmp_path / "cache", on_bad_audio="skip")
    # A file may hold several utterances.
    assert sum(rest.skipped.values()) == len(whole.utterances) - len(rest.utterances) >= 2
    assert any("2 bad files are left out" in note and cut.name in note for note in rest.notes)
    assert set(rest.skipped) <= set(SPLITS) and rest.fingerprint != whole.fingerprint


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_folder_one_level_off_names_the_right_one(
    name: str, trees: Callable[[str], Path], tmp_path: Path
) -> None:
    root = trees(name)
    below = next(path for path in sorted(root.iterdir()) if path.is_dir())
    for wrong, how in ((root.parent, "high"), (below, "low")):
        with pytest.raises(UserError, match=f"one level too {how}") as error:
            open_at(name, wrong, tmp_path)
        assert str(root) in str(error.value)
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="is not the folder of the corpus"):
        open_at(name, tmp_path / "other", tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        open_at(name, tmp_path / "absent", tmp_path)


@pytest.mark.parametrize("name", ARCHIVES)
def test_every_list_and_folder_is_asked_for_by_name(
    name: str, trees: Callable[[str], Path], tmp_path: Path
) -> None:
    """A missing part of a corpus is one error with its path, or these options do not need it."""
    root = tmp_path / "root"
    shutil.copytree(trees(name), root, symlinks=True)
    errors = 0
    for part in sorted(path for path in root.iterdir()):
        aside = tmp_path / "aside"
        part.rename(aside)
        try:
            open_at(name, root, tmp_path / "cache")
        except UserError as error:
            errors += 1
            assert str(root) in str(error) and "Traceback" not in str(error)
        aside.rename(part)
    assert errors >= 1


@pytest.mark.parametrize("name", ARCHIVES)
def test_progress_counts_files(name: str, trees: Callable[[str], Path], tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    kind = CORPORA.get(name)
    options = kind.options.model_validate(EXAMPLES[name][0])
    kind.open(options, trees(name), tmp_path, lambda done, total: steps.append((done, total)))
    assert steps[-1][0] == steps[-1][1] > 0


@pytest.mark.parametrize("name", ON_DISK)
def test_files_of_operating_systems_are_part_of_no_corpus(
    name: str, trees: Callable[[str], Path], tmp_path: Path
) -> None:
    root = tmp_path / "root"
    shutil.copytree(trees(name), root, symlinks=True)
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.name.startswith("._"):
            (path.parent / f"._{path.name}").write_bytes(APPLE_DOUBLE)
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        for litter in (".DS_Store", "Thumbs.db", "desktop.ini"):
            (folder / litter).write_bytes(b"\0\xff")
        (folder / "@eaDir" / "a.wav").mkdir(parents=True, exist_ok=True)
        (folder / "__MACOSX").mkdir(exist_ok=True)
        (folder / "__MACOSX" / "._a.flac").write_bytes(APPLE_DOUBLE)
    corpus, whole = (
        open_at(name, place, tmp_path / "cache", on_bad_audio="fail")
        for place in (root, trees(name))
    )
    assert corpus.fingerprint == whole.fingerprint and corpus.utterances == whole.utterances


@pytest.mark.parametrize("name", ARCHIVES)
def test_parts_may_lie_on_other_disks(
    name: str, trees: Callable[[str], Path], tmp_path: Path
) -> None:
    """Every folder with recordings is a link that leaves the root, and so is the first file."""
    root, disk = tmp_path / "root", tmp_path / "disk"
    disk.mkdir()
    shutil.copytree(trees(name), root, symlinks=True)
    first = list_audio(root, open_at(name, root, tmp_path / "cache"))[0]
    first.resolve().rename(disk / first.name)
    first.resolve().symlink_to(disk / first.name)
    for number, folder in enumerate(sorted({path.parent for path in list_audio(root)})):
        if not folder.is_symlink():
            folder.rename(disk / str(number))
            folder.symlink_to(disk / str(number))
    corpus, whole = (
        open_at(name, place, tmp_path / "cache", on_bad_audio="fail")
        for place in (root, trees(name))
    )
    assert corpus.fingerprint == whole.fingerprint and corpus.utterances == whole.utterances
    assert len(corpus.read(corpus.utterances[0])) == corpus.utterances[0].samples


@pytest.mark.parametrize("name", sorted({*ON_DISK} - {"common_voice", "tedlium3", "voxceleb1"}))
def test_a_clip_below_one_frame_is_bad_audio(
    name: str, trees: Callable[[str], Path], tmp_path: Path
) -> None:
    """mp3 has no such short files; parts of talks and trimmed files are tested with their
    corpus."""
    whole = open_at(name, trees(name), tmp_path / "cache")
    root = tmp_path / "root"
    shutil.copytree(trees(name), root, symlinks=True)
    path = list_audio(root, whole)[-1]
    info = soundfile.info(path)
    wave = np.full(round(390 * info.samplerate / 16_000), 0.3)
    soundfile.write(path, wave, info.samplerate, format=info.format)
    with pytest.raises(SpecError) as error:
        open_at(name, root, tmp_path / "cache")
    sentence = r"has 39\d samples at 16 kHz, and the first frame of an encoder needs 400"
    assert len(error.value.mistakes) == 1 and re.search(sentence, str(error.value))
    assert "`on_bad_audio: skip`" in str(error.value) and path.name in str(error.value)
    rest = open_at(name, root, tmp_path / "cache", on_bad_audio="skip")
    assert sum(rest.skipped.values()) == len(whole.utterances) - len(rest.utterances) == 1
    assert any("1 bad files are left out" in note and path.name in note for note in rest.notes)


@pytest.mark.parametrize("name", ON_DISK)
def test_a_corpus_without_a_usable_recording_is_an_error(
    name: str, trees: Callable[[str], Path], tmp_path: Path
) -> None:
    root = tmp_path / "root"
    shutil.copytree(trees(name), root, symlinks=True)
    for path in list_audio(root):
        path.write_bytes(b"")
    with pytest.raises(UserError):
        open_at(name, root, tmp_path / "cache", on_bad_audio="skip")
