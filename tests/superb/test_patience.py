"""Training that ends after validations without improvement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from speechft_ray.commands.checks import check_names
from speechft_ray.core.errors import SweepError, UserError
from speechft_ray.superb.setup import check_patience
from speechft_ray.superb.stacked import train_stacked
from speechft_ray.superb.tasks.base import TASKS
from tests.superb.probe_helpers import (
    average_frames,
    noise_features,
    toy_data,
    toy_schedule,
    toy_spec,
    train_probe,
)
from tests.sweep.fakes import sweep

PLAN: dict[str, Any] = {"updates": 20, "validate_every_updates": 2}


def follow(qualities: Sequence[float], patience: int) -> tuple[int, int]:
    """Returns the validations, counted from 1, of the best value and of the end: a plain
    restatement of the rule."""
    best, waited = 1, 0
    for number, quality in enumerate(qualities, 1):
        if number == 1 or quality > qualities[best - 1]:
            best, waited = number, 0
        else:
            waited += 1
        if waited == patience:
            return best, number
    return best, len(qualities)


@pytest.mark.parametrize("patience", [1, 2, 3, 9])
@pytest.mark.parametrize("stacked", [False, True])
def test_training_ends_after_so_many_validations_without_improvement(
    patience: int, stacked: bool
) -> None:
    qualities = [1.0, 3.0, 2.0, 3.0, 4.0, 1.0, 1.0, 1.0, 9.0, 0.0]
    seen: list[float] = []

    def select(predictions: Sequence[Any], references: Sequence[Any]) -> float:
        seen.append(qualities[len(seen)])
        return seen[-1]

    data = replace(toy_data(), select=select)
    train, dev = (average_frames(noise_features(data, split)) for split in ("train", "dev"))
    plan = toy_schedule(**PLAN, patience=patience)
    counts: list[int] = []
    if stacked:
        ((probe,),) = train_stacked(data, train, dev, plan, [1e-2], 1, counts.append)
    else:
        probe = train_probe(data, train, dev, plan, 0)
    best, end = follow(qualities, patience)
    assert (probe.best_update, probe.last_update, len(seen)) == (2 * best, 2 * end, end)
    assert not stacked or sum(counts) == 20


def test_heads_that_are_trained_together_end_one_by_one() -> None:
    data = toy_data()
    train, dev = (
        average_frames(noise_features(data, split, hint=0.5)) for split in ("train", "dev")
    )
    plan, rates = toy_schedule(**PLAN | {"updates": 60}, patience=2), [1e-4, 1e-2, 1.0]
    together = train_stacked(data, train, dev, plan, rates, 2, lambda count: None)
    alone = [
        train_stacked(data, train, dev, plan, [rate], 2, lambda count: None)[0] for rate in rates
    ]
    ends = [probe.last_update for seeds in together for probe in seeds]
    assert len(set(ends)) > 1 and min(ends) < 60
    for seeds, expected in zip(together, alone, strict=True):
        for probe, other in zip(seeds, expected, strict=True):
            assert (probe.best_update, probe.last_update) == (
                other.best_update,
                other.last_update,
            )
            assert probe.dev == other.dev


def test_a_spec_without_patience_has_the_identity_that_it_had() -> None:
    assert "patience" not in toy_spec(updates=20).identity()
    assert toy_spec(updates=20, patience=2).identity()["patience"] == 2


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"updates": 20, "validate_every_updates": 20, "patience": 1},
            "training of 20 updates that validates every 20: set `validate_every_updates` below 10",
        ),
        (
            {"updates": 100, "patience": 9},
            "`patience: 9` cannot end a training of 100 updates that validates every 10: set ",
        ),
    ],
)
def test_patience_without_effect_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        check_patience(TASKS.get("sid"), toy_spec(**fields))
    assert sentence in str(refused.value)


def test_a_task_without_training_has_no_patience() -> None:
    spec = sweep().model_copy(
        update={"evaluate": (toy_spec("qbe", updates=10, validate_every_updates=1, patience=2),)}
    )
    with pytest.raises(SweepError) as refused:
        check_names(spec)
    assert (
        "evaluate[0].patience: the task `qbe` trains no probe, so it has no validations: leave "
        "`patience` out."
    ) in str(refused.value)
