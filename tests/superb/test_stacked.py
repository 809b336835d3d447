"""A stack of probes has the weights of probes that are trained one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from speechft_ray.superb.stacked import train_stacked
from speechft_ray.superb.tasks.base import TaskData
from tests.superb.probe_helpers import (
    average_frames,
    get_pooled_head,
    ignore,
    noise_features,
    toy_data,
    toy_schedule,
    train_probe,
)

RATES = (1e-1, 1e-2, 1e-3)


@pytest.fixture
def float64() -> Iterator[None]:
    """Adam turns rounding errors of tiny gradients into whole steps; in float64 two orders of the
    same sums stay together."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("task", "sampling"), [("sid", "shuffled"), ("ks", "balanced"), ("ic", "shuffled")]
)
@pytest.mark.usefixtures("float64")
def test_every_head_is_the_probe_that_is_trained_alone(task: str, sampling: str) -> None:
    data = toy_data(task, train=26)  # the last batch of an epoch is smaller
    train, dev = (
        average_frames(noise_features(data, split, hint=0.5)) for split in ("train", "dev")
    )
    plan = toy_schedule(
        updates=60,
        validate_every_updates=20,
        sampling=sampling,
        metric=f"{task}.accuracy",
        clip_norm=0.5,
    )
    stacked = train_stacked(data, train, dev, plan, RATES, 2, ignore)
    assert [len(seeds) for seeds in stacked] == [2, 2, 2]
    for rate, seeds in zip(RATES, stacked, strict=True):
        for seed, head in enumerate(seeds):
            alone = train_probe(data, train, dev, replace(plan, learning_rate=rate), seed)
            assert (head.best_update, head.dev) == (alone.best_update, alone.dev)
            pairs = zip(
                head.probe.state_dict().items(), alone.probe.state_dict().items(), strict=True
            )
            for (name, value), (other, expected) in pairs:
                assert name == other
                torch.testing.assert_close(value, expected, rtol=1e-7, atol=1e-9)


def test_heads_do_not_change_each_other() -> None:
    """A rate so large that its head breaks leaves the others where they are without it."""
    data = toy_data()
    train, dev = (
        average_frames(noise_features(data, split, hint=0.5)) for split in ("train", "dev")
    )
    plan = toy_schedule(updates=30, validate_every_updates=30)
    alone, beside = (
        train_stacked(data, train, dev, plan, rates, 1, ignore) for rates in ([1e-2], [1e-2, 1e38])
    )
    torch.testing.assert_close(
        get_pooled_head(beside[0][0].probe).output.weight,
        get_pooled_head(alone[0][0].probe).output.weight,
    )


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    data = toy_data()
    train, dev = (average_frames(noise_features(data, split)) for split in ("train", "dev"))
    broken = train.states.clone()
    broken[:, ::5] = float("inf")  # some batches have such an utterance, others have none
    train.states = broken
    constant: TaskData = replace(data, measure=lambda *_: {"sid.accuracy": 0.0})
    plan = toy_schedule(updates=20, validate_every_updates=20)
    stacked = train_stacked(constant, train, dev, plan, [1e-2], 2, ignore)
    assert all(
        value.isfinite().all()
        for probe in stacked[0]
        for value in probe.probe.state_dict().values()
    )


def test_every_update_of_every_head_is_reported() -> None:
    data = toy_data()
    done: list[int] = []
    train, dev = (average_frames(noise_features(data, split)) for split in ("train", "dev"))
    train_stacked(data, train, dev, toy_schedule(updates=5), RATES, 2, done.append)
    assert sum(done) == 5 * 6
