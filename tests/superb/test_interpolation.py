"""Interpolated features, against numpy and against the evaluations that they stand for."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speechft_ray.core.specs import CorpusSpec, EvalSpec
from speechft_ray.speech.features.cache import FeatureCache
from speechft_ray.superb.evaluate import SharedCaches, WeightedEncoder, evaluate
from speechft_ray.superb.extractor import Features
from speechft_ray.superb.feature_forms import Int8Form
from speechft_ray.superb.features import InMemoryFeatures
from speechft_ray.superb.interpolation import (
    InterpolatedFeatures,
    compute_weights,
    interpolate,
    measure_error,
)
from speechft_ray.superb.row_features import MemoryRows, RowFeatures
from tests.superb.toy_models import ToyEncoder, toy_corpus

CPU = torch.device("cpu")
POINTS = (0.0, 0.5, 1.0)
FRAMES = [3, 1, 4, 2]
PASSING = ("seconds", "encoded_seconds")


def make_states(seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random states ``(layers, rows, dim)``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, sum(FRAMES), 5, generator=generator).to(dtype)


def in_memory(states: torch.Tensor) -> Features:
    return InMemoryFeatures(states, torch.tensor(FRAMES))


def move(alpha: float) -> ToyEncoder:
    """The toy encoder, moved along a line."""
    encoder, generator = ToyEncoder(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for values in encoder.parameters():
            values.add_(torch.randn(values.shape, generator=generator), alpha=0.1 * alpha)
    return encoder


def evaluate_at(alpha: float, predicted_from: Any = (), **fields: Any) -> dict[str, Any]:
    """Evaluates the toy encoder at an alpha, or as it is predicted from others."""
    weights = compute_weights(predicted_from, alpha) if predicted_from else []
    line = [
        WeightedEncoder(weight, move(point), None)
        for weight, point in zip(weights, predicted_from, strict=True)
    ]
    spec = EvalSpec(corpus=CorpusSpec(), updates=20, batch_size=8, learning_rate=1e-2, **fields)
    facts = evaluate(
        spec, move(alpha), toy_corpus(), CPU, lambda _: None, dev_only=True, predicted_from=line
    )
    return {name: value for name, value in facts.items() if name not in PASSING}


@pytest.mark.parametrize("points", [(0.0, 1.0), POINTS, (0.2, 0.3, 0.6, 1.0)])
def test_weights_are_those_of_the_polynomial_through_the_points(points: tuple[float, ...]) -> None:
    values = np.random.default_rng(0).normal(size=len(points))
    polynomial = np.polyfit(points, values, len(points) - 1)
    for alpha in (0.25, 0.41, 0.9):
        predicted = np.dot(compute_weights(points, alpha), values)
        assert predicted == pytest.approx(np.polyval(polynomial, alpha), rel=1e-9)


def test_weights_at_a_point_are_exactly_one_and_zero() -> None:
    for place, point in enumerate(POINTS):
        assert compute_weights(POINTS, point) == [float(place == other) for other in range(3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_features_in_memory_and_in_batches_are_numpys(dtype: torch.dtype) -> None:
    states = [make_states(seed, dtype) for seed in range(3)]
    weights = compute_weights(POINTS, 0.3)
    expected = sum(
        weight * each.numpy().astype(np.float32)
        for weight, each in zip(np.array(weights, np.float32), states, strict=True)
    )
    parts = [(w, in_memory(each)) for w, each in zip(weights, states, strict=True)]
    whole = interpolate(parts, dtype).batch(slice(0, 4))
    tolerance = 1e-6 if dtype is torch.float32 else 2e-3  # half a unit of float16 at 4
    np.testing.assert_allclose(whole.states.numpy(), expected, atol=tolerance)
    # The same to the bit wherever the parts are, in any batch, read ahead or not.
    batched = InterpolatedFeatures(parts, dtype)
    assert torch.equal(batched.batch(slice(0, 4)).states, whole.states)
    orders = [torch.tensor([2, 0]), torch.tensor([1])]
    for order, (indices, batch) in zip(orders, batched.read_batches(iter(orders)), strict=True):
        assert indices is order
        assert batch.frames.tolist() == [FRAMES[index] for index in order.tolist()]
        assert torch.equal(batch.states, interpolate(parts, dtype).batch(order).states)


def test_an_endless_order_is_read_as_far_as_it_is_asked_for() -> None:
    parts = [(0.5, in_memory(make_states(seed))) for seed in range(2)]
    endless = (slice(0, 2) for _ in iter(int, 1))
    assert (
        len(list(islice(InterpolatedFeatures(parts, torch.float32).read_batches(endless), 3))) == 3
    )


def test_eight_bits_per_value_are_restored_before_the_sum() -> None:
    states = [make_states(seed, torch.float16) for seed in range(3)]
    form = Int8Form(2, 5)
    rows = [MemoryRows(form.pack(each), FRAMES) for each in states]
    weights = compute_weights(POINTS, 0.7)
    parts: list[tuple[float, Features]] = [
        (weight, RowFeatures(source, form, CPU, "memory"))
        for weight, source in zip(weights, rows, strict=True)
    ]
    exact = sum(weight * each.float() for weight, each in zip(weights, states, strict=True))
    predicted = interpolate(parts, torch.float16).batch(slice(0, 4)).states
    # Half a step of a frame whose largest value is below 4, in each part.
    assert float((predicted - exact).abs().max()) < 0.5 * 4 / 127 * sum(map(abs, weights)) + 2e-3


def test_a_linear_encoder_is_predicted_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    start, step = (torch.randn(5, 5, generator=generator).double() for _ in range(2))
    inputs = make_states(9).double()

    def encode(alpha: float) -> torch.Tensor:
        return (inputs @ (start + alpha * step)).float()

    weights = compute_weights(POINTS, 0.35)
    parts = [(w, in_memory(encode(point))) for w, point in zip(weights, POINTS, strict=True)]
    predicted = interpolate(parts, torch.float32)
    assert max(measure_error(in_memory(encode(0.35)), predicted)) < 1e-6


def test_the_error_is_the_relative_norm_of_numpy() -> None:
    real, predicted = make_states(0), make_states(1)
    by_layer = [
        np.linalg.norm(p - r) / np.linalg.norm(r)
        for r, p in zip(real.double().numpy(), predicted.double().numpy(), strict=True)
    ]
    assert measure_error(in_memory(real), in_memory(predicted)) == pytest.approx(by_layer)


@pytest.mark.parametrize(
    "fields", [{"task": "sid"}, {"task": "pr"}, {"task": "pr", "features": "int8"}, {"task": "qbe"}]
)
def test_a_prediction_at_an_encoded_alpha_is_the_real_evaluation_to_the_bit(
    fields: dict[str, Any],
) -> None:
    assert evaluate_at(0.5, POINTS, **fields) == evaluate_at(0.5, **fields)


def test_between_the_encodings_a_prediction_is_close_and_stored_features_are_enough(
    tmp_path: Path,
) -> None:
    cache = FeatureCache(tmp_path, 10**9)
    weights = compute_weights(POINTS, 0.75)
    line = [
        WeightedEncoder(
            weight, move(point), SharedCaches(cache=cache, encoder=f"at {point}", front_end=None)
        )
        for weight, point in zip(weights, POINTS, strict=True)
    ]
    spec = EvalSpec(corpus=CorpusSpec(), task="sid", updates=20, batch_size=8, learning_rate=1e-2)

    def run(**how: Any) -> dict[str, Any]:
        return evaluate(spec, move(0.75), toy_corpus(), CPU, lambda _: None, dev_only=True, **how)

    first, second = run(predicted_from=line), run(predicted_from=line)
    assert first["encoded_seconds"] > 0 == second["encoded_seconds"]
    assert first["scores"] == second["scores"]
    # Its features, by layer: the first is linear in the weights but for layer norm.
    errors = run(compared_with=line)["feature_error"]
    linear = run(compared_with=[line[0]._replace(weight=0.25), line[2]._replace(weight=0.75)])
    assert len(errors) == ToyEncoder.state_count
    assert all(one < 0.5 * two for one, two in zip(errors, linear["feature_error"], strict=True))
    assert max(errors) < 0.1
