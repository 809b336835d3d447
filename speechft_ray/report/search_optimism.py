"""The optimism of a search, from what the store has of its trials."""

from __future__ import annotations

from collections.abc import Sequence

from speechft_ray.core.objectives import DISTANCE, SCORE, higher_is_better, metric_name
from speechft_ray.core.store import Store
from speechft_ray.report.effects import weigh_metrics
from speechft_ray.report.intervals import read_evaluation_counts
from speechft_ray.report.optimism import Optimism, estimate_optimism
from speechft_ray.search.plan import SearchPlan
from speechft_ray.search.trials import Trial, TrialEvaluator


def measure_optimism(
    plan: SearchPlan, trials: Sequence[Trial], evaluator: TrialEvaluator | None, store: Store
) -> Optimism | None:
    """Returns how much better than it is the winner of a search looks on dev, for one objective.

    The candidates are the distinct merges that were evaluated in full and keep the constraints.
    ``None`` for several objectives or the distance, and where a task has no counts by utterance or
    its evaluations are older than these.
    """
    names = list(map(metric_name, plan.search.objectives))
    if evaluator is None or len(names) > 1 or names == [DISTANCE]:
        return None
    weights = (
        weigh_metrics(evaluator.references)
        if names == [SCORE]
        else {names[0]: 1.0 if higher_is_better(names[0]) else -1.0}
    )
    candidates = [trial for trial in trials if trial.feasible and trial.repeats is None]
    counts = [
        [
            read_evaluation_counts(
                store, plan.evaluation(trial.proposal, trial.number, task), task.name
            )
            for task in plan.tasks
        ]
        for trial in candidates
    ]
    return estimate_optimism(counts, weights)
