"""Fields of a search that keep its cost low: a screen, rungs, and proposals that wait for no
result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from speechft_ray.core.spec_base import RenamedSpec, Spec

SCREEN = 0.0
"""The rung of a screen: encoders are compared there after no update."""


SCREEN_FACT = "screen"
"""Kind of a unit that screens an encoder, and the name of the screens in its facts."""


class ScreenSpec(Spec):
    """How encoders are compared without training, before the first update of a probe."""

    by: Literal["ridge", "nearest_mean", "abx"]
    """Accuracy on dev at the best layer: of a classifier in closed form on means over frames
    (``superb.screening``), or of ABX discrimination of phones on frames (``superb.abx``)."""
    tasks: tuple[str, ...] = ()
    """Evaluations with one label per utterance, or for ``abx`` phone recognition with an alignment;
    the value is the mean of their accuracies. Empty: all that the objective has."""
    reduction_factor: Annotated[int, Field(ge=2)] = 2
    """One of so many trials goes on: fewer stop than at a rung, since a screen is no score."""


class RungSpec(RenamedSpec):
    """None of them by default."""

    later_fields: ClassVar[Sequence[str]] = ("rungs", "reduction_factor", "random_share", "screen")

    rungs: tuple[float, ...] = ()
    """Fractions of each task's updates, ascending to 1. At each, trials are compared on dev, and
    the better part goes on from its saved probes (ASHA, arXiv 1810.05934; ``search.rungs``). Empty:
    no rungs."""
    reduction_factor: Annotated[int, Field(ge=2)] = 4
    """With ``rungs``: one of so many trials goes on at each rung (Ray Tune's default)."""
    random_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the proposals that are drawn at random, whatever was measured, spread evenly over
    the numbers. Workers that would be idle, since the next proposal waits for a result, evaluate
    them ahead (SMAC draws every fifth at random). 0: none."""
    screen: ScreenSpec | None = None
    """Trials are screened without training, and the better part is evaluated at the first rung, or
    in full where there are no ``rungs``. ``None``: no screen."""

    def list_rungs(self) -> tuple[float, ...]:
        """Returns all rungs as fractions of the updates: ``SCREEN`` where there is one, then
        ``rungs``, up to 1. Empty for a search without either."""
        if self.screen is None:
            return self.rungs
        return (SCREEN, *(self.rungs or (1.0,)))

    def find_reduction_factor(self, rung: int) -> int:
        """Returns the reduction factor at one of ``list_rungs``."""
        if self.screen is not None and rung == 0:
            return self.screen.reduction_factor
        return self.reduction_factor
