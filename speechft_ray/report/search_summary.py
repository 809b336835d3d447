"""A search in numbers and sentences: its trials as rows, its answer, what early stops saved."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from speechft_ray.core.metrics import METRICS
from speechft_ray.core.objectives import SCORE, metric_name
from speechft_ray.core.store import Store
from speechft_ray.report.summary import format_value
from speechft_ray.search.plan import SearchPlan
from speechft_ray.search.trials import Trial, TrialEvaluator
from speechft_ray.sweep.protocols import EncoderRow
from speechft_ray.sweep.titles import Params


@dataclass(frozen=True, kw_only=True)
class SearchResults:
    """What a report says of a search."""

    plan: SearchPlan
    evaluator: TrialEvaluator | None
    """``None`` while the controls are not evaluated yet."""
    trials: Sequence[Trial]
    chosen: Sequence[Trial]
    """Best first; the first is the winner."""
    saved: tuple[int, float] = (0, 0.0)
    """Evaluations and seconds of one worker that early stops saved."""
    importances: Mapping[str, float] = field(default_factory=dict)
    """By axis; empty for too few trials."""


LOGGED_STATES = {"pruned": "stopped"}
"""Words for trial states in MLflow where they differ from ours. A param of an MLflow run cannot be
changed, and runs that exist have this one."""


def make_trial_row(plan: SearchPlan, trial: Trial, evaluator: TrialEvaluator) -> EncoderRow:
    """Returns one trial as a row: what was drawn, its dev metrics, and how it ended. It has no test
    metric."""
    drawn = {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in trial.proposal.values.items()
    }
    params: Params = {
        "trial": trial.number,
        "state": LOGGED_STATES.get(trial.state, trial.state),
        "method": trial.proposal.merge.method,
        **drawn,
    }
    metrics = {
        name if name == "distance" else f"dev.{name}": value
        for name, value in trial.metrics.items()
    }
    if trial.state == "complete" and trial.tasks == len(plan.spec.evaluate):
        metrics["dev.score"] = evaluator.value(SCORE, trial.metrics)
    return EncoderRow(f"{trial.key}.{trial.number}", f"trial {trial.number}", params, metrics, True)


def count_saved_evaluations(
    plan: SearchPlan, trials: Sequence[Trial], store: Store
) -> tuple[int, float]:
    """Returns how many evaluations early stops saved, and their time at the mean of those of the
    same task that were made.

    What an idle worker had evaluated ahead when its trial was stopped is not saved.
    """
    count, seconds = 0, 0.0
    for place, task in enumerate(plan.tasks):
        keys = {plan.evaluation(trial.proposal, trial.number, task): trial for trial in trials}
        made = [key for key in keys if store.is_complete("evaluate", key)]
        missing = sum(
            trial.state == "pruned" and trial.tasks <= place
            for key, trial in keys.items()
            if key not in set(made)
        )
        if missing:
            facts = [store.manifest("evaluate", key).get("seconds", {}) for key in made]
            seconds += missing * statistics.fmean([sum(item.values()) for item in facts] or [0.0])
            count += missing
    return count, seconds


def search_sentences(findings: SearchResults) -> list[str]:
    """Returns the answer of a search and what it cost, in plain sentences."""
    plan, trials = findings.plan, findings.trials
    counts = {
        state: sum(trial.state == state for trial in trials)
        for state in ("complete", "pruned", "failed", "running")
    }
    repeated = sum(trial.repeats is not None for trial in trials)
    told = [f"{counts['complete']} evaluated in full"]
    told += [f"{counts[state]} {text}" for state, text in (("pruned", "stopped early"), ("failed", "failed"),
             ("running", "not finished")) if counts[state]]  # fmt: skip
    told += [f"{repeated} repeated an earlier one and cost nothing"] if repeated else []
    sentences = [
        f"{len(trials)} of {plan.search.trials} proposals ({plan.search.sampler}): {', '.join(told)}."
    ]
    saved, seconds = findings.saved
    if saved:
        whole = len(trials) * len(plan.tasks)
        sentences.append(
            f"Early stops saved {saved} of {whole} evaluations, about {seconds / 60:.1f} minutes of one worker."
        )
    if findings.chosen and findings.evaluator:
        sentences.append(_answer(findings, findings.evaluator))
    elif not counts["running"]:
        sentences.append("No proposal could be evaluated, so none was chosen.")
    return sentences


def _answer(findings: SearchResults, evaluator: TrialEvaluator) -> str:
    best = findings.chosen[0]
    names = [metric_name(name) for name in findings.plan.search.objectives]
    values = best.result.values if best.result else ()
    text = ", ".join(
        f"{objective_title(name)} {format_objective(name, value)}"
        for name, value in zip(names, values, strict=True)
    )
    front = f"; {len(findings.chosen)} merges are on the Pareto front" if len(names) > 1 else ""
    broken = (
        "" if best.feasible else " No proposal keeps every constraint; this one breaks them least."
    )
    zero = ""
    if names == [SCORE] and evaluator.pretrained:
        zero = f" (pre-trained {format_objective(SCORE, evaluator.value(SCORE, evaluator.pretrained))})"
    return f"Chosen on dev: trial {best.number}, {describe_trial(best)}, with {text}{zero}{front}.{broken}"


def describe_trial(trial: Trial) -> str:
    """Returns what a trial merged, for example ``ties, alpha 0.31, density 0.2``."""
    merge = trial.proposal.merge
    drawn = [
        f"{name.removeprefix(f'{merge.method}.')} {format_value(round(value, 4) if isinstance(value, float) else value)}"
        for name, value in trial.proposal.values.items()
        if name != "method"
    ]
    return ", ".join([merge.method, *drawn[:6], *(["..."] if len(drawn) > 6 else [])])


def objective_title(name: str) -> str:
    """Returns the title of an objective."""
    return {"score": "dev score", "distance": "distance"}.get(name) or f"dev {METRICS[name].title}"


def format_objective(name: str, value: float) -> str:
    """Returns a value as tables print it."""
    return (
        METRICS[name].format(value)
        if name in METRICS
        else f"{value:.4f}"
        if name == "distance"
        else f"{value:.2f}"
    )


def trials_csv(findings: SearchResults) -> str:
    """Returns every trial as CSV, unrounded: number, state, what it repeats, drawn values,
    objectives, dev metrics, error."""
    trials, names = findings.trials, list(map(metric_name, findings.plan.search.objectives))
    drawn = list(dict.fromkeys(name for trial in trials for name in trial.proposal.values))
    metrics = list(dict.fromkeys(name for trial in trials for name in trial.metrics))
    chosen = {trial.number for trial in findings.chosen}
    constraints = [f"violation.{item.metric}" for item in findings.plan.search.constraints]
    text = io.StringIO()
    header = [
        "trial",
        "state",
        "repeats",
        "chosen",
        *drawn,
        *(f"objective.{name}" for name in names),
        *constraints,
    ]
    out = csv.DictWriter(
        text,
        [*header, *(f"dev.{name}" for name in metrics), "encoder", "error"],
        lineterminator="\n",
    )
    out.writeheader()
    for trial in trials:
        values = trial.result.values if trial.result else ()
        violations = trial.result.violations if trial.result else ()
        out.writerow(
            {
                "trial": trial.number,
                "state": trial.state,
                "repeats": "" if trial.repeats is None else trial.repeats,
                "chosen": int(trial.number in chosen),
                **trial.proposal.values,
                **{f"objective.{name}": value for name, value in zip(names, values, strict=False)},
                **dict(zip(constraints, violations, strict=False)),
                **{f"dev.{name}": value for name, value in trial.metrics.items()},
                "encoder": trial.key,
                "error": trial.error or "",
            }
        )
    return text.getvalue()
