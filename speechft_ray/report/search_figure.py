"""Draws the figures of a search as PNG bytes: slices, importance, Pareto front, and alpha over
depth."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

from speechft_ray.core.objectives import higher_is_better, metric_name
from speechft_ray.report.charts import COLOURS
from speechft_ray.report.figure import (
    apply_style,
    label_text,
    make_figure,
    make_panels,
    to_png,
)
from speechft_ray.report.search_summary import SearchResults, objective_title
from speechft_ray.search.trials import Trial
from speechft_ray.sweep.titles import format_value, name_param

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHOSEN = "#E69F00"
PRUNED = "#9A9A9A"
MOST_SLICES = 12
"""Axes with a panel of their own."""
LAYER_LINES = 5
"""Best trials whose layers are drawn beside the winner's."""


def draw_slices(results: SearchResults) -> bytes | None:
    """Draws the first objective against each axis of the search, one panel each. Returns ``None``
    without data."""
    complete = list_complete_trials(results)
    names = list(dict.fromkeys(name for trial in complete for name in trial.proposal.values))[
        :MOST_SLICES
    ]
    if not names:
        return None
    with apply_style():
        figure, panels = make_panels(len(names))
        for axes, name in zip(panels, names, strict=True):
            trials = [trial for trial in complete if name in trial.proposal.values]
            settings = [trial.proposal.values[name] for trial in trials]
            numbers = all(
                isinstance(value, int | float) and not isinstance(value, bool) for value in settings
            )
            places = settings if numbers else [label_text(str(value)) for value in settings]
            values = [trial.result.values[0] for trial in trials if trial.result]
            dots = axes.scatter(
                places, values, c=[trial.number for trial in trials], cmap="viridis", s=18
            )
            axes.set(title=label_text(name_param(name)))
        figure.colorbar(dots, ax=panels, label="trial", shrink=0.6)
        figure.supylabel(
            objective_title(metric_name(results.plan.search.objectives[0])), fontsize=10
        )
        return to_png(figure)


def draw_importance(results: SearchResults) -> bytes | None:
    """Draws the importance of each axis. Returns ``None`` for too few trials."""
    ranked = sorted(results.importances.items(), key=lambda item: item[1])[-MOST_SLICES:]
    if not ranked:
        return None
    with apply_style():
        figure = make_figure(0.8 + 0.32 * len(ranked))
        axes = figure.add_subplot()
        axes.barh(
            [label_text(name_param(name)) for name, _ in ranked],
            [value for _, value in ranked],
            color=COLOURS[0],
        )
        axes.set(xlabel="importance (PED-ANOVA, first objective)")
        return to_png(figure)


def draw_pareto(results: SearchResults) -> bytes | None:
    """Draws the trials by two objectives with the Pareto front marked, one panel per objective
    beyond the first. Returns ``None`` for a single objective."""
    names = list(map(metric_name, results.plan.search.objectives))
    complete = list_complete_trials(results)
    if len(names) < 2 or not complete:
        return None
    with apply_style():
        figure, panels = make_panels(len(names) - 1)
        for place, axes in enumerate(panels, start=1):
            for trials, style, colour, label in (
                (complete, "o", COLOURS[0], "evaluated in full"),
                (list(results.chosen), "s", CHOSEN, "Pareto front"),
            ):
                ordered = sorted(
                    trials, key=lambda trial: trial.result.values[0] if trial.result else 0.0
                )
                points = [trial.result.values for trial in ordered if trial.result]
                axes.plot(
                    [point[0] for point in points],
                    [point[place] for point in points],
                    style,
                    color=colour,
                    label=label,
                )
            ways = ["→" if higher_is_better(name) else "←" for name in (names[0], names[place])]
            axes.set(
                xlabel=f"{objective_title(names[0])} {ways[0]}",
                ylabel=f"{objective_title(names[place])} {ways[1]}",
            )
        _legend(figure, panels[0])
        return to_png(figure)


def draw_layers(results: SearchResults) -> bytes | None:
    """Draws the per-layer parameters of the winner, and of the next best trials. Returns ``None``
    where no parameter is per layer."""
    depth = results.plan.space.depth
    complete = sorted(
        list_complete_trials(results), key=_objective_to_maximise(results), reverse=True
    )
    first = [trial for trial in results.chosen[:1] if _layer_params(trial, depth)]
    if not first:
        return None
    others = [
        trial
        for trial in complete
        if trial.number != first[0].number and _layer_params(trial, depth)
    ][:LAYER_LINES]
    with apply_style():
        figure = make_figure(4.0)
        axes = figure.add_subplot()
        for trial in others:
            for values in _layer_params(trial, depth).values():
                axes.plot(range(depth), values, color=PRUNED, linewidth=1, label="_nolegend_")
        axes.plot([], [], color=PRUNED, label=f"next {len(others)} trials")
        for place, (name, values) in enumerate(_layer_params(first[0], depth).items()):
            label = f"trial {first[0].number}, {label_text(name)}"
            axes.plot(
                range(depth),
                values,
                "o-",
                color=COLOURS[place % len(COLOURS)],
                linewidth=2.4,
                label=label,
            )
        # Parameters with one value are lines of the legend: a label at a line would hide points.
        single = {
            name: value
            for name, value in first[0].proposal.merge.params.items()
            if isinstance(value, float)
        }
        for style, (name, value) in zip(itertools.cycle((":", "--", "-.")), single.items()):
            label = f"{label_text(name)} {format_value(value)}"
            axes.axhline(value, linestyle=style, linewidth=1, color=PRUNED, label=label)
        axes.set(
            xlabel="encoder layer (0 is next to the convolutions)",
            ylabel="alpha of the layer",
            xticks=range(depth),
        )
        _legend(figure, axes)
        return to_png(figure)


def _layer_params(trial: Trial, depth: int) -> dict[str, list[float]]:
    """Returns the parameters of a merge that have one number per layer."""
    params = {}
    for name, value in trial.proposal.merge.params.items():
        if isinstance(value, list) and len(value) == depth and not name.startswith("weights"):
            numbers = [float(item) for item in value if isinstance(item, int | float)]
            if len(numbers) == depth:
                params[name] = numbers
    return params


def list_complete_trials(results: SearchResults) -> list[Trial]:
    """Returns the trials that were evaluated in full."""
    return [
        trial
        for trial in results.trials
        if trial.result is not None and trial.result.state == "complete"
    ]


def _objective_to_maximise(results: SearchResults) -> Callable[[Trial], float]:
    sign = 1.0 if higher_is_better(metric_name(results.plan.search.objectives[0])) else -1.0
    return lambda trial: sign * (trial.result.values[0] if trial.result else 0.0)


def _legend(figure: Figure, axes: Axes) -> None:
    marks, labels = axes.get_legend_handles_labels()
    figure.legend(marks, labels, loc="outside lower center", ncols=4, fontsize=9.5)
