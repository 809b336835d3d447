"""Rungs: which trials go on, decided by number, so that what ended when has no influence.

ASHA's rule (arXiv 1810.05934, algorithm 2): of the trials that reached a rung, the best of every
``reduction_factor`` go on. There, a trial is compared with those that happen to be evaluated by
then. Here, trial k is compared with exactly the trials 0 to k + ``lookahead`` that reached the
rung, once all of these are known; it is decided once. A trial that waits has its probes saved, and
the workers go on with other trials. The trials after k are among the ``max_concurrent`` that may
run at the same time, so that no decision waits for a proposal that waits for it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

from speechft_ray.core.objectives import higher_is_better, metric_name
from speechft_ray.core.rung_spec import SCREEN
from speechft_ray.core.specs import EvalSpec, SearchSpec
from speechft_ray.search.trials import Trial


def find_pause(task: EvalSpec, rung: float) -> int:
    """Returns the update of a task at which a rung pauses its training: at least 1, and 0 for a
    screen."""
    return 0 if rung == SCREEN else max(1, round(rung * task.updates))


def count_lookahead(search: SearchSpec) -> int:
    """Returns how many trials after it a trial is compared with at each rung.

    A trial of the last rung waits for so many later ones at each rung before, and they wait for
    later ones in turn; all of them are among the ``max_concurrent`` trials that may run at once.
    """
    return (search.concurrency() - 1) // max(1, len(search.list_rungs()) - 1)


def expect_trials(search: SearchSpec) -> list[int]:
    """Returns how many trials reach each rung where values come in random order; a sampler that
    improves sends more on."""
    counts, lookahead = [float(search.trials)], count_lookahead(search)
    for rung in range(len(search.list_rungs()) - 1):
        reached = round(counts[-1])
        ahead = round(lookahead * reached / search.trials)
        sizes = [min(reached, 1 + number + ahead) for number in range(reached)]
        shares = [_count_promoted(size, search, rung) / size for size in sizes]
        counts.append(min(counts[-1], max(1.0, sum(shares))))
    return [round(count) for count in counts]


def _count_promoted(size: int, search: SearchSpec, rung: int) -> int:
    """Returns how many of so many trials of a rung go on: at least the best one."""
    return max(1, size // search.find_reduction_factor(rung))


class Rungs:
    """The decisions of one search. Call ``decide`` whenever a value of a rung is known or a trial
    ended."""

    def __init__(self, search: SearchSpec) -> None:
        self._search = search
        self._lookahead = count_lookahead(search)
        decisions = max(0, len(search.list_rungs()) - 1)
        self._ranked: list[list[tuple[float, int]]] = [[] for _ in range(decisions)]
        """By rung: minus the gain, and the number, of each trial by now; the best first."""
        self._settled = [0] * decisions
        """By rung: so many trials from 0 on have a value there, or never will."""
        self._goes_on: list[dict[int, bool]] = [{} for _ in range(decisions)]
        best_is_high = higher_is_better(metric_name(search.objectives[0]))
        self._sign = 1.0 if best_is_high else -1.0

    def decide(self, trials: Sequence[Trial]) -> list[tuple[Trial, bool]]:
        """Returns the decisions that can be made now, each once: a trial and whether it goes on
        to its next rung. ``trials``: all by now, in order."""
        decisions: list[tuple[Trial, bool]] = []
        for rung in range(len(self._settled)):
            while self._settled[rung] < len(trials) and _is_settled(
                trials[self._settled[rung]], rung
            ):
                number = self._settled[rung]
                self._settled[rung] += 1
                self._rank(trials[number], rung)
                is_last = self._settled[rung] == self._search.trials
                last = number if is_last else number - self._lookahead
                for decided in range(max(0, number - self._lookahead), last + 1):
                    if len(trials[decided].rung_values) > rung:
                        decisions.append((trials[decided], self._decide(trials[decided], rung)))
        return decisions

    def _rank(self, trial: Trial, rung: int) -> None:
        """Adds a trial that reached the rung; a repeated merge counts once."""
        if trial.repeats is None and len(trial.rung_values) > rung:
            insort(self._ranked[rung], (-self._sign * trial.rung_values[rung], trial.number))

    def _decide(self, trial: Trial, rung: int) -> bool:
        """A repeated merge goes as far as its first trial, whose evaluations it shares."""
        if trial.repeats is not None:
            return self._goes_on[rung].get(trial.repeats, False)
        ranked = self._ranked[rung]
        place = bisect_left(ranked, (-self._sign * trial.rung_values[rung], trial.number))
        goes_on = place < _count_promoted(len(ranked), self._search, rung)
        self._goes_on[rung][trial.number] = goes_on
        return goes_on


def _is_settled(trial: Trial, rung: int) -> bool:
    return len(trial.rung_values) > rung or trial.state in ("pruned", "failed")
