"""ABX against its definition, triple by triple."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.specs import CorpusSpec, EvalSpec
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.superb.abx import MOST_TOKENS, collect_tokens, measure_abx
from speechft_ray.superb.features import InMemoryFeatures
from speechft_ray.superb.screening import screen_encoder
from tests.superb.toy_models import LETTER_SAMPLES, ToyEncoder, toy_corpus


def measure_by_definition(points: np.ndarray, phones: str, speakers: str) -> float:
    """Every A, B and X in three loops."""
    errors: dict[tuple[str, str], dict[str, list[float]]] = {}

    def distance(one: int, other: int) -> float:
        lengths = np.linalg.norm(points[one]) * np.linalg.norm(points[other])
        return float(1 - points[one] @ points[other] / lengths)

    for a, b, x in itertools.permutations(range(len(points)), 3):
        if len({speakers[a], speakers[b], speakers[x]}) > 1:
            continue
        if phones[a] != phones[x] or phones[b] == phones[x]:
            continue
        near, far = distance(a, x), distance(b, x)
        wrong = 0.5 if near == pytest.approx(far, abs=1e-12) else float(near > far)
        of_pair = errors.setdefault((phones[x], phones[b]), {})
        of_pair.setdefault(speakers[x], []).append(wrong)
    means = [
        statistics.fmean(map(statistics.fmean, of_pair.values())) for of_pair in errors.values()
    ]
    return 100 * statistics.fmean(means)


def test_it_is_the_definition() -> None:
    random = np.random.default_rng(0)
    phones, speakers = "aabbcabcaabbbc", "xxxxxxyyyyyyyz"
    means = {phone: random.normal(size=3) for phone in "abc"}
    points = np.stack([means[phone] + 3 * random.normal(size=3) for phone in phones])
    expected = measure_by_definition(points, phones, speakers)
    assert 5 < expected < 95
    assert measure_abx(torch.from_numpy(points), phones, speakers) == pytest.approx(expected)
    # Equal distances are half wrong: all of one phone and another in one place.
    points[:] = [1.0, 0.0, 0.0]
    assert measure_abx(torch.from_numpy(points), phones, speakers) == 50.0


def test_too_few_tokens_are_one_sentence() -> None:
    with pytest.raises(UserError, match="two tokens of a phone with one of another"):
        measure_abx(torch.randn(3, 2), "abc", "xxx")


def test_tokens_are_the_means_of_aligned_frames() -> None:
    """Frames have the label at their centre, 320 i + 200; silence and empty labels are no phone."""
    alignment = ((0, "sil"), (320, "a"), (960, "a"), (1280, ""), (1600, "b"))
    one = Utterance(key="one", split="dev", samples=2320, labels={}, alignment=alignment)
    states = torch.arange(2 * 7 * 1.0).reshape(2, 7, 1)
    tokens = collect_tokens([one], InMemoryFeatures(states, torch.tensor([7])))
    assert tokens.phones == ("a", "a", "b") and tokens.speakers == ("", "", "")
    assert tokens.states[0, :, 0].tolist() == [1.5, 3.0, 5.5]
    many = [replace(one, key=str(index)) for index in range(MOST_TOKENS)]
    features = InMemoryFeatures(states.repeat(1, MOST_TOKENS, 1), torch.tensor([7] * MOST_TOKENS))
    assert len(collect_tokens(many, features).phones) == 2 * MOST_TOKENS
    with pytest.raises(UserError, match="`one` has no alignment"):
        collect_tokens([replace(one, alignment=())], InMemoryFeatures(states, torch.tensor([7])))


def align(corpus: Corpus) -> Corpus:
    """Returns the toy corpus with its letters as phones."""
    utterances = [
        replace(
            item,
            alignment=tuple(
                (index * LETTER_SAMPLES, letter)
                for index, letter in enumerate(item.labels["phones"].split())
            ),
        )
        for item in corpus.utterances
    ]
    return replace(corpus, utterances=utterances)


def test_tones_are_told_apart_better_than_by_chance_and_train_is_not_encoded() -> None:
    spec = EvalSpec(corpus=CorpusSpec(), task="pr", updates=1)
    corpus, encoder = align(toy_corpus()), ToyEncoder()
    facts: Any = screen_encoder(spec, encoder, [corpus], torch.device("cpu"), lambda values: None)
    assert set(facts["screen"]) == {"abx"} and 80 < facts["screen"]["abx"] <= 100
    assert sum(encoder.calls) == len(corpus.split("dev"))
