"""The greedy soup as a sampler (Model soups, arXiv 2203.05482, recipe 1).

Single models are proposed first, then means to which the next model is added.

Models are sorted by their own value on dev; each in turn is added and kept if the mean of the kept
ones is then strictly better, as in the published code.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import JsonValue

from speechft_ray.core.chains import Tuning
from speechft_ray.core.merge_spec import MergeSpec
from speechft_ray.core.objectives import higher_is_better, metric_name
from speechft_ray.core.specs import SearchSpec
from speechft_ray.search.proposals import Proposal, SearchSpace, TrialResult


class GreedySoup:
    """Proposes each fine-tuned model alone, all at once, and then one mean after the other."""

    def __init__(self, search: SearchSpec, space: SearchSpace) -> None:
        names = space.axes.donors.names()
        self._ingredients = [
            pair for name in names for pair in space.runs if pair[0].spec.name == name
        ]
        self._merge = MergeSpec(
            method=space.axes.methods()[0], params=_params(space), alpha=space.axes.alpha.options[0]
        )
        self._sign = 1.0 if higher_is_better(metric_name(search.objectives[0])) else -1.0
        self._singles: list[tuple[float, int]] = []
        self._left: list[int] | None = None
        self._kept: list[int] = []
        self._best = 0.0
        self._asked = 0

    def needs(self, number: int) -> int:
        """Nothing while single models are asked for, then everything before."""
        return 0 if number < len(self._ingredients) else number

    def ask(self) -> Proposal | None:
        """Returns the next single model or the next mean; ``None`` when no model is left to add."""
        self._asked += 1
        if self._asked <= len(self._ingredients):
            return self._soup([self._asked - 1])
        if self._left is None:
            ranked = sorted(self._singles, key=lambda item: (-item[0], item[1]))
            self._left = [place for _, place in ranked]
            self._kept, self._best = (self._left[:1], ranked[0][0]) if ranked else ([], 0.0)
            del self._left[:1]
        return self._soup([*self._kept, self._left[0]]) if self._left else None

    def tell(self, number: int, result: TrialResult) -> None:
        """Learns a value. A model that failed, was stopped or breaks a constraint is never
        added."""
        fine = result.state == "complete" and all(violation <= 0 for violation in result.violations)
        gain = self._sign * result.values[0] if fine else float("-inf")
        if number < len(self._ingredients):
            self._singles += [(gain, number)] if fine else []
            return
        if self._left:
            added = self._left.pop(0)
            if gain > self._best:
                self._kept.append(added)
                self._best = gain

    def draw_ahead(self, number: int) -> Proposal | None:
        """Nothing: the single models start at once, and the means depend on results."""
        return None

    def _soup(self, places: Sequence[int]) -> Proposal:
        donors: tuple[tuple[Tuning, str], ...] = tuple(
            self._ingredients[place] for place in sorted(places)
        )
        values = {"models": "+".join(str(place) for place in sorted(places))}
        return Proposal(values=values, merge=self._merge, donors=donors)


def _params(space: SearchSpace) -> dict[str, JsonValue]:
    method = space.axes.methods()[0]
    return {name: axis.options[0] for name, axis in space.axes.params.get(method, {}).items()}
