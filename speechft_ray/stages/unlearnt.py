"""Finds merged encoders whose fine-tuning learnt next to nothing: its best dev metric is hardly
better than that of one answer for everything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from speechft_ray.core.metrics import metric
from speechft_ray.core.store import Store
from speechft_ray.finetuning.validation import goodness
from speechft_ray.stages.leaks import list_recipes
from speechft_ray.sweep.plan import Plan
from speechft_ray.sweep.protocols import EncoderRow

LEAST_GAIN = 0.05
"""Of what is missing from the constant answer to a perfect one. Below it a run has learnt next to
nothing: validations of a head that has not begun to learn differ by a few percent."""


def mark_unlearnt(rows: Iterable[EncoderRow], plan: Plan, store: Store) -> list[EncoderRow]:
    """Returns the rows; ``unlearnt`` is set where a fine-tuning run of the row, or of an earlier
    stage of its chain, learnt next to nothing of one of its objectives."""
    sentences_by_run: dict[str, list[str]] = {}

    def explain(donor: str) -> list[str]:
        if donor not in sentences_by_run:
            sentences_by_run[donor] = list(_explain_run(plan, store, donor))
        return sentences_by_run[donor]

    marked = []
    for row in rows:
        donors = [donor for recipe in list_recipes(plan, row.key) for donor in recipe["donors"]]
        sentences = dict.fromkeys(sentence for donor in donors for sentence in explain(donor))
        marked.append(replace(row, unlearnt="; ".join(sentences)) if sentences else row)
    return marked


def _explain_run(plan: Plan, store: Store, donor: str) -> Iterator[str]:
    if not store.is_complete("finetune", donor):
        return
    name = plan.jobs[donor].label.removeprefix("finetune ")
    objectives: list[Mapping[str, Any]] = store.manifest("finetune", donor).get("objectives", [])
    for item in objectives:
        if "constant_dev" not in item:  # of a version before 0.10
            continue
        measured, best, constant = str(item["metric"]), item["best_dev"], item["constant_dev"]
        start = goodness(measured, constant)
        if goodness(measured, best) - start >= LEAST_GAIN * (100.0 - start):
            continue
        title = metric(measured).title
        yield (
            f"learnt next to nothing: {name} has {title} {best:.1f} at best, where one answer for "
            f"everything has {constant:.1f} (raise `updates` or change `peak_learning_rate`)"
        )
