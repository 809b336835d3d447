"""The chart of a search: the first objective of each trial, the best so far, the chosen one."""

from __future__ import annotations

from collections.abc import Sequence

from speechft_ray.core.objectives import higher_is_better, metric_name
from speechft_ray.report.charts import COLOURS, CONTROL, REST, STAR, Chart, ChartGroup, Trace
from speechft_ray.report.search_figure import list_complete_trials
from speechft_ray.report.search_summary import (
    SearchResults,
    describe_trial,
    format_objective,
    objective_title,
)
from speechft_ray.search.trials import Trial


def chart_history(results: SearchResults) -> ChartGroup | None:
    """Returns the first objective of each trial by its number; ``None`` without data."""
    name = metric_name(results.plan.search.objectives[0])
    complete = list_complete_trials(results)
    if not complete:
        return None
    traces = [
        Trace("best so far", _best_so_far(complete, name), COLOURS[1], "step"),
        _trace_trials("evaluated in full", complete, results),
        *_trace_pruned(results),
    ]
    ends = [complete[0].number, max(trial.number for trial in complete)]
    zero = (
        results.evaluator.value(name, results.evaluator.pretrained) if results.evaluator else None
    )
    if zero is not None and zero == zero:
        level = [(float(number), zero) for number in ends]
        traces.append(Trace("pre-trained", level, CONTROL, "level"))
    if results.chosen:
        chosen = _trace_trials("chosen on dev", results.chosen[:1], results)
        traces.append(chosen._replace(colour=STAR, kind="star"))
    chart = Chart("", "trial", objective_title(name), traces)
    return ChartGroup("search_history", "How the search went", "", [chart])


def _trace_trials(label: str, trials: Sequence[Trial], results: SearchResults) -> Trace:
    names = list(map(metric_name, results.plan.search.objectives))
    points, notes = [], []
    for trial in trials:
        if trial.result is not None and trial.result.values:
            points.append((float(trial.number), trial.result.values[0]))
            objectives = [
                f"{objective_title(name)}: {format_objective(name, value)}"
                for name, value in zip(names, trial.result.values, strict=True)
            ]
            notes.append("\n".join([f"trial {trial.number}", describe_trial(trial), *objectives]))
    return Trace(label, points, COLOURS[0], "dots", notes=notes)


def _trace_pruned(results: SearchResults) -> list[Trace]:
    """Returns the trials that were stopped, with what they had by then; none where none was. The
    value of a screen is another quantity."""
    search = results.plan.search
    has_screen = search.screen is not None
    pruned = [
        (trial, trial.result.steps[-1])
        for trial in results.trials
        if trial.state == "pruned" and trial.result and len(trial.result.steps) > has_screen
    ]
    if not pruned:
        return []
    label = "stopped at a rung, by then" if search.list_rungs() else "stopped early, so far"
    points = [(float(trial.number), value) for trial, value in pruned]
    notes = [f"trial {trial.number}, {label}\n{describe_trial(trial)}" for trial, _ in pruned]
    return [Trace(label, points, REST, "dots", notes=notes)]


def _best_so_far(trials: Sequence[Trial], name: str) -> list[tuple[float, float]]:
    """Returns the running best over trials that keep the constraints."""
    feasible = [trial for trial in trials if trial.feasible and trial.result]
    values = [trial.result.values[0] for trial in feasible if trial.result]
    best = max if higher_is_better(name) else min
    return [
        (float(trial.number), best(values[: count + 1])) for count, trial in enumerate(feasible)
    ]
