"""Schedule, phases, penalties and seeding against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speechft_ray.finetuning.penalties import compute_distances, l2_sp_penalty
from speechft_ray.finetuning.phases import head_only_updates, is_head_only, trainable_names
from speechft_ray.finetuning.schedule import learning_rate
from speechft_ray.finetuning.seeding import Stream, make_generator, seed_torch

OFFICIAL = (0.1, 0.4, 0.5)


@pytest.mark.parametrize(
    ("update", "share"),
    [
        (0, 0.0),
        (1, 0.1),
        (9, 0.9),
        (10, 1.0),
        (49, 1.0),
        (50, 1.0),
        (51, 0.98),
        (75, 0.5),
        (99, 0.02),
    ],
)
def test_the_schedule_of_100_updates(update: int, share: float) -> None:
    assert learning_rate(update, 100, 1e-4, OFFICIAL) == pytest.approx(
        1e-4 * share, rel=1e-12, abs=0
    )


@pytest.mark.parametrize(
    ("fractions", "rates"),
    [
        ((0.0, 1.0, 0.0), [1, 1, 1, 1]),
        ((1.0, 0.0, 0.0), [0, 0.25, 0.5, 0.75]),
        ((0.0, 0.0, 1.0), [1, 0.75, 0.5, 0.25]),
        ((0.5, 0.5, 0.0), [0, 0.5, 1, 1]),
    ],
)
def test_the_schedule_with_parts_left_out(
    fractions: tuple[float, float, float], rates: list[float]
) -> None:
    assert [learning_rate(update, 4, 1.0, fractions) for update in range(4)] == pytest.approx(rates)


@pytest.mark.parametrize("updates", [1, 2, 3, 7, 19])
def test_rates_of_short_runs_stay_within_zero_and_peak(updates: int) -> None:
    rates = [learning_rate(update, updates, 2.0, OFFICIAL) for update in range(updates)]
    assert rates[0] == 0 and all(0 <= rate <= 2 for rate in rates)


@pytest.mark.parametrize(
    ("fraction", "updates", "expected"),
    [
        (0.1, 300_000, 30_000),
        (0.1, 15_510, 1551),
        (0.1, 19, 1),
        (0.1, 9, 0),
        (0.29, 100, 29),
        (0.0, 50, 0),
        (1.0, 50, 50),
    ],
)
def test_the_head_only_phase_is_the_floor_of_its_share(
    fraction: float, updates: int, expected: int
) -> None:
    assert head_only_updates(fraction, updates) == expected
    assert [is_head_only(update, fraction, updates) for update in (expected - 1, expected)] == [
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("freeze", "expected"), [(True, {"post.w"}), (False, {"post.w", "front.w"})]
)
def test_the_front_end_learns_only_when_it_is_not_frozen(freeze: bool, expected: set[str]) -> None:
    names = trainable_names(
        ["front.w", "post.w", "final_proj.w"],
        freeze_front_end=freeze,
        front_end_prefixes=("front.",),
        pretraining_only_prefixes=("final_proj.",),
    )
    assert names == expected


def test_without_a_front_end_everything_learns() -> None:
    names = ["a", "b"]
    assert trainable_names(
        names, freeze_front_end=True, front_end_prefixes=(), pretraining_only_prefixes=()
    ) == set(names)


def test_the_penalty_and_its_gradient_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    values = {name: torch.randn(3, 2, dtype=torch.float64, requires_grad=True) for name in "ab"}
    anchors = {name: torch.randn(3, 2, dtype=torch.float64) for name in "ab"}
    penalty = l2_sp_penalty(values, anchors, 0.01)
    by_hand = 0.01 * sum(
        float(((values[name].detach() - anchors[name]) ** 2).sum()) for name in "ab"
    )
    assert penalty.item() == pytest.approx(by_hand, rel=1e-12)
    penalty.backward()  # type: ignore[no-untyped-call]
    for name in "ab":
        torch.testing.assert_close(
            values[name].grad, 2 * 0.01 * (values[name].detach() - anchors[name])
        )
    assert torch.autograd.gradcheck(
        lambda a, b: l2_sp_penalty({"a": a, "b": b}, anchors, 0.01), tuple(values.values())
    )


def test_distances_are_euclidean_over_all_parameters_and_over_each_part() -> None:
    values = {
        "post_extract_proj.weight": torch.tensor([2.0]),
        "encoder.layers.0.fc1.weight": torch.tensor([3.0, 0.0]),
        "encoder.layers.0.fc1.bias": torch.tensor([4.0]),
        "encoder.layers.11.fc1.weight": torch.tensor([-14.0]),
    }
    distances = compute_distances(
        values, {name: torch.zeros_like(value) for name, value in values.items()}
    )
    assert distances == {
        "distance": 15,
        "distance_input": 2,
        "distance_layer_00": 5,
        "distance_layer_11": 14,
    }
    assert compute_distances({}, {}) == {"distance": 0}


def test_a_draw_depends_on_every_part_of_its_place() -> None:
    places = [
        (0, Stream.EPOCH, 0, 0),
        (1, Stream.EPOCH, 0, 0),
        (0, Stream.CROP, 0, 0),
        (0, Stream.EPOCH, 1, 0),
        (0, Stream.EPOCH, 0, 1),
    ]
    first = [int(make_generator(seed, rng, *place).integers(2**62)) for seed, rng, *place in places]
    again = [int(make_generator(seed, rng, *place).integers(2**62)) for seed, rng, *place in places]
    assert first == again and len(set(first)) == len(first)
    assert make_generator(0, Stream.EPOCH, 0).integers(2**62) != make_generator(
        0, Stream.EPOCH, 0, 0
    ).integers(2**62)


def test_torch_is_seeded_by_place() -> None:
    with torch.random.fork_rng(devices=[]):
        draws = []
        for update in (0, 1, 0):
            seed_torch(3, Stream.UPDATE, update)
            draws.append(torch.rand(4).numpy())
    np.testing.assert_array_equal(draws[0], draws[2])
    assert not np.array_equal(draws[0], draws[1])
