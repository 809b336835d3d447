"""TED-LIUM 3: utterances of a talk, normalisation of words, and the selection of train."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import soundfile

from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.speech.corpora.tedlium3 import normalise_words
from tests.speech.corpora.helpers import open_at, sizes
from tests.speech.layouts import tedlium3
from tests.speech.layouts.voices import write_text


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tedlium3.lay_out(tmp_path_factory.mktemp("tedlium3") / "root")


@pytest.fixture
def root(tree: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(tree, tmp_path / "root", symlinks=True))


def test_lines_of_captions_are_utterances(tree: Path) -> None:
    corpus = open_at("tedlium3", tree)
    assert sizes(corpus) == {"train": 4, "dev": 2, "test": 2} and corpus.columns == {
        "text",
        "speaker",
    }
    assert {one.labels["text"] for one in corpus.utterances} == {
        tedlium3.TEXTS[0],
        tedlium3.TEXTS[1],
    }
    assert {one.labels["speaker"] for one in corpus.split("train")} == set(tedlium3.TALKS["train"])
    unknown, little = corpus.notes
    assert unknown.startswith(
        "4 lines without words, or with a sign that is no letter (above all `<unk>`)"
    )
    assert little.startswith("train has 0.00 hours, fewer than the 100 that `train_hours` asks for")


def test_an_utterance_is_its_stretch_of_the_talk_and_nothing_else_is_decoded(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = open_at("tedlium3", tree)
    decoded: list[int] = []
    read = soundfile.SoundFile.read

    def read_and_count(
        self: soundfile.SoundFile, frames: int = -1, *options: Any, **named: Any
    ) -> np.ndarray:
        decoded.append(frames)
        return cast(np.ndarray, read(self, frames, *options, **named))

    monkeypatch.setattr(soundfile.SoundFile, "read", read_and_count)
    for utterance in corpus.utterances:
        start, stop = map(int, utterance.key.rsplit("/", 1)[1].split("-"))
        wave = corpus.read(utterance)
        assert decoded.pop() == stop - start == utterance.samples == len(wave)
        talk = soundfile.read(
            tree / f"legacy/{utterance.split}/sph" / f"{utterance.labels['speaker']}.sph"
        )[0]
        np.testing.assert_array_equal(wave, talk[start:stop].astype(np.float32))
        pause = talk[start - 6_000 : start - 100]
        assert np.abs(wave).max() > 0.3 and np.abs(pause).max() == 0


@pytest.mark.parametrize(
    ("words", "written"),
    [
        ("it 's what they 'd do and we 'll see", "it's what they'd do and we'll see"),
        ("don 't , they wouldn 't", None),
        ("would n't", "wouldn't"),
        ("the parents ' house", "the parents' house"),
        ("'cause i told 'em 'so", "'cause i told 'em 'so"),
        ("Read(2) <sil> THE {NOISE} book", "read the book"),
        ("a <unk> word", None),
        ("1999", None),
        ("'", None),
        ("", None),
    ],
)
def test_words_are_lower_case_and_endings_joined(words: str, written: str | None) -> None:
    assert normalise_words(words) == written


def write_captions(root: Path, seconds: list[float]) -> None:
    """Writes one training talk of 90 s with a line of each length."""
    talk = tedlium3.TALKS["train"][0]
    soundfile.write(
        root / f"data/sph/{talk}.sph",
        np.full(16_000 * 90, 0.1),
        16_000,
        format="NIST",
        subtype="PCM_16",
    )
    lines = [
        f"{talk} 1 {talk} {place / 10} {place / 10 + length} <o,f0,male> word"
        for place, length in enumerate(seconds)
    ]
    write_text(root / f"legacy/train/stm/{talk}.stm", lines)
    (root / f"legacy/train/stm/{tedlium3.TALKS['train'][1]}.stm").unlink()


def test_train_has_utterances_of_one_to_sixty_seconds(root: Path) -> None:
    write_captions(root, [0.98, 1.0, 60.0, 60.1])
    corpus = open_at("tedlium3", root)
    assert [one.samples for one in corpus.split("train")] == [16_000, 960_000]
    assert (
        "2 training utterances shorter than 1 s or longer than 60 s are left out." in corpus.notes
    )


def test_the_hours_of_train_are_drawn_at_random_and_again_the_same(root: Path) -> None:
    write_captions(root, [2.0] * 40)

    def train_keys(**options: float | None) -> set[str]:
        corpus = open_at("tedlium3", root, **options)
        assert sizes(corpus)["dev"] == 2  # the official one, whatever is drawn
        return {one.key for one in corpus.split("train")}

    some = train_keys(train_hours=19 / 3600)
    assert (
        len(some) == 10
        and some == train_keys(train_hours=19 / 3600)
        and some < train_keys(train_hours=29 / 3600)
    )
    assert (
        some != train_keys(train_hours=19 / 3600, seed=1)
        and len(train_keys(train_hours=None)) == 40
    )
    places = sorted(int(key.rsplit("/", 1)[1].split("-")[0]) for key in some)
    assert places[-1] > 16 * 1_600  # not the first ones
    with pytest.raises(ValueError, match="greater than 0"):
        train_keys(train_hours=0)


def test_captions_with_mistakes_and_talks_that_end_too_early_are_reported(root: Path) -> None:
    file = root / f"legacy/dev/stm/{tedlium3.TALKS['dev'][0]}.stm"
    good = file.read_text()
    for line in (
        "a 1 b 2.0 1.0 <o,f0,male> x",
        "a 1 b x 1.0 <o,f0,male> x",
        "../a 1 b 0 1.0 <o,f0,male> x",
        "a 1 b 0 1.0",
        "a",
    ):
        file.write_text(f";; a comment\n{good}{line}\n")
        with pytest.raises(
            UserError, match="line 6 must be a talk, a channel, a speaker, a start before its end"
        ):
            open_at("tedlium3", root)
    file.write_text(f"{good}{tedlium3.TALKS['dev'][0]} 1 b 1000 1001 <o,f0,male> beyond\n")
    with pytest.raises(
        SpecError,
        match="ends before `legacy/dev/CarlSagan_2010/16000000-16016000`, a part of it, begins",
    ):
        open_at("tedlium3", root)
    file.write_text(good.splitlines()[0] + "\n")
    with pytest.raises(UserError, match=r"no \.stm file with an utterance"):
        open_at("tedlium3", root)
    shutil.rmtree(root / "legacy/dev/stm")
    with pytest.raises(UserError, match=r"legacy/dev/stm \(its split dev\)"):
        open_at("tedlium3", root)


def test_a_short_part_of_a_talk_is_left_out_and_not_the_talk(root: Path) -> None:
    whole = open_at("tedlium3", root)
    stm = root / "legacy/dev/stm/CarlSagan_2010.stm"
    lines = stm.read_text().splitlines()
    stm.write_text("\n".join([*lines, "CarlSagan_2010 1 X 0.50 0.52 <o,f0,female> well"]))
    with pytest.raises(SpecError, match=r"has 320 samples at 16 kHz") as error:
        open_at("tedlium3", root)
    assert len(error.value.mistakes) == 1
    corpus = open_at("tedlium3", root, on_bad_audio="skip")
    assert corpus.skipped == {"dev": 1}
    assert corpus.utterances == whole.utterances and corpus.fingerprint == whole.fingerprint
