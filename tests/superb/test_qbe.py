"""Query by example: warping against dtw-python's numbers, and the choice of a layer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from speechft_ray.core.errors import UserError
from speechft_ray.core.records import read_scores
from speechft_ray.core.specs import CorpusSpec, EvalSpec
from speechft_ray.speech.corpora.base import Corpus
from speechft_ray.superb.evaluate import evaluate
from speechft_ray.superb.extractor import Extractor
from speechft_ray.superb.feature_store import FeatureStorage
from speechft_ray.superb.features import InMemoryFeatures, prepare_features
from speechft_ray.superb.saved_work import NOT_SAVED
from speechft_ray.superb.setup import build_task_data
from speechft_ray.superb.tasks import qbe
from speechft_ray.superb.tasks._dtw import Distance, frame_distances, subsequence_costs
from speechft_ray.superb.tasks.base import TASKS, TrainingFreeTask
from tests.superb.references import DOCUMENTS, QUERIES
from tests.superb.toy_models import ToyEncoder, toy_corpus

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("distance", ["cosine", "cosine_exp"])
def test_costs_are_those_of_dtw_python(distance: Distance) -> None:
    expected_costs = json.loads((DATA / "dtw_python.json").read_text())[distance]
    units = [
        functional.normalize(torch.from_numpy(frames), dim=1) for frames in (*QUERIES, *DOCUMENTS)
    ]
    documents = pad_sequence(units[len(QUERIES) :], batch_first=True)
    frames = torch.tensor([len(document) for document in DOCUMENTS])
    for query, expected in zip(units, expected_costs, strict=False):
        costs = subsequence_costs(frame_distances(query, documents, frames, distance))
        assert costs.tolist() == pytest.approx(expected, abs=1e-9)


def test_a_path_may_begin_and_end_anywhere_and_move_up_to_two_frames() -> None:
    far = torch.ones(3, 1, 8, dtype=torch.double)
    free = far.clone()
    free[torch.arange(3), 0, torch.tensor([2, 4, 6])] = 0.0  # steps of two
    assert subsequence_costs(free).item() == 0.0
    standing = far.clone()
    standing[:, 0, 5] = 0.0  # one frame for the whole query
    assert subsequence_costs(standing).item() == 0.0
    leap = far.clone()
    leap[torch.arange(3), 0, torch.tensor([1, 4, 6])] = (
        0.0  # a step of three is none: one frame is paid
    )
    assert subsequence_costs(leap).item() == pytest.approx(1 / 3)
    backwards = far.clone()
    backwards[torch.arange(3), 0, torch.tensor([6, 5, 4])] = 0.0
    assert subsequence_costs(backwards).item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("frames", [1, 6])
def test_a_document_whose_frames_are_alike_is_the_worst_match(frames: int) -> None:
    """One frame, or digital silence of several: nothing in it is nearer than anything else."""
    units = [functional.normalize(torch.from_numpy(array), dim=1) for array in DOCUMENTS]
    silent = units[0][:1].repeat(frames, 1)
    documents = pad_sequence([*units, silent], batch_first=True)
    lengths = torch.tensor([*map(len, units), frames])
    query = functional.normalize(torch.from_numpy(QUERIES[1]), dim=1)
    for distance in ("cosine", "cosine_exp"):
        costs = subsequence_costs(frame_distances(query, documents, lengths, distance))
        assert costs[-1] == 1.0 and costs[:-1].max() < 1.0


def make_features(arrays: list[np.ndarray]) -> InMemoryFeatures:
    frames = torch.tensor([len(array) for array in arrays])
    rows = torch.from_numpy(np.concatenate(arrays)).float()
    return InMemoryFeatures(torch.stack([rows, rows.flip(1) * 2 + 1]), frames)


def test_scores_are_standardised_over_frames_and_then_over_documents() -> None:
    """The order of operations written out with numpy, for one layer and plain cosines."""
    queries, documents = make_features(QUERIES[1:]), make_features(DOCUMENTS)
    predictions = qbe.score_documents(queries, documents, "cosine")
    every = np.concatenate([*QUERIES[1:], *DOCUMENTS]).astype(np.float32).astype(np.float64)
    mean, deviation = every.mean(0), every.std(0, ddof=1)
    for query, scores in zip(QUERIES[1:], predictions, strict=True):
        costs = []
        for document in DOCUMENTS:
            one, other = ((frames - mean) / deviation for frames in (query, document))
            distances = 1 - (one @ other.T) / np.outer(
                np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1)
            )
            low, high = distances.min(1, keepdims=True), distances.max(1, keepdims=True)
            costs.append(textbook((distances - low) / (high - low)))
        centred = -np.array(costs) + np.mean(costs)
        assert scores[0] == pytest.approx(
            centred / np.std(costs), abs=2e-4
        )  # rounded to 4 decimals
        assert scores.shape == (2, len(DOCUMENTS))


def textbook(distances: np.ndarray) -> float:
    """Dynamic programming, cell by cell."""
    total = np.full(distances.shape, np.inf)
    total[0] = distances[0]
    for i in range(1, len(distances)):
        for j in range(distances.shape[1]):
            total[i, j] = distances[i, j] + min(total[i - 1, max(0, j - 2) : j + 1])
    return float(total[-1].min() / len(distances))


def test_short_queries_match_nothing() -> None:
    queries = make_features([QUERIES[2][:4], QUERIES[2][:5]])
    short, longer = qbe.score_documents(queries, make_features(DOCUMENTS), "cosine_exp")
    assert not short.any() and longer.any()


def test_dev_selects_the_layer_of_test() -> None:
    match = np.array([True] + [False] * 9)
    right, wrong = match.astype(float), (~match).astype(float)
    dev, test = [np.stack([wrong, right, wrong])], [np.stack([right, wrong, wrong])]
    assert qbe.measure_best_layer(dev, [match]) == {"qbe.mtwv": 1.0, "layer": 1.0}
    assert qbe.measure_layer_of_dev(dev, [match], test, [match]) == {"qbe.mtwv": 0.0, "layer": 1.0}


def make_query_corpus() -> Corpus:
    """Tones; the shortest texts of dev and test are the queries."""
    corpus = toy_corpus({"train": 40, "dev": 30, "test": 30})
    utterances = []
    for item in corpus.utterances:
        text = item.labels["text"]
        if item.split == "train" or len(text) == 5:
            matches = [other.key for other in corpus.split("train") if text in other.labels["text"]]
            utterances.append(replace(item, labels={**item.labels, "matches": " ".join(matches)}))
    return replace(corpus, utterances=utterances)


def test_queries_find_documents_that_contain_their_tones() -> None:
    corpus = make_query_corpus()
    spec = EvalSpec(task="qbe", corpus=CorpusSpec(), updates=1, seeds=2)
    encoder = ToyEncoder()
    facts: Any = evaluate(spec, encoder, corpus, torch.device("cpu"), lambda counts: None)
    scores = {score.split: score.values for score in read_scores(facts)}
    assert scores["dev"][0] == scores["dev"][1] > 0
    assert scores["test"][0] > 0.05  # of 40 documents, a false alarm costs a third
    assert facts["details"]["test"]["layer"] == facts["details"]["dev"]["layer"]
    assert facts["best_update"] == []
    assert len(encoder.calls) == len(corpus.utterances)


def test_documents_with_the_query_score_more_than_a_deviation_above_the_others() -> None:
    corpus = make_query_corpus()
    data = build_task_data(
        TASKS.get("qbe"), EvalSpec(task="qbe", corpus=CorpusSpec(), updates=1), corpus
    )
    assert isinstance(data, TrainingFreeTask)
    extract = Extractor(ToyEncoder(), corpus, torch.device("cpu"), pooled=False)
    items = {
        split: [example.utterance for example in examples]
        for split, examples in data.examples.items()
    }
    predictions = data.predict(
        prepare_features(extract, items, lambda _: None), NOT_SAVED, lambda count: None
    )
    scores = np.stack(predictions["test"])  # (queries, layers, documents)
    matches = np.stack([example.reference for example in data.examples["test"]])
    assert (
        max(
            scores[:, layer][matches].mean() - scores[:, layer][~matches].mean()
            for layer in range(3)
        )
        > 1.0
    )


def test_features_may_be_recomputed() -> None:
    corpus = toy_corpus({"train": 5, "dev": 3, "test": 2})
    extract = Extractor(ToyEncoder(), corpus, torch.device("cpu"), pooled=False)
    items = {split: corpus.split(split) for split in ("train", "dev")}
    stored = prepare_features(extract, items, lambda _: None)
    recomputed = prepare_features(extract, items, lambda _: None, FeatureStorage(memory_bytes=0))
    for one, other in zip(
        qbe.score_documents(stored["dev"], stored["train"], "cosine"),
        qbe.score_documents(recomputed["dev"], recomputed["train"], "cosine"),
        strict=True,
    ):
        assert (one == other).all()


def test_documents_are_ordered_by_length_and_unknown_ones_are_reported() -> None:
    spec = EvalSpec(task="qbe", corpus=CorpusSpec(), updates=1)
    data = build_task_data(TASKS.get("qbe"), spec, toy_corpus({"train": 9, "dev": 3, "test": 3}))
    assert isinstance(data, TrainingFreeTask)
    documents = [example.utterance for example in data.examples["train"]]
    assert [item.samples for item in documents] == sorted(item.samples for item in documents)
    for example in data.examples["dev"]:
        named = [
            item.key for item, match in zip(documents, example.reference, strict=True) if match
        ]
        assert sorted(named) == sorted(example.utterance.labels["matches"].split())
    with pytest.raises(UserError, match="matches `nowhere`, which is no utterance of train"):
        build_task_data(
            TASKS.get("qbe"),
            spec,
            toy_corpus({"train": 9, "dev": 3, "test": 3}, matches=lambda labels, draw: "nowhere"),
        )
