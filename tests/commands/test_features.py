"""The plan chooses the form of frame features by sizes, and refuses forms that cannot be."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from speechft_ray.commands.features import resolve_features
from speechft_ray.core.errors import UserError
from speechft_ray.core.records import Place
from speechft_ray.core.specs import COMPACT_RANK, CorpusSpec, EvalSpec
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.sweep.inputs import Inputs
from speechft_ray.sweep.plan import PlanBuilder

PLACE = Place(storage="nowhere", encoder="tiny_hubert")
BYTES_PER_HOUR = 50 * 3600 * 7 * 192 * 2


def read_nothing(utterance: Utterance) -> np.ndarray:
    raise AssertionError("sizes need no audio")


def open_hours(hours: int) -> Any:
    """Returns a function that opens a corpus of so many recordings of an hour."""
    utterances = [
        Utterance(key=str(index), split="train", samples=16_000 * 3600, labels={})
        for index in range(hours)
    ]
    corpus = Corpus(name="big", fingerprint="0", utterances=utterances, read=read_nothing)
    return lambda spec: corpus


def make_spec(task: str = "pr", corpus: str = "librispeech", **fields: Any) -> EvalSpec:
    return EvalSpec(task=task, corpus=CorpusSpec(name=corpus), updates=1, **fields)


@pytest.mark.parametrize(("hours", "form"), [(100, "exact"), (110, "int8"), (250, "compact")])
def test_auto_follows_from_the_hours_of_the_corpus(hours: int, form: str) -> None:
    """The shipped encoder takes 0.48 GB an hour, exactly."""
    assert BYTES_PER_HOUR * 103 < 50e9 < BYTES_PER_HOUR * 104
    spec = make_spec()
    resolved = resolve_features(spec, False, PLACE, open_hours(hours))
    assert resolved.features == form
    # FBank is 240 values a frame: exact.
    assert resolve_features(spec, True, PLACE, open_hours(hours)).features == "exact"
    # What a machine may store changes no fingerprint.
    small = PLACE.model_copy(update={"cache_gb": 1.0})
    assert resolve_features(spec, False, small, open_hours(hours)) == resolved


def test_a_synthesised_corpus_and_means_stay_exact() -> None:
    for spec in (make_spec(corpus="synthetic"), make_spec("sid", "voxceleb1")):
        assert resolve_features(spec, False, PLACE, open_hours(1000)).features == "auto"


def test_the_form_that_was_chosen_is_identity() -> None:
    keys, payloads = [], []
    for hours in (1, 2, 250):
        builder = PlanBuilder(
            Inputs(
                encoder="start",
                corpus=lambda spec: ("corpus", False),
                resolve_evaluation=partial(resolve_features, place=PLACE, open_=open_hours(hours)),
            )
        )
        keys.append(builder.add_evaluation(make_spec(), "merge", "title"))
        payload: dict[str, Any] = dict(builder.jobs[keys[-1]].payload)
        payloads.append(payload["spec"])
    assert keys[0] == keys[1] != keys[2]
    assert payloads[2] == {**payloads[0], "features": "compact", "rank": COMPACT_RANK}


@pytest.mark.parametrize(
    ("fields", "cache_gb", "message"),
    [
        ({"task": "sid", "features": "int8"}, 50.0, "its probe trains on means over frames"),
        ({"features": "compact", "rank": 2000}, 50.0, "is above the 1344 values of a frame"),
        ({}, 1e-6, "`--cache-gb 1e-06` holds no features"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], cache_gb: float, message: str) -> None:
    place = PLACE.model_copy(update={"cache_gb": cache_gb})
    with pytest.raises(UserError, match=message):
        resolve_features(make_spec(**fields), False, place, open_hours(1))
