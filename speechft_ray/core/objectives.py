"""Objectives and constraints of a merge search on dev, checked against the metrics of its tasks."""

from __future__ import annotations

from collections.abc import Sequence

from speechft_ray.core.axes import Axes, read_axes
from speechft_ray.core.chains import build_chains
from speechft_ray.core.errors import unknown_name
from speechft_ray.core.metrics import METRICS, metric, metrics_of
from speechft_ray.core.specs import EvalSpec, SearchSpec, SweepSpec
from speechft_ray.core.validation import Mistakes

SCORE, DISTANCE = "score", "distance"


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
    if spec.stop_tuning is not None:
        text = (
            "ends runs by how others do meanwhile, but a search must propose the same each time: "
            "leave one of the two out."
        )
        mistakes.append(("stop_tuning", text))
    return mistakes if mistakes else _sampler_mistakes(search, axes)


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
