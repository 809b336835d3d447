"""Summarises a search: trials as rows and as CSV, the result in sentences, what pruning saved."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from speechft_ray.core.metrics import METRICS
from speechft_ray.core.objectives import DISTANCE, SCORE, higher_is_better, metric_name
from speechft_ray.core.store import Store
from speechft_ray.report.optimism import Optimism
from speechft_ray.report.rungs import (
    RungSummary,
    describe_rungs,
    list_rung_cells,
    list_rung_columns,
    name_rung_value,
)
from speechft_ray.search.plan import SearchPlan
from speechft_ray.search.trials import Trial, TrialEvaluator
from speechft_ray.sweep.fields import list_merge_fields
from speechft_ray.sweep.protocols import EncoderRow
from speechft_ray.sweep.titles import Params, format_value, name_param


@dataclass(frozen=True, kw_only=True)
class SearchResults:
    """The results of a search that a report shows."""

    plan: SearchPlan
    evaluator: TrialEvaluator | None
    """``None`` while the controls are not evaluated yet."""
    trials: Sequence[Trial]
    chosen: Sequence[Trial]
    """Best first; the first is the winner."""
    saved: tuple[int, float] = (0, 0.0)
    """Evaluations that early stops saved, and their seconds on one worker."""
    optimism: Optimism | None = None
    """Of the winner's dev value; ``None`` for several objectives, and without counts on dev."""
    test: Mapping[str, float] = field(default_factory=dict)
    """Metrics and score of the winner on test; empty before it is evaluated there."""
    rungs: RungSummary | None = None
    """``None`` for a search without rungs."""
    importances: Mapping[str, float] = field(default_factory=dict)
    """Importance of each axis; empty for too few trials."""
    untuned: Mapping[str, str] = field(default_factory=dict)
    """Why a merge cannot win though it is the best on dev, by the key of its trial: its fine-tuning
    changed nothing (``EncoderRow.untuned``)."""


LOGGED_STATES = {"pruned": "stopped"}
"""States that trackers log under another word: MLflow cannot change the param of a stored run."""


def make_trial_row(plan: SearchPlan, trial: Trial, evaluator: TrialEvaluator) -> EncoderRow:
    """Returns one trial as a row: its drawn values, state and dev metrics; it has no test
    metrics."""
    values = {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in trial.proposal.values.items()
    }
    reached = len(trial.rung_values) + bool(trial.metrics)
    rungs = plan.search.list_rungs()
    has_rungs = bool(rungs and reached)
    params: Params = {
        "trial": trial.number,
        "state": LOGGED_STATES.get(trial.state, trial.state),
        "method": trial.proposal.merge.method,
        **values,
        **({"rung": rungs[reached - 1]} if has_rungs else {}),
    }
    extra = {name: value for name, value in trial.metrics.items() if name == DISTANCE}
    if has_rungs:
        extra["rung/updates"] = float(plan.count_updates(reached - 1))
    curve = [
        (plan.count_updates(rung), {name_rung_value(plan.search, rung): value})
        for rung, value in enumerate(trial.rung_values)
    ]
    dev = {name: value for name, value in trial.metrics.items() if name != DISTANCE}
    scored = {item.label for item in plan.spec.evaluate if item.in_score}
    evaluated = trial.state == "complete" and scored <= {item.label for item in plan.tasks}
    if evaluated and evaluator.references:
        dev[SCORE] = evaluator.value(SCORE, trial.metrics)
    return EncoderRow(
        key=f"{trial.key}.{trial.number}",
        title=f"trial {trial.number}",
        params=params,
        dev=dev,
        extra=extra,
        curve=curve,
        complete=True,
        unscored=tuple(evaluator.unscored) if evaluated else (),
        fields=list_merge_fields(plan.recipe(trial.proposal), plan.jobs),
    )


def count_saved_evaluations(
    plan: SearchPlan, trials: Sequence[Trial], store: Store
) -> tuple[int, float]:
    """Returns how many evaluations early stops saved, and their seconds at the mean duration of
    the complete ones of the same task.

    Evaluations that an idle worker made ahead, before the trial was stopped, are not saved.
    """
    count, seconds = 0, 0.0
    if plan.search.list_rungs():  # what these save is told by ``report.rungs``
        return count, seconds
    for place, task in enumerate(plan.tasks):
        keys = {plan.evaluation(trial.proposal, trial.number, task): trial for trial in trials}
        complete = [key for key in keys if store.is_complete("evaluate", key)]
        missing = sum(
            trial.state == "pruned" and trial.tasks <= place
            for key, trial in keys.items()
            if key not in set(complete)
        )
        if missing:
            facts = [store.manifest("evaluate", key).get("seconds", {}) for key in complete]
            seconds += missing * statistics.fmean([sum(item.values()) for item in facts] or [0.0])
            count += missing
    return count, seconds


def search_sentences(results: SearchResults) -> list[str]:
    """Returns the result of a search and its cost, in plain sentences."""
    plan, trials = results.plan, results.trials
    counts = {
        state: sum(trial.state == state for trial in trials)
        for state in ("complete", "pruned", "failed", "running")
    }
    stopped = "stopped at a rung" if plan.search.list_rungs() else "stopped early"
    words = {"pruned": stopped, "failed": "failed", "running": "not finished"}
    repeats = sum(trial.repeats is not None for trial in trials)
    parts = [f"{counts['complete']} evaluated in full"]
    parts += [f"{counts[state]} {text}" for state, text in words.items() if counts[state]]
    parts += [f"{repeats} repeated an earlier one and cost nothing"] if repeats else []
    proposals = f"{len(trials)} of {plan.search.trials} proposals ({plan.search.sampler})"
    sentences = [f"{proposals}: {', '.join(parts)}."]
    saved, seconds = results.saved
    if saved:
        sentences.append(
            f"Early stops saved {saved} of {len(trials) * len(plan.tasks)} evaluations, "
            f"about {seconds / 60:.1f} minutes of one worker."
        )
    if results.rungs is not None:
        sentences += describe_rungs(results.rungs)
    if results.chosen and results.evaluator:
        sentences.append(_winner_sentence(results, results.evaluator))
        sentences += _optimism_sentences(results)
    elif not counts["running"]:
        sentences.append("No proposal could be evaluated, so none was chosen.")
    return sentences


def _winner_sentence(results: SearchResults, evaluator: TrialEvaluator) -> str:
    best = results.chosen[0]
    names = [metric_name(name) for name in results.plan.search.objectives]
    values = best.result.values if best.result else ()
    objectives = ", ".join(
        f"{objective_title(name)} {format_objective(name, value)}"
        for name, value in zip(names, values, strict=True)
    )
    pretrained = ""
    if names == [SCORE] and evaluator.pretrained:
        score = evaluator.value(SCORE, evaluator.pretrained)
        pretrained = f" (pre-trained {format_objective(SCORE, score)})"
    front = f"; {len(results.chosen)} merges are on the Pareto front" if len(names) > 1 else ""
    broken = (
        "" if best.feasible else " No proposal keeps every constraint; this one breaks them least."
    )
    merge = f"trial {best.number}, {describe_trial(best)}, with {objectives}{pretrained}{front}"
    if note := results.untuned.get(best.key):
        return f"Best on dev: {merge}. It cannot be chosen; {note}.{broken}"
    return f"Chosen on dev: {merge}.{broken}"


def _optimism_sentences(results: SearchResults) -> list[str]:
    """Says what the selection does to the winner's dev value, with test beside it."""
    best = results.chosen[0]
    name = metric_name(results.plan.search.objectives[0])
    if results.optimism is None or best.result is None or len(best.result.values) != 1:
        return []
    count, excess = results.optimism
    value = best.result.values[0]
    corrected = value - excess if higher_is_better(name) else value + excess
    unit = " points" if name == SCORE else ""
    text = (
        f"Selection on dev: the best of {count} merges is expected to look "
        f"{format_objective(name, excess)}{unit} better than it is (bootstrap over dev "
        f"utterances); without that its {objective_title(name)} is "
        f"{format_objective(name, corrected)}."
    )
    if results.plan.search.list_rungs():
        text += " That they passed the rungs on the same utterances adds to it and is not counted."
    if name in results.test:
        text += f" On test it has {format_objective(name, results.test[name])}."
    return [text]


def describe_trial(trial: Trial) -> str:
    """Returns the merge of a trial as text, for example ``ties, alpha 0.31, density 0.2``."""
    merge = trial.proposal.merge
    values = [
        f"{name_param(name).removeprefix(f'{merge.method}.')} "
        f"{format_value(round(value, 4) if isinstance(value, float) else value)}"
        for name, value in trial.proposal.values.items()
        if name != "method"
    ]
    return ", ".join([merge.method, *values[:6], *(["..."] if len(values) > 6 else [])])


def objective_title(name: str) -> str:
    """Returns the title of an objective."""
    return {SCORE: "dev score", DISTANCE: "distance"}.get(name) or f"dev {METRICS[name].title}"


def format_objective(name: str, value: float) -> str:
    """Returns the value of an objective as text."""
    if name in METRICS:
        return METRICS[name].format(value)
    return f"{value:.4f}" if name == DISTANCE else f"{value:.2f}"


def trials_csv(results: SearchResults) -> str:
    """Returns all trials as CSV, unrounded: number, state, the trial that it repeats, drawn values,
    rungs, objectives, dev metrics, error."""
    trials, objectives = results.trials, list(map(metric_name, results.plan.search.objectives))
    drawn = list(dict.fromkeys(name for trial in trials for name in trial.proposal.values))
    metrics = list(dict.fromkeys(name for trial in trials for name in trial.metrics))
    chosen = {trial.number for trial in results.chosen}
    constraints = [f"violation.{item.metric}" for item in results.plan.search.constraints]
    titles = [f"objective.{name}" for name in objectives]
    rungs = list_rung_columns(results.plan)
    costs = results.rungs.costs if results.rungs is not None else [None] * len(trials)
    header = ["trial", "state", "repeats", "chosen", *drawn, *rungs, *titles, *constraints]
    header += [*(f"dev.{name}" for name in metrics), "encoder", "error"]
    text = io.StringIO()
    out = csv.DictWriter(text, header, lineterminator="\n")
    out.writeheader()
    for trial, cost in zip(trials, costs, strict=True):
        values = trial.result.values if trial.result else ()
        violations = trial.result.violations if trial.result else ()
        out.writerow(
            {
                "trial": trial.number,
                "state": trial.state,
                "repeats": "" if trial.repeats is None else trial.repeats,
                "chosen": int(trial.number in chosen),
                **trial.proposal.values,
                **list_rung_cells(results.plan, trial, cost),
                **dict(zip(titles, values, strict=False)),
                **dict(zip(constraints, violations, strict=False)),
                **{f"dev.{name}": value for name, value in trial.metrics.items()},
                "encoder": trial.key,
                "error": trial.error or "",
            }
        )
    return text.getvalue()
