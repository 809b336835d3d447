"""What every registered corpus promises. A new corpus adds one line to EXAMPLES and is held to all of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from pydantic import ValidationError

from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.speech.corpora.base import CORPORA, SPLITS, Corpus


def recordings(folder: Path) -> Path:
    """Six recordings at two rates with a manifest."""
    folder.mkdir()
    lines = ["path\tsplit\tspeaker"]
    for index in range(6):
        time_seconds = np.arange(1_600) / 16_000
        soundfile.write(folder / f"{index}.wav", 0.3 * np.sin(900 * (index + 1) * time_seconds), (8_000, 16_000)[index % 2])
        lines.append(f"{index}.wav\t{SPLITS[index % 3]}\ts{index % 2}")
    (folder / "manifest.tsv").write_text("\n".join(lines), encoding="utf-8")
    return folder


EXAMPLES: dict[str, tuple[dict[str, Any], Callable[[Path], Path] | None]] = {
    "manifest": ({}, recordings),
    "synthetic": ({"part": "sf", "train": 3, "dev": 2, "test": 2}, None),
}
"""A small corpus of each kind: its options, and how to lay out its files where it needs some."""


def test_every_corpus_has_an_example() -> None:
    assert set(CORPORA.names()) == set(EXAMPLES), "add the corpus to EXAMPLES, so that the contracts run on it"


@pytest.fixture(scope="module", params=sorted(EXAMPLES))
def opening(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Corpus]:
    given, lay_out = EXAMPLES[request.param]
    place = tmp_path_factory.mktemp(request.param)
    root = lay_out(place / "root") if lay_out else None
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
        assert starts == sorted(set(starts)) and all(0 <= start < utterance.samples for start in starts)


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
    np.testing.assert_array_equal(first.read(first.utterances[-1]), second.read(second.utterances[-1]))


def test_progress_never_runs_backwards_nor_past_the_end(opening: Callable[..., Corpus]) -> None:
    steps: list[tuple[int, int]] = []
    opening(lambda done, total: steps.append((done, total)))
    assert all(0 <= done <= total for done, total in steps)
    assert steps == sorted(steps)
