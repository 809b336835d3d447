"""Fields of a search that keep its cost low: rungs, and proposals that wait for no result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from speechft_ray.core.spec_base import RenamedSpec


class RungSpec(RenamedSpec):
    """None of them by default."""

    later_fields: ClassVar[Sequence[str]] = ("rungs", "reduction_factor", "random_share")

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
