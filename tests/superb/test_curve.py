"""The learning curve of probes: against means computed by numpy, alone and stacked, and resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from speechft_ray.superb.curve import CURVE_POINTS, ProbeCurve

UPDATES, RATES, SEEDS, VALIDATES_EVERY = 120, 3, 2, 30


def make_losses() -> np.ndarray[Any, Any]:
    """Returns losses ``(updates, probes)``; some are not finite."""
    losses = np.random.default_rng(0).uniform(0.5, 4.0, (UPDATES, RATES * SEEDS)).astype(np.float32)
    losses[7, 1] = np.nan
    losses[100:, 4] = np.nan  # its patience has ended
    return losses


def make_dev(update: int) -> list[Mapping[str, float]]:
    """Returns dev metrics of each probe: rate 0 is best at first, rate 2 from update 60 on."""
    best = 0 if update < 60 else 2
    return [
        {}
        if update > 100 and probe == 4
        else {"pr.per": 10.0 * abs(probe // SEEDS - best) + probe, "other": float(update)}
        for probe in range(RATES * SEEDS)
    ]


def fill(curve: ProbeCurve, begin: int, end: int) -> None:
    losses = make_losses()
    for update in range(begin, end + 1):
        dev = make_dev(update) if update % VALIDATES_EVERY == 0 else None
        curve.add_update(update, torch.from_numpy(losses[update - 1]), dev)


def test_points_are_means_of_the_best_rate_since_the_point_before() -> None:
    shown: list[tuple[int, Mapping[str, float]]] = []
    curve = ProbeCurve(UPDATES, SEEDS, "pr.per", lambda *point: shown.append(point))
    fill(curve, 1, UPDATES)
    losses, before = make_losses().astype(np.float64), 0
    assert [update for update, _ in curve.points] == list(
        range(UPDATES // CURVE_POINTS, UPDATES + 1, UPDATES // CURVE_POINTS)
    )
    for update, values in curve.points:
        rate = 0 if update < 60 else 2
        seeds = slice(rate * SEEDS, (rate + 1) * SEEDS)
        means = [
            np.nanmean(column)
            for column in losses[before:update, seeds].T
            if np.isfinite(column).any()
        ]
        assert values["loss"] == pytest.approx(np.mean(means))
        if update % VALIDATES_EVERY == 0:
            of_seeds = [metrics["pr.per"] for metrics in make_dev(update)[seeds] if metrics]
            assert values["pr.per"] == pytest.approx(np.mean(of_seeds))
            assert values["other"] == update
        else:
            assert set(values) == {"loss"}
        before = update
    assert [list(point) for point in shown] == curve.points


@pytest.mark.parametrize("stop", [1, 30, 65])
def test_a_curve_goes_on_from_its_saved_state(stop: int) -> None:
    whole, first, second = (ProbeCurve(UPDATES, SEEDS, "pr.per") for _ in range(3))
    fill(whole, 1, UPDATES)
    fill(first, 1, stop)
    second.load_state(first.make_state(), torch.device("cpu"))
    fill(second, stop + 1, UPDATES)
    assert second.points == whole.points
