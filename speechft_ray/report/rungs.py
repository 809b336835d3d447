"""What the rungs of a search cost, and how well they foretell the full evaluation."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from speechft_ray.core.objectives import metric_name
from speechft_ray.core.rung_spec import SCREEN
from speechft_ray.core.specs import SearchSpec
from speechft_ray.core.store import Store
from speechft_ray.report.rank_correlation import RankCorrelation, correlate_ranks
from speechft_ray.search.plan import SearchPlan
from speechft_ray.search.trials import Trial

RANGE_NOTE = (
    "Correlations are over the trials that reached the later rung, which are the better part: "
    "over all trials they would be higher."
)


class TrialCost(NamedTuple):
    """What one trial took: its updates, those of all tasks added up (all probes of a task make
    them together), and the seconds of its evaluations on one worker."""

    updates: int
    seconds: float


class RungLine(NamedTuple):
    """One rung of a search."""

    name: str
    """``screen``, or the fraction of the updates."""
    trials: int
    """Trials that were evaluated up to it, repeated merges not counted."""
    updates: int
    """Updates that this rung added, of all trials."""
    seconds: float
    """Seconds of the evaluations of this rung."""
    next_rung: RankCorrelation | None
    """Of the values here and at the next rung; at the last but one, the full ones."""
    full: RankCorrelation | None
    """Of the values here and the full ones."""


class RungSummary(NamedTuple):
    """All rungs of a search."""

    lines: Sequence[RungLine]
    costs: Sequence[TrialCost]
    """By trial; nothing for a repeated merge."""
    update_share: float
    """Updates made, of those that all trials would make in full."""
    second_share: float | None
    """The same of seconds, at the mean of the trials that were evaluated in full; ``None`` where
    there is none."""


def summarize_rungs(plan: SearchPlan, trials: Sequence[Trial], store: Store) -> RungSummary | None:
    """Returns the rungs of a search by now; ``None`` for a search without, and before its first
    value."""
    distinct = [trial for trial in trials if trial.repeats is None and trial.rung_values]
    rungs = plan.search.list_rungs()
    if not rungs or not distinct:
        return None
    seconds = {trial.number: _read_seconds(plan, trial, store) for trial in distinct}
    values = {trial.number: _list_values(trial) for trial in distinct}
    lines = []
    last = len(rungs) - 1
    for rung, fraction in enumerate(rungs):
        before = plan.count_updates(rung - 1) if rung else 0
        reached = [trial for trial in distinct if len(seconds[trial.number]) > rung]
        lines.append(
            RungLine(
                name="screen" if fraction == SCREEN else f"{fraction:g}",
                trials=len(reached),
                updates=len(reached) * (plan.count_updates(rung) - before),
                seconds=sum(seconds[trial.number][rung] for trial in reached),
                next_rung=_correlate(list(values.values()), rung, rung + 1),
                full=_correlate(list(values.values()), rung, last),
            )
        )
    costs = [_add_up(plan, seconds.get(trial.number, [])) for trial in trials]
    in_full = [cost.seconds for trial, cost in zip(trials, costs, strict=True) if trial.metrics]
    spent = sum(cost.seconds for cost in costs)
    mean = statistics.fmean(in_full) if in_full else 0.0
    return RungSummary(
        lines=lines,
        costs=costs,
        update_share=sum(line.updates for line in lines)
        / (len(distinct) * plan.count_updates(last)),
        second_share=spent / (mean * len(distinct)) if mean else None,
    )


def describe_rungs(summary: RungSummary) -> list[str]:
    """Returns the cost of the rungs and the correlations, in plain sentences."""
    names = ["the screen" if line.name == "screen" else line.name for line in summary.lines]
    reached = ", ".join(
        f"{line.trials} to {name}" for line, name in zip(summary.lines, names, strict=True)
    )
    seconds = (
        f" and about {summary.second_share:.0%} of the seconds"
        if summary.second_share is not None
        else ""
    )
    cost = f"{summary.update_share:.1%} of the updates{seconds} of evaluating all in full"
    sentences = [f"Trials by the rung that they were evaluated up to: {reached}. That took {cost}."]
    texts = []
    for line in summary.lines[:-1]:
        parts = [f"with the next rung {line.next_rung}"] if line.next_rung else []
        parts += [f"with the full value {line.full}"] if line.full else []
        name = line.name if line.name == "screen" else f"rung {line.name}"
        texts += [f"{name} {', '.join(parts)}"] if parts else []
    if texts:
        sentences.append(f"Rank correlation: {'; '.join(texts)}. {RANGE_NOTE}")
    else:
        sentences.append("Too few trials went on for a rank correlation between rungs.")
    return sentences


def tabulate_rungs(summary: RungSummary) -> list[list[str]]:
    """Returns a header and a line for each rung."""
    header = ["rung", "trials", "updates", "seconds", "ranks, next rung", "ranks, full value"]
    return [header] + [
        [
            line.name,
            str(line.trials),
            f"{line.updates:,}",
            f"{line.seconds:,.1f}",
            str(line.next_rung or ""),
            str(line.full or ""),
        ]
        for line in summary.lines
    ]


def list_rung_columns(plan: SearchPlan) -> list[str]:
    """Returns the columns that rungs add to ``trials.csv``."""
    rungs = plan.search.list_rungs()
    if not rungs:
        return []
    at_rungs = []
    for rung, fraction in enumerate(rungs[:-1]):
        kind, _, name = name_rung_value(plan.search, rung).partition("/")
        at_rungs.append(f"{kind}.{name}" if fraction == SCREEN else f"{kind}.{fraction:g}.{name}")
    return ["rung", *at_rungs, "updates", "seconds"]


def name_rung_value(search: SearchSpec, rung: int) -> str:
    """Returns the name of the values that trials are compared by at a rung: ``screen/ridge``,
    ``rung/score``."""
    if rung == 0 and search.screen is not None:
        return f"screen/{search.screen.by}"
    return f"rung/{metric_name(search.objectives[0])}"


def list_rung_cells(
    plan: SearchPlan, trial: Trial, cost: TrialCost | None
) -> dict[str, str | float | int]:
    """Returns what ``trials.csv`` says of one trial: the rung that it was evaluated up to, its
    values there, and its cost."""
    rungs = plan.search.list_rungs()
    if not rungs:
        return {}
    columns = list_rung_columns(plan)
    cells: dict[str, str | float | int] = dict(zip(columns[1:-2], trial.rung_values, strict=False))
    reached = len(trial.rung_values) + bool(trial.metrics)
    if reached:
        cells["rung"] = rungs[reached - 1]
    if cost is not None:
        cells |= {"updates": cost.updates, "seconds": round(cost.seconds, 3)}
    return cells


def _read_seconds(plan: SearchPlan, trial: Trial, store: Store) -> list[float]:
    """Returns the seconds of each rung that a trial was evaluated up to."""
    seconds = []
    for rung in range(trial.rung + 1):
        keys = plan.rung_evaluations(trial.proposal, trial.number, rung)
        if not all(store.is_complete("evaluate", key) for key in keys):
            break
        facts = [store.manifest("evaluate", key).get("seconds", {}) for key in keys]
        seconds.append(float(sum(sum(item.values()) for item in facts)))
    return seconds


def _list_values(trial: Trial) -> list[float]:
    """Returns the values of a trial at its rungs, and the full one where there is one."""
    full = trial.result.values if trial.result is not None else ()
    return [*trial.rung_values, *full]


def _correlate(values: Sequence[Sequence[float]], one: int, other: int) -> RankCorrelation | None:
    if one >= other:
        return None
    both = [(of_trial[one], of_trial[other]) for of_trial in values if len(of_trial) > other]
    return correlate_ranks([pair[0] for pair in both], [pair[1] for pair in both])


def _add_up(plan: SearchPlan, seconds: Sequence[float]) -> TrialCost:
    return TrialCost(plan.count_updates(len(seconds) - 1) if seconds else 0, sum(seconds))
