"""Optuna's ask and tell as a ``search.proposals.Proposer``.

The study is in memory and every run creates it again: the loop asks and tells in one fixed order,
so a sampler with one seed proposes the same merges. A resumed run reads nothing that Optuna wrote.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import Trial, TrialState

from speechft_ray.core.objectives import higher_is_better, metric_name
from speechft_ray.core.quiet import ignore_warning
from speechft_ray.core.specs import SearchSpec
from speechft_ray.search.optuna_samplers import open_sampler
from speechft_ray.search.proposals import Proposal, RandomSuggest, Suggest, TrialResult


class OptunaProposer:
    """Proposes with one of Optuna's samplers."""

    def __init__(self, search: SearchSpec, draw: Callable[[Suggest], Proposal]) -> None:
        """Raises ``UserError`` when the sampler needs a package that is not installed."""
        optuna.logging.set_verbosity(
            optuna.logging.ERROR
        )  # a line per trial, and advice that the docs give
        self._search, self._draw = search, draw
        ignore_experimental_warnings()
        self.study = optuna.create_study(
            directions=directions(search), sampler=open_sampler(search)
        )
        self._trials: list[Trial] = []

    def needs(self, number: int) -> int:
        """All but the last ``max_concurrent`` trials before it."""
        return max(0, number + 1 - self._search.concurrency())

    def ask(self) -> Proposal:
        """Returns the next proposal, given the reported results; other trials count as running."""
        ignore_experimental_warnings()
        drawn = self.draw_ahead(len(self._trials))
        if drawn is not None:  # the study has it in its place
            self.study.enqueue_trial(dict(drawn.values))
        trial = self.study.ask()
        self._trials.append(trial)
        return self._draw(_OptunaSuggest(trial))

    def draw_ahead(self, number: int) -> Proposal | None:
        """Returns a proposal of the random share, which is spread evenly over the numbers."""
        share = self._search.random_share
        if math.floor((number + 1) * share) == math.floor(number * share):
            return None
        return self._draw(RandomSuggest(self._search.seed, number))

    def tell(self, number: int, result: TrialResult) -> None:
        """Books a result: a failure as one, an early stop with the values that it had by then."""
        trial = self._trials[number]
        ignore_experimental_warnings()
        for index, violation in enumerate(result.violations):
            trial.set_constraint(f"{index} {self._search.constraints[index].metric}", violation)
        if len(self._search.objectives) == 1:  # several have no steps
            for step, value in enumerate(result.steps):
                trial.report(value, step)
        if result.state == "complete":
            self.study.tell(trial, list(result.values))
        else:
            self.study.tell(
                trial,
                state=TrialState.PRUNED if result.state == "pruned" else TrialState.FAIL,
            )


class _OptunaSuggest:
    """A trial as ``Suggest``."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial

    def number(self, name: str, low: float, high: float, log: bool) -> float:
        return self._trial.suggest_float(name, low, high, log=log)

    def choice(self, name: str, options: Sequence[Any]) -> Any:
        return self._trial.suggest_categorical(name, list(options))


def directions(search: SearchSpec) -> list[StudyDirection]:
    """Returns Optuna's direction of every objective."""
    ways = (StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE)
    return [ways[higher_is_better(metric_name(name))] for name in search.objectives]


def ignore_experimental_warnings() -> None:
    """Optuna calls half of what is used here experimental, which is no news to who runs a search.

    Called again before each use, also by the thread that writes the view.
    """
    ignore_warning(optuna.exceptions.ExperimentalWarning)
