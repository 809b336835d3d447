"""Finds merged encoders whose fine-tuning did not change the encoder: what a run kept is of its
head-only phase."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from speechft_ray.core.specs import FinetuneSpec
from speechft_ray.core.store import Store
from speechft_ray.finetuning.loop import checkpoint_update
from speechft_ray.finetuning.phases import head_only_updates
from speechft_ray.stages.leaks import list_recipes
from speechft_ray.sweep.plan import Plan
from speechft_ray.sweep.protocols import EncoderRow


def mark_untuned(rows: Iterable[EncoderRow], plan: Plan, store: Store) -> list[EncoderRow]:
    """Returns the rows; ``untuned`` is set where a fine-tuning run of the row, or of an earlier
    stage of its chain, left the encoder at its start."""
    return [
        replace(row, untuned="; ".join(sentences))
        if (sentences := list(dict.fromkeys(_untuned_runs(plan, store, row.key))))
        else row
        for row in rows
    ]


def _untuned_runs(plan: Plan, store: Store, merged: str) -> Iterator[str]:
    for recipe in list_recipes(plan, merged):
        for donor in recipe["donors"]:
            spec = FinetuneSpec.model_validate(plan.jobs[donor].payload["spec"])
            head_only = head_only_updates(spec.head_only_fraction, spec.updates)
            update = _selected_update(recipe, spec, store, donor)
            if update is not None and update <= head_only:
                name = plan.jobs[donor].label.removeprefix("finetune ")
                yield (
                    f"not tuned: {name} kept the encoder of update {update}, and its first "
                    f"{head_only} of {spec.updates} updates train the head alone ("
                    f"{_advise(recipe, head_only, spec)})"
                )


def _selected_update(
    recipe: Mapping[str, Any], spec: FinetuneSpec, store: Store, donor: str
) -> int | None:
    """Returns the update whose weights a merge uses; ``None`` while that is not known."""
    if "checkpoint" in recipe:
        return checkpoint_update(recipe["checkpoint"], spec.updates)
    if not store.is_complete("finetune", donor):
        return None
    update = store.manifest("finetune", donor).get("best_update")
    return None if update is None else int(update)


def _advise(recipe: Mapping[str, Any], head_only: int, spec: FinetuneSpec) -> str:
    if head_only == spec.updates:
        return "lower `head_only_fraction`"
    if "checkpoint" in recipe:
        return "merge a later checkpoint"
    # Today's runs keep no such validation when there is a later one.
    return "by an earlier version; another `validate_every_updates` runs it anew"
