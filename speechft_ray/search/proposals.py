"""From what a sampler draws to a merge: the axes of a search walked in a fixed order, each drawn
when it counts.

A parameter of a method is drawn only after that method was, so its name and range are the same
whenever it is drawn.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from speechft_ray.core.axes import Axes, Axis, field_values
from speechft_ray.core.chains import Tuning
from speechft_ray.core.merge_spec import MergeSpec

Value = str | float | int
Runs = Sequence[tuple[Tuning, str]]
"""Fine-tuning runs with their fingerprints."""


class Suggest(Protocol):
    """Draws the values of one proposal, each by name; the same name always comes with the same
    range or options."""

    def number(self, name: str, low: float, high: float, log: bool) -> float:
        """Draws a number from ``low`` to ``high``, evenly or on a log scale."""
        ...

    def choice(self, name: str, options: Sequence[Any]) -> Any:
        """Draws one of the options: texts, numbers or booleans."""
        ...


class TrialResult(NamedTuple):
    """The result of one proposal, measured on dev, as the proposer gets it."""

    state: Literal["complete", "pruned", "failed"]
    values: Sequence[float] = ()
    """One value per objective, in its own unit; of a complete proposal alone."""
    violations: Sequence[float] = ()
    """One number per constraint, above 0 where it is broken; of a complete proposal alone."""
    steps: Sequence[float] = ()
    """Mean share of the score over the first 1, 2, ... tasks, where an early stop compares them."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """One merge that a search wants to know about."""

    values: Mapping[str, Value]
    """What was drawn, by the dotted name of its axis: what pictures and tables of the search speak
    of."""
    merge: MergeSpec
    """Method, parameters and alpha."""
    donors: tuple[tuple[Tuning, str], ...]
    """The fine-tuning runs that take part, in the order of the spec."""


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Everything that a draw needs: the axes, the fine-tuning runs, and the number of encoder
    layers."""

    axes: Axes
    runs: Runs
    depth: int

    def draw(self, suggest: Suggest) -> Proposal:
        """Draws one proposal."""
        recorder = RecordingSuggest(suggest)
        alpha = self._value(self.axes.alpha, "alpha", recorder, ())
        method = str(self._value(self.axes.method, "method", recorder, ()))
        names = self._names(recorder)
        donors = tuple(self._run(name, recorder) for name in names)
        params = {
            name: self._value(axis, f"{method}.{name}", recorder, names)
            for name, axis in self.axes.params.get(method, {}).items()
        }
        merge = MergeSpec(method=method, params=params, alpha=alpha)
        return Proposal(values=recorder.values, merge=merge, donors=donors)

    def _names(self, recorder: RecordingSuggest) -> tuple[str, ...]:
        axis = self.axes.donors
        if axis.kind == "choice":
            labels = ["+".join(names) for names in axis.sets]
            return axis.sets[labels.index(str(recorder.choice("donors", labels)))]
        (names,) = axis.sets
        if axis.kind == "always":
            return names
        taken = tuple(name for name in names if recorder.choice(f"with.{name}", (True, False)))
        return taken or names[:1]

    def _run(self, name: str, recorder: RecordingSuggest) -> tuple[Tuning, str]:
        runs = [pair for pair in self.runs if pair[0].spec.name == name]
        for field in self.axes.run_fields:
            options = list(dict.fromkeys(field_values(run, (field,))[0] for run, _ in runs))
            if len(options) > 1:
                several = len(self.axes.donors.names()) > 1
                chosen = recorder.choice(f"{name}.{field}" if several else field, options)
                runs = [pair for pair in runs if field_values(pair[0], (field,))[0] == chosen]
        return runs[0]

    def _value(
        self, axis: Axis, name: str, recorder: RecordingSuggest, donors: Sequence[str]
    ) -> Any:
        log = axis.kind == "loguniform"
        if axis.kind == "fixed":
            return axis.options[0]
        if axis.kind == "choice":
            return recorder.choice(name, axis.options)
        if axis.kind in ("uniform", "loguniform"):
            return recorder.number(name, axis.low, axis.high, log)
        if axis.kind == "per_donor":
            return [
                recorder.number(f"{name}.{donor}", axis.low, axis.high, log) for donor in donors
            ]
        count = axis.knots if axis.kind == "curve" else self.depth
        values = [
            recorder.number(f"{name}.{index}", axis.low, axis.high, log) for index in range(count)
        ]
        return interpolate_curve(values, self.depth) if axis.kind == "curve" else values


class Proposer(Protocol):
    """Decides what a search tries next. The same results in the same order give the same
    proposals."""

    def needs(self, number: int) -> int:
        """Returns how many results must be reported before proposal ``number`` is asked for."""
        ...

    def ask(self) -> Proposal | None:
        """Returns the next ``Proposal``, or ``None`` when there is nothing more to try."""
        ...

    def tell(self, number: int, result: TrialResult) -> None:
        """Receives the result of a proposal; called in the order of trial numbers."""
        ...

    def draw_ahead(self, number: int) -> Proposal | None:
        """Returns what ``ask`` will return for a number that depends on no result; ``None`` for
        all others."""
        ...


def interpolate_curve(knots: Sequence[float], depth: int) -> list[float]:
    """Returns one value per layer: linear between knots spaced evenly from the first layer to the
    last."""
    values = []
    for layer in range(depth):
        place = layer * (len(knots) - 1) / max(1, depth - 1)
        left = min(int(place), len(knots) - 2)
        share = place - left
        values.append(knots[left] * (1.0 - share) + knots[left + 1] * share)
    return values


class ExtremeSuggest:
    """A ``Suggest`` that returns one end of every range and the forced options.

    ``met`` has every choice that was asked for, with its options.
    """

    def __init__(self, high: bool, forced: Mapping[str, Any]) -> None:
        self.high, self.forced = high, forced
        self.met: dict[str, Sequence[Any]] = {}

    def number(self, name: str, low: float, high: float, log: bool) -> float:
        """The low or the high end."""
        return high if self.high else low

    def choice(self, name: str, options: Sequence[Any]) -> Any:
        """The forced option, else the first."""
        self.met[name] = options
        return self.forced.get(name, options[0])


def extreme_points(space: SearchSpace) -> list[Proposal]:
    """Returns proposals in which every option of every choice occurs, with all ranges at their low
    and at their high ends.

    Checking these before anything is computed finds a range that leaves what a method can take.
    """
    proposals: list[Proposal] = []
    waiting: list[dict[str, Any]] = [{}]
    seen: set[tuple[str, str]] = set()
    while waiting:
        forced = waiting.pop(0)
        for high in (False, True):
            suggest = ExtremeSuggest(high, forced)
            proposals.append(space.draw(suggest))
            for name, options in suggest.met.items():
                for option in options:
                    if (name, repr(option)) not in seen:
                        seen.add((name, repr(option)))
                        waiting.append({**forced, name: option})
    return proposals


class RandomSuggest:
    """Draws evenly, by the seed of a search and the number of a proposal alone."""

    def __init__(self, seed: int, number: int) -> None:
        self._source = random.Random(f"{seed} {number}")

    def number(self, name: str, low: float, high: float, log: bool) -> float:
        """A number between the ends, evenly or on a log scale."""
        if log:
            drawn = math.exp(self._source.uniform(math.log(low), math.log(high)))
            return min(high, max(low, drawn))
        return self._source.uniform(low, high)

    def choice(self, name: str, options: Sequence[Any]) -> Any:
        """One of the options."""
        return options[self._source.randrange(len(options))]


class RecordingSuggest:
    """Passes draws on and keeps them by name."""

    def __init__(self, suggest: Suggest) -> None:
        self.suggest = suggest
        self.values: dict[str, Value] = {}

    def number(self, name: str, low: float, high: float, log: bool) -> float:
        self.values[name] = self.suggest.number(name, low, high, log)
        return float(self.values[name])

    def choice(self, name: str, options: Sequence[Any]) -> Any:
        chosen = self.suggest.choice(name, options)
        self.values[name] = chosen
        return chosen
