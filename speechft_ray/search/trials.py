"""Evaluates the trials of a search on dev: objectives, constraints, pruning and the selection."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from speechft_ray.core.errors import UserError
from speechft_ray.core.metrics import metric
from speechft_ray.core.objectives import SCORE, higher_is_better, metric_name
from speechft_ray.core.score import Reference, superb_score
from speechft_ray.core.specs import EvalSpec, SearchSpec
from speechft_ray.search.proposals import Proposal, TrialResult

MEDIAN_OF = 5
"""Trials that the median rule needs for a comparison (Optuna's MedianPruner: 5)."""

State = Literal["running", "complete", "pruned", "failed"]


@dataclass(frozen=True, kw_only=True)
class PruningBaseline:
    """What a running trial is compared with: trials that were reported before it was proposed."""

    best: float | None = None
    """Best score of a trial that keeps the constraints."""
    best_share: Mapping[str, float] = field(default_factory=dict)
    """By task: the best share of any trial and of the pre-trained encoder."""
    steps: Sequence[Sequence[float]] = ()
    """``steps`` of the reported trials."""


@dataclass(kw_only=True)
class Trial:
    """One proposal and its state."""

    number: int
    proposal: Proposal
    key: str
    """Fingerprint of the merged encoder."""
    baseline: PruningBaseline
    repeats: int | None = None
    """Number of the first trial with the same merged encoder, whose evaluations answer this one."""
    state: State = "running"
    metrics: dict[str, float] = field(default_factory=dict)
    """Dev metrics by metric name, and ``distance``."""
    tasks: int = 0
    """Number of finished evaluations."""
    rung: int = 0
    """The rung that it is evaluated up to; in a search with rungs, ``metrics`` are those of the
    last one."""
    rung_metrics: list[dict[str, float]] = field(default_factory=list)
    """Dev metrics at each rung before the last that it reached; at a screen, the screens."""
    rung_values: list[float] = field(default_factory=list)
    """The objective there, over the tasks that are compared at rungs; at a screen, the mean
    accuracy in percent, or the error where less of the objective is better."""
    error: str | None = None
    result: TrialResult | None = None
    """Set once the trial ended and the references of the score are known."""

    @property
    def feasible(self) -> bool:
        """Whether it was evaluated in full and keeps every constraint."""
        return (
            self.result is not None
            and self.result.state == "complete"
            and all(v <= 0 for v in self.result.violations)
        )


@dataclass(frozen=True, kw_only=True)
class TrialEvaluator:
    """Evaluates the trials of one search.

    ``references`` are those of the score on dev, ``pretrained`` the dev metrics of the pre-trained
    encoder.
    """

    search: SearchSpec
    tasks: Sequence[EvalSpec]
    references: Mapping[str, Reference]
    pretrained: Mapping[str, float]
    unscored: Sequence[str] = ()
    """Why metrics are not part of the score, one sentence each."""

    def check_score(self) -> None:
        """Raises ``UserError`` where an objective or a constraint needs the score and the
        pre-trained encoder has none."""
        names = (*self.search.objectives, *(item.metric for item in self.search.constraints))
        if SCORE in map(metric_name, names) and SCORE not in self.pretrained:
            raise UserError(
                f"this search selects by the score, but there is none. {' '.join(self.unscored)} "
                "Name metrics under `search.objectives` instead."
            )

    def compute_result(self, trial: Trial) -> TrialResult:
        """Returns the result of an ended trial; a value that is not finite makes it failed."""
        if trial.state == "failed":
            return TrialResult("failed")
        if trial.state == "pruned":
            return TrialResult("pruned", steps=trial.rung_values or self.steps(trial))
        values = [
            self.value(name, trial.metrics) for name in map(metric_name, self.search.objectives)
        ]
        violations = [
            self._violation(item.metric, item.no_worse_than, trial.metrics)
            for item in self.search.constraints
        ]
        if not all(map(math.isfinite, [*values, *violations])):
            return TrialResult("failed")
        steps = trial.rung_values or self.steps(trial)
        return TrialResult("complete", values, violations, steps)

    def rung_value(self, metrics: Mapping[str, float], rung: int) -> float:
        """Returns what trials are compared by at a rung: the objective, where that is the score
        over the tasks that are measured there, and at a screen the mean over its tasks; NaN where
        nothing is measured."""
        if rung == 0 and (screen := self.search.screen) is not None:
            names = [name for name in metrics if name.partition(".")[0] == screen.by]
            accuracy = statistics.fmean(metrics[name] for name in names)
            is_score = higher_is_better(metric_name(self.search.objectives[0]))
            return accuracy if is_score else 100 - accuracy
        (name,) = map(metric_name, self.search.objectives)
        if name != SCORE:
            return metrics.get(name, math.nan)
        shares = list(self.shares(metrics).values())
        return 1000 * statistics.fmean(shares) if shares else math.nan

    def value(self, name: str, metrics: Mapping[str, float]) -> float:
        """Returns the value of an objective or a constrained metric; NaN where it was not
        measured, and for the score where no metric can be scored."""
        if name == SCORE and self.references:
            scored = {key: metrics.get(key, math.nan) for key in self.references}
            return superb_score(scored, self.references)
        return metrics.get(name, math.nan)

    def steps(self, trial: Trial) -> list[float]:
        """Returns the mean share, in points of the score, over the first 1, 2, ... tasks that are
        in."""
        if self.search.pruning_rule() == "none":
            return []
        shares = self.shares(trial.metrics)
        names = list(
            dict.fromkeys(item.label for item in self.tasks[: trial.tasks] if item.label in shares)
        )
        return [
            1000 * statistics.fmean(shares[name] for name in names[: index + 1])
            for index in range(len(names))
        ]

    def shares(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Returns the share of the way from 0 to 1 of the score, by task."""
        shares: dict[str, list[float]] = {}
        for name, value in metrics.items():
            if name in self.references:
                zero, one = self.references[name]
                shares.setdefault(metric(name).task, []).append((value - zero) / (one - zero))
        return {task: statistics.fmean(parts) for task, parts in shares.items()}

    def pruning_baseline(self, reported: Sequence[Trial]) -> PruningBaseline:
        """Returns what the next trial is compared with, given the reported trials."""
        if self.search.pruning_rule() == "none" or not reported:
            return PruningBaseline()
        best_share = self.shares(self.pretrained)
        for trial in reported:
            for task, share in self.shares(trial.metrics).items():
                best_share[task] = max(share, best_share.get(task, -math.inf))
        scores = [trial.result.values[0] for trial in reported if trial.feasible and trial.result]
        steps = [trial.result.steps for trial in reported if trial.result]
        return PruningBaseline(best=max(scores, default=None), best_share=best_share, steps=steps)

    def should_prune(self, trial: Trial) -> bool:
        """Whether a trial with some tasks still to come is stopped: it cannot reach the best, or is
        below the median."""
        rule, standard = self.search.pruning_rule(), trial.baseline
        if rule == "none" or trial.tasks == 0 or not self.references:
            return False
        if rule == "median":
            steps = self.steps(trial)
            others = [
                theirs[len(steps) - 1] for theirs in standard.steps if len(theirs) >= len(steps)
            ]
            if not steps or len(others) < MEDIAN_OF:  # none of the first tasks is in the score
                return False
            return steps[-1] + self.search.pruning_margin < statistics.median(others)
        reach = self._reach(trial)
        return (
            standard.best is not None
            and reach is not None
            and reach + self.search.pruning_margin < standard.best
        )

    def _reach(self, trial: Trial) -> float | None:
        """The score of a trial whose remaining tasks equal the best seen there."""
        scored = {metric(name).task for name in self.references}
        rest = {item.label for item in self.tasks[trial.tasks :]} & scored
        if not rest <= set(trial.baseline.best_share):
            return None
        shares = {
            task: share for task, share in self.shares(trial.metrics).items() if task not in rest
        }
        return 1000 * statistics.fmean(
            [*shares.values(), *(trial.baseline.best_share[task] for task in sorted(rest))]
        )

    def _violation(self, name: str, bound: str | float, metrics: Mapping[str, float]) -> float:
        name = metric_name(name)
        limit = self.value(name, self.pretrained) if isinstance(bound, str) else bound
        worse = limit - self.value(name, metrics)
        return worse if higher_is_better(name) else -worse

    def select_best(self, trials: Sequence[Trial]) -> list[Trial]:
        """Returns the trials that the search chose, best first: one, or with several objectives the
        Pareto front.

        The first of a front is the best in the first objective. Where nothing keeps the
        constraints, those count that break them least.
        """
        ended = [
            trial
            for trial in trials
            if trial.result is not None and trial.result.state == "complete"
        ]
        least = min((_total_violation(trial) for trial in ended), default=0.0)
        kept = [trial for trial in ended if _total_violation(trial) == least]
        unique = {trial.key: trial for trial in reversed(kept)}  # of repeats the first
        front = [
            trial
            for trial in unique.values()
            if not any(self._dominates(other, trial) for other in unique.values())
        ]
        ranked = sorted(
            front, key=lambda trial: ([-value for value in self._gains(trial)], trial.number)
        )
        return ranked if len(self.search.objectives) > 1 else ranked[:1]

    def _dominates(self, one: Trial, other: Trial) -> bool:
        ours, theirs = self._gains(one), self._gains(other)
        return all(a >= b for a, b in zip(ours, theirs, strict=True)) and ours != theirs

    def _gains(self, trial: Trial) -> list[float]:
        """Values of the objectives, all turned so that more is better."""
        values = trial.result.values if trial.result else ()
        return [
            value if higher_is_better(name) else -value
            for name, value in zip(map(metric_name, self.search.objectives), values, strict=True)
        ]


def find_best(trials: Sequence[Trial], evaluator: TrialEvaluator) -> Trial | None:
    """Returns the best trial so far, if one ended well."""
    return next(iter(evaluator.select_best(trials)), None)


def _total_violation(trial: Trial) -> float:
    return (
        sum(max(0.0, violation) for violation in trial.result.violations)
        if trial.result
        else math.inf
    )
