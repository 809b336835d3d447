"""Objectives and constraints of a merge search on dev, checked against the metrics of its tasks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from speechft_ray.core.axes import Axes, read_axes
from speechft_ray.core.chains import build_chains
from speechft_ray.core.errors import unknown_name
from speechft_ray.core.metrics import METRICS, metric, metrics_of
from speechft_ray.core.specs import EvalSpec, SearchSpec, SweepSpec
from speechft_ray.core.validation import Mistakes

SCORE, DISTANCE = "score", "distance"
RUNG_SAMPLERS = ("tpe", "random", "qmc")
"""Samplers that learn from trials that ended at a rung, or from none."""


def metric_name(name: str) -> str:
    """Returns an objective or constraint without the optional ``dev.``."""
    return name.removeprefix("dev.")


def higher_is_better(name: str) -> bool:
    """Whether a higher value is better: of the score, of a metric, never of the distance."""
    return name == SCORE or (name != DISTANCE and metric(name).higher_is_better)


def select_tasks(spec: SweepSpec, search: SearchSpec) -> tuple[EvalSpec, ...]:
    """Returns the evaluations that a search needs of each merge for its objectives and constraints,
    in the order of the spec."""
    names = {
        metric_name(name)
        for name in (*search.objectives, *(item.metric for item in search.constraints))
    }
    labels = {METRICS[name].task for name in names if name in METRICS}
    if SCORE in names:
        labels |= {item.label for item in spec.evaluate if item.in_score}
    needed = tuple(item for item in spec.evaluate if item.label in labels)
    # The distance is measured by the first evaluation, whatever its task.
    return needed or spec.evaluate[:1]


def list_compared(spec: SweepSpec, search: SearchSpec) -> list[EvalSpec]:
    """Returns the evaluations that the first objective is made of, in the order of the spec."""
    objective = metric_name(search.objectives[0])
    if objective == SCORE:
        return [item for item in spec.evaluate if item.in_score]
    task = METRICS[objective].task if objective in METRICS else None
    return [item for item in spec.evaluate if item.label == task]


def search_mistakes(spec: SweepSpec, search: SearchSpec) -> Mistakes:
    """Returns every mistake of a search, by path."""
    axes, mistakes = read_axes(search, build_chains(spec.finetune))
    for index, name in enumerate(search.objectives):
        mistakes += [
            (f"search.objectives[{index}]", text)
            for text in _unknown(name, spec, (SCORE, DISTANCE))
        ]
    for index, item in enumerate(search.constraints):
        mistakes += [
            (f"search.constraints[{index}].metric", text)
            for text in _unknown(item.metric, spec, (SCORE,))
        ]
    if len({metric_name(name) for name in search.objectives}) < len(search.objectives):
        mistakes.append(("search.objectives", "must name each objective once."))
    if search.pruning_rule() != "none" and tuple(map(metric_name, search.objectives)) != (SCORE,):
        text = (
            f"`{search.pruning_rule()}` compares scores, so it needs `objectives: [score]`; "
            "leave it out or write `none`."
        )
        mistakes.append(("search.stop_early", text))
    mistakes += _rung_mistakes(spec, search)
    if spec.stop_tuning is not None:
        text = (
            "ends runs by how others do meanwhile, but a search must propose the same each time: "
            "leave one of the two out."
        )
        mistakes.append(("stop_tuning", text))
    return mistakes if mistakes else _sampler_mistakes(search, axes)


def _rung_mistakes(spec: SweepSpec, search: SearchSpec) -> Mistakes:
    """Returns what is wrong with rungs and screen, as far as it does not depend on what tasks
    are."""
    mistakes: Mistakes = []
    factor = SearchSpec.model_fields["reduction_factor"].default
    if search.rungs:
        mistakes += _fraction_mistakes(search.rungs)
    elif search.reduction_factor != factor:
        text = "belongs to `search.rungs`: name these, or leave it out."
        mistakes.append(("search.reduction_factor", text))
    if not search.list_rungs():
        return mistakes
    name = "rungs" if search.rungs else "screen"
    if len(search.objectives) > 1 or metric_name(search.objectives[0]) == DISTANCE:
        text = "compares trials by the score or one metric on dev: name that as the one objective."
        mistakes.append((f"search.{name}", text))
    elif search.screen is not None:
        mistakes += _screen_mistakes(spec, search, search.screen.tasks)
    if search.sampler not in RUNG_SAMPLERS:
        text = (
            f"ends most trials before they have a value, from which `{search.sampler}` learns "
            f"nothing: take one of {', '.join(f'`{name}`' for name in RUNG_SAMPLERS)}."
        )
        mistakes.append(("search.sampler", text))
    if search.stop_early not in (None, "none"):
        text = f"`{search.stop_early}` and `{name}` both end trials early: keep one of the two."
        mistakes.append(("search.stop_early", text))
    return mistakes


def _fraction_mistakes(rungs: Sequence[float]) -> Mistakes:
    faults = {
        "must be fractions of a task's updates, above 0 and at most 1": not all(
            0 < rung <= 1 for rung in rungs
        ),
        "must ascend": any(rung >= later for rung, later in pairwise(rungs)),
        "must end at 1, the full evaluation": rungs[-1] != 1,
        "must have a rung before the full evaluation": len(rungs) < 2,
    }
    if wrong := [text for text, is_wrong in faults.items() if is_wrong]:
        text = f"{wrong[0]}, as in [0.02, 0.1, 0.3, 1], but is {list(rungs)} instead."
        return [("search.rungs", text)]
    return []


def _screen_mistakes(spec: SweepSpec, search: SearchSpec, labels: Sequence[str]) -> Mistakes:
    """Returns what is wrong with the tasks of a screen: each must be one that the objective is made
    of, named once. An objective that is not measured is told elsewhere."""
    allowed = [item.label for item in list_compared(spec, search)]
    if not allowed:
        return []
    kind = "evaluation of the objective"
    mistakes = [
        (f"search.screen.tasks[{index}]", unknown_name(kind, name, allowed))
        for index, name in enumerate(labels)
        if name not in allowed
    ]
    if len(set(labels)) < len(labels):
        mistakes.append(("search.screen.tasks", "must name each evaluation once."))
    return mistakes


def _unknown(name: str, spec: SweepSpec, others: Sequence[str]) -> list[str]:
    bare = metric_name(name)
    measured = [
        metric.name for entry in spec.evaluate for metric in metrics_of(entry.task, entry.name)
    ]
    allowed = [*others, *measured]
    if bare.startswith("test."):
        text = (
            f"`{name}` is measured on test, which a search never sees: it selects on dev, test is "
            "for what it has chosen."
        )
        return [f"{text} Write `{bare.removeprefix('test.')}`."]
    if bare in allowed:
        return []
    if bare in METRICS:
        return [
            f"no task of this search yields `{name}`: add `{METRICS[bare].task}` under `evaluate`."
        ]
    return [unknown_name("metric", name, allowed)]


def _sampler_mistakes(search: SearchSpec, axes: Axes) -> Mistakes:
    kinds = {name: axis.kind for name, axis in axes.all().items() if axis.kind != "fixed"}
    wrong: Mistakes = []
    if search.random_share and search.sampler in ("greedy_soup", "random", "qmc"):
        text = f"`{search.sampler}` has no proposals that could be random instead: leave it out."
        wrong.append(("search.random_share", text))
    if search.sampler == "greedy_soup":
        free = (
            list(kinds)
            + (["donors"] if axes.donors.kind != "always" else [])
            + list(axes.run_fields)
        )
        if free:
            text = (
                "`greedy_soup` chooses the donors itself and nothing else: "
                f"give {', '.join(free)} a fixed value."
            )
            wrong.append(("search.sampler", text))
        if len(search.objectives) > 1:
            wrong.append(("search.sampler", "`greedy_soup` follows one objective: name one."))
        return wrong
    if not kinds and axes.donors.kind == "always" and not axes.run_fields:
        wrong.append(
            (
                "search.axes",
                "fix every value, so there is nothing to search: give one of them a range.",
            )
        )
    if search.sampler == "cmaes":
        several = sum(
            2 if kind in ("per_layer", "per_donor", "curve") else 1 for kind in kinds.values()
        )
        choices = [name for name, kind in kinds.items() if kind == "choice"]
        choices += (["donors"] if axes.donors.kind != "always" else []) + list(axes.run_fields)
        if choices:
            text = f"`cmaes` moves numbers only: fix {', '.join(choices)}, or take `tpe`."
            wrong.append(("search.sampler", text))
        elif several < 2:
            wrong.append(
                (
                    "search.sampler",
                    "`cmaes` needs at least two numbers to move: add an axis, or take `tpe`.",
                )
            )
        if len(search.objectives) > 1:
            wrong.append(
                (
                    "search.sampler",
                    "`cmaes` follows one objective: take `tpe`, `nsga2` or `nsga3` for several.",
                )
            )
    return wrong
