"""The learning curve of the probes of one evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch

from speechft_ray.core.metrics import is_better

CURVE_POINTS = 20
"""Evenly spaced points with the loss, besides those of the validations."""


class ProbeCurve:
    """Collects the points of a curve: means over the seeds of the learning rate that is best on dev
    at the latest validation, and of the first rate before there is one.

    A point has ``loss``, the mean since the point before, and at a validation the metrics of dev.
    ``show`` gets each point as it is added. Losses stay on their device between points.
    """

    def __init__(
        self,
        updates: int,
        seeds: int,
        metric: str,
        show: Callable[[int, Mapping[str, float]], None] = lambda update, values: None,
    ) -> None:
        """``metric`` selects the rate."""
        self.points: list[Any] = []
        """``[update, {name: value}]``, as JSON has them."""
        self._updates, self._seeds, self._metric, self._show = updates, seeds, metric, show
        self._sums: torch.Tensor | None = None  # (rates * seeds,), float64
        self._counts: torch.Tensor | None = None
        self._rate = 0

    def add_update(
        self,
        update: int,
        losses: torch.Tensor,
        dev: Sequence[Mapping[str, float]] | None = None,
    ) -> None:
        """Adds an update (from 1).

        ``losses`` ``(rates * seeds,)``: that of each probe, rate by rate; one that is not finite
        does not count, as that of a probe which is no longer trained. ``dev``: the metrics of each
        probe where this update validates; empty for a probe that does not.
        """
        finite = losses.isfinite()
        sums = losses.double().where(finite, 0.0)
        self._sums = sums if self._sums is None else self._sums + sums
        self._counts = finite.long() if self._counts is None else self._counts + finite
        if dev is None and update % max(1, self._updates // CURVE_POINTS):
            return
        if dev is not None:
            self._rate = self._select_rate(dev)
        means = self._select(torch.stack([self._sums, self._counts.double()], 1).tolist())
        counted = [total / count for total, count in means if count]
        values = {"loss": fmean(counted)} if counted else {}
        of_seeds = self._select(dev or [])
        for name in dict.fromkeys(name for metrics in of_seeds for name in metrics):
            values[name] = fmean(metrics[name] for metrics in of_seeds if name in metrics)
        self._sums = self._counts = None
        self.points.append([update, values])
        self._show(update, values)

    def make_state(self) -> dict[str, Any]:
        """Returns all that changes, as tensors and plain data."""
        sums = (self._sums, self._counts)
        return {"points": self.points, "sums": sums, "rate": self._rate}

    def load_state(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Takes over what ``make_state`` returned in an earlier attempt."""
        self.points, self._rate = list(state["points"]), int(state["rate"])
        self._sums, self._counts = (
            None if value is None else value.to(device) for value in state["sums"]
        )

    def _select(self, items: Sequence[Any]) -> Sequence[Any]:
        return items[self._rate * self._seeds : (self._rate + 1) * self._seeds]

    def _select_rate(self, dev: Sequence[Mapping[str, float]]) -> int:
        """Returns the rate with the best mean over the seeds that validated; the one before where
        none did."""
        best, best_mean = self._rate, None
        for rate in range(len(dev) // self._seeds):
            of_rate = dev[rate * self._seeds : (rate + 1) * self._seeds]
            values = [metrics[self._metric] for metrics in of_rate if self._metric in metrics]
            if values and (best_mean is None or is_better(self._metric, fmean(values), best_mean)):
                best, best_mean = rate, fmean(values)
        return best
