"""The contract of every registered task, on a corpus that has all label columns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from speechft_ray.commands.evaluate import make_evaluation
from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.core.metrics import METRICS
from speechft_ray.core.records import read_scores
from speechft_ray.core.specs import CorpusSpec, EvalSpec
from speechft_ray.speech.corpora.base import Corpus
from speechft_ray.speech.corpora.synthetic import SyntheticOptions, estimate_size, open_synthetic
from speechft_ray.superb.evaluate import evaluate
from speechft_ray.superb.setup import build_task_data
from speechft_ray.superb.tasks.base import TASKS, TaskData, list_allowed_tasks
from tests.superb.toy_models import ToyEncoder, toy_corpus

COUNTS = {"train": 12, "dev": 6, "test": 6}
SMALL = {"projection": 8, "lstm_hidden": 4, "width": 8, "pooled_width": 12, "hidden": 4}
"""Narrow heads, for speed; tasks without these options do not get them."""

each_task = pytest.mark.parametrize("name", TASKS.names())


def spec_of(name: str, **fields: Any) -> EvalSpec:
    task = TASKS.get(name)
    options: dict[str, Any] = {
        option: value for option, value in SMALL.items() if option in task.options.model_fields
    }
    column = None if task.columns else "speaker"
    return EvalSpec(
        task=name,
        corpus=CorpusSpec(),
        column=column,
        options=options,
        **{"updates": 4, "batch_size": 4, **fields},
    )


def facts_of(name: str, corpus: Corpus) -> dict[str, Any]:
    facts = evaluate(
        spec_of(name, seeds=2), ToyEncoder(), corpus, torch.device("cpu"), lambda counts: None
    )
    return {**facts, "seconds": None}


@each_task
def test_its_row_is_valid(name: str) -> None:
    task = TASKS.get(name)
    assert task.name == name
    assert task.metrics and all(METRICS[metric].task == name for metric in task.metrics)
    assert task.version >= 1
    assert task.learning_rate > 0 and task.batch_size >= 1 and task.clip_norm > 0
    assert task.options().model_dump().keys() == task.options.model_fields.keys()
    with pytest.raises(FrozenInstanceError):
        task.name = "other"  # type: ignore[misc]


@each_task
def test_it_scores_every_metric_on_both_splits_for_every_seed(name: str) -> None:
    facts = facts_of(name, toy_corpus(COUNTS))
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    values_of = {(score.metric, score.split): score.values for score in read_scores(facts)}
    assert set(values_of) == {
        (metric, split) for metric in TASKS.get(name).metrics for split in ("dev", "test")
    }
    assert all(len(values) == 2 and min(values) >= 0.0 for values in values_of.values())
    assert all(
        value <= 100.0
        for (metric, _), values in values_of.items()
        if METRICS[metric].higher_is_better
        for value in values
    )


@each_task
def test_it_needs_no_files(name: str, tmp_path: Path) -> None:
    """The synthetic part that ``evaluate`` takes without a corpus has its labels, in every split,
    and a class of dev or test in train."""
    sizes = {"train": 64, "dev": 24, "test": 24, "speakers": 4}
    if name == "label":  # has to be told what it is about
        sizes |= {"part": "sid"}  # type: ignore[dict-item]
    spec, roots = make_evaluation(name, None, {"updates": 1, "corpus_options": sizes})
    assert spec.corpus.name == "synthetic" and not roots
    options = SyntheticOptions.model_validate(spec.corpus.options)
    corpus = open_synthetic(options, None, tmp_path)
    assert estimate_size(options).columns == corpus.columns
    facts = facts_of(name, corpus)
    metrics = {score.metric for score in read_scores(facts) if score.split == "test"}
    assert metrics == set(TASKS.get(name).metrics)


@each_task
def test_it_is_repeatable(name: str) -> None:
    assert facts_of(name, toy_corpus(COUNTS)) == facts_of(name, toy_corpus(COUNTS))


def perfect_predictions(name: str, references: Sequence[Any], corpus: Corpus) -> list[Any]:
    """Returns the predictions of a perfect probe; for most tasks the references themselves."""
    if name == "asv":
        speakers = {
            utterance.key: int(utterance.labels["speaker"][1:]) for utterance in corpus.utterances
        }
        return list(torch.eye(4)[[speakers[key] for key in references]])
    if name == "sd":
        return [20.0 * chunk.labels - 10.0 for chunk in references]
    if name == "qbe":
        return [matches[None].astype(float) for matches in references]
    return list(references)


@each_task
def test_right_predictions_are_perfect_and_its_metrics_know_their_direction(name: str) -> None:
    corpus = toy_corpus(COUNTS)
    data = build_task_data(TASKS.get(name), spec_of(name), corpus)
    references = [example.reference for example in data.examples["test"]]
    right = perfect_predictions(name, references, corpus)
    perfect = data.measure(right, references)
    shifted = data.measure([*right[1:], right[0]], references)
    best = {"percent": 100.0, "value": 1.0}
    for metric in TASKS.get(name).metrics:
        value, row = perfect[metric], METRICS[metric]
        assert value == pytest.approx(best[row.unit] if row.higher_is_better else 0.0)
        assert shifted[metric] <= value if row.higher_is_better else shifted[metric] >= value
    assert shifted != perfect


@each_task
def test_its_counts_add_up_to_its_metrics(name: str) -> None:
    corpus = toy_corpus(COUNTS)
    data = build_task_data(TASKS.get(name), spec_of(name), corpus)
    if name in ("asv", "qbe"):
        # The best threshold over all trials or queries is no sum over utterances.
        assert getattr(data, "counts", None) is None
        return
    assert isinstance(data, TaskData) and data.counts is not None
    references = {
        split: [example.reference for example in data.examples[split]] for split in ("dev", "test")
    }
    predictions = {
        split: perfect_predictions(name, [*items[1:], items[0]], corpus)
        for split, items in references.items()
    }
    metrics = data.compute_test_metrics(
        predictions["dev"], references["dev"], predictions["test"], references["test"]
    )
    counts = data.counts(predictions["test"], references["test"], metrics)
    assert set(counts) == set(TASKS.get(name).metrics)
    for metric, pairs in counts.items():
        assert len(pairs) == COUNTS["test"]
        assert 100.0 * sum(amount for amount, _ in pairs) / sum(
            of for _, of in pairs
        ) == pytest.approx(metrics[metric])


@each_task
def test_its_examples_are_the_corpus(name: str) -> None:
    corpus = toy_corpus(COUNTS)
    data = build_task_data(TASKS.get(name), spec_of(name), corpus)
    references = {split: {utterance.key for utterance in corpus.split(split)} for split in COUNTS}
    if name == "asv":
        references["dev"] = references["test"]  # as published numbers were chosen
    for split, examples in data.examples.items():
        assert {example.utterance.key.split("[")[0] for example in examples} == references[split]
        for example in examples:
            assert len(data.corpus.read(example.utterance)) == example.utterance.samples


@each_task
def test_it_trains_a_probe_or_says_that_it_does_not(name: str) -> None:
    data = build_task_data(TASKS.get(name), spec_of(name), toy_corpus(COUNTS))
    assert isinstance(data, TaskData) == TASKS.get(name).trains


@pytest.mark.parametrize("name", [name for name in TASKS.names() if TASKS.get(name).trains])
def test_its_loss_reaches_the_whole_head(name: str) -> None:
    data = build_task_data(TASKS.get(name), spec_of(name), toy_corpus(COUNTS))
    assert isinstance(data, TaskData)
    torch.manual_seed(0)
    head = data.head(5)
    frames = torch.tensor([40, 33, 37])
    logits = head(torch.randn(3, 40, 5), frames)
    loss = data.loss(logits, frames, [example.target for example in data.examples["train"][:3]])
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.ndim == 0 and loss.isfinite()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0
        for parameter in head.parameters()
    )
    assert len(data.predict(logits, frames)) == 3


@each_task
def test_it_refuses_a_corpus_without_its_columns_or_a_split(name: str) -> None:
    corpus = toy_corpus(COUNTS)
    task = TASKS.get(name)
    assert name in list_allowed_tasks(corpus.columns)
    if task.columns:
        poorer = replace(corpus, columns=corpus.columns - {task.columns[0]})
        assert name not in list_allowed_tasks(poorer.columns)
        with pytest.raises(UserError, match=f"needs the column `{task.columns[0]}`"):
            build_task_data(task, spec_of(name), poorer)
    with pytest.raises(UserError, match="no utterances in the split `test`"):
        build_task_data(task, spec_of(name), toy_corpus({"train": 12, "dev": 6}))


@each_task
def test_it_refuses_unknown_options(name: str) -> None:
    with pytest.raises(SpecError, match="no_such_option"):
        build_task_data(
            TASKS.get(name),
            spec_of(name).model_copy(update={"options": {"no_such_option": 1}}),
            toy_corpus(COUNTS),
        )
