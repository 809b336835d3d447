"""The part of a report about a search: ``trials.csv``, figures and the section of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from speechft_ray.core.objectives import higher_is_better, metric_name
from speechft_ray.report.charts import dump_group
from speechft_ray.report.figure import draw_group
from speechft_ray.report.rungs import tabulate_rungs
from speechft_ray.report.search_charts import chart_history
from speechft_ray.report.search_figure import (
    draw_importance,
    draw_layers,
    draw_pareto,
    draw_slices,
)
from speechft_ray.report.search_summary import (
    SearchResults,
    describe_trial,
    format_objective,
    objective_title,
    search_sentences,
    trials_csv,
)
from speechft_ray.search.trials import Trial

MOST_ROWS = 20
"""Trials that the page shows; the rest is in ``trials.csv``."""

HISTORY = "search_history"
FIGURES = {
    "search_pareto": ("Pareto front", draw_pareto),
    "search_layers": ("Alpha over depth", draw_layers),
    "search_slice": ("Each axis", draw_slices),
    "search_importance": ("Which axes matter", draw_importance),
}


class SearchSection(NamedTuple):
    """What ``search.html`` shows."""

    sentences: Sequence[str]
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    hidden_trials: int
    """Trials that only ``trials.csv`` has."""
    rungs: Sequence[Sequence[str]]
    """A header and a line for each rung; empty for a search without."""
    figures: Sequence[tuple[str, bytes]]
    """``(title, PNG)``."""
    history: Mapping[str, Any] | None = None
    """The chart over trials (``charts.dump_group``); ``None`` without data."""
    history_image: bytes | None = None
    """The same as PNG."""


def make_search_files(
    results: SearchResults | None,
) -> tuple[dict[str, bytes | None], SearchSection | None]:
    """Returns the files of a search by name, ``None`` for one to remove, and the section of the
    page; no section for a sweep without a search."""
    images = {name: draw(results) if results else None for name, (_, draw) in FIGURES.items()}
    history = chart_history(results) if results else None
    images[HISTORY] = draw_group(history) if history else None
    files: dict[str, bytes | None] = {f"{name}.png": image for name, image in images.items()}
    files["trials.csv"] = trials_csv(results).encode("utf-8", "replace") if results else None
    return files, make_search_section(results, images) if results else None


def make_search_section(
    results: SearchResults, images: Mapping[str, bytes | None]
) -> SearchSection:
    """Returns the section: selected trials first, then the best others on the first objective."""
    names = list(map(metric_name, results.plan.search.objectives))
    place = {trial.number: index for index, trial in enumerate(results.chosen)}
    complete = [
        trial
        for trial in results.trials
        if trial.result is not None and trial.result.state == "complete"
    ]
    history = chart_history(results)
    ranked = sorted(
        complete, key=lambda trial: (place.get(trial.number, len(place)), *_order(trial, names))
    )[:MOST_ROWS]
    figures = [(title, images.get(name)) for name, (title, _) in FIGURES.items()]
    return SearchSection(
        sentences=search_sentences(results),
        header=["", "trial", "merge", *map(objective_title, names)],
        rows=[
            _row(
                trial,
                names,
                "★" if trial.number in place and trial.key not in results.untuned else "",
            )
            for trial in ranked
        ],
        hidden_trials=len(results.trials) - len(ranked),
        rungs=tabulate_rungs(results.rungs) if results.rungs is not None else [],
        figures=[(title, image) for title, image in figures if image is not None],
        history=dump_group(history) if history else None,
        history_image=images.get(HISTORY),
    )


def _row(trial: Trial, names: Sequence[str], mark: str) -> list[str]:
    values = trial.result.values if trial.result else ()
    merge = describe_trial(trial) + ("" if trial.feasible else " (breaks a constraint)")
    objectives = [format_objective(name, value) for name, value in zip(names, values, strict=True)]
    return [mark, str(trial.number), merge, *objectives]


def _order(trial: Trial, names: Sequence[str]) -> tuple[float, int]:
    value = trial.result.values[0] if trial.result else 0.0
    return (-value if higher_is_better(names[0]) else value), trial.number
