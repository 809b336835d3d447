"""Predicts the features of an encoder from those of others on the same line in weight space.

On the line theta0 + alpha * (theta' - theta0) the hidden states of an encoder change smoothly with
alpha (Zhou et al., "Going Beyond Linear Mode Connectivity: The Layerwise Linear Feature
Connectivity", arXiv 2307.08286). So the polynomial in alpha through the states of a few encoders
of the line, each state of each layer by itself, predicts those of any alpha between them.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing

import torch

from speechft_ray.speech.corpora.base import Utterance
from speechft_ray.superb.extractor import Advance, Batch, Features, Indices, Location
from speechft_ray.superb.feature_store import FeatureStore
from speechft_ray.superb.features import InMemoryFeatures, load_features, open_features

ERROR_AT_ONCE = 64
"""Utterances whose features are compared at once."""

Weighted = tuple[float, Features]


def compute_weights(points: Sequence[float], alpha: float) -> list[float]:
    """Returns the weight of each point in the polynomial through all of them, at ``alpha``
    (Lagrange). They sum to 1; at a point they are exactly 1 there and 0 elsewhere."""
    weights = []
    for point in points:
        weight = 1.0
        for other in points:
            if other != point:
                weight *= (alpha - other) / (point - other)
        weights.append(weight)
    return weights


class FeatureSource:
    """Loads the features of one encoder, or those interpolated between several."""

    def __init__(self, stores: Sequence[tuple[float, FeatureStore]]) -> None:
        """``stores``: the weight and the features of each encoder; one encoder has the weight
        1."""
        self.stores = stores
        caches = [store.storage.cache for _, store in stores]
        # Each store protects its own shards; here those of all are read together.
        for cache in caches:
            if cache is not None:
                cache.protected = frozenset().union(*(s.protected for _, s in stores))

    @property
    def pooled(self) -> bool:
        """Whether the features are means over frames."""
        return self.stores[0][1].extractor.pooled

    @property
    def seconds(self) -> float:
        """Seconds of encoding and of waiting for audio so far."""
        return sum(store.extractor.seconds for _, store in self.stores)

    @property
    def encoded_seconds(self) -> float:
        """Seconds of audio that went through encoders so far."""
        return sum(store.extractor.encoded_seconds for _, store in self.stores)

    def load(
        self, splits: Mapping[str, Sequence[Utterance]], advance: Advance
    ) -> dict[str, Features]:
        """Returns the features of each split (``superb.features.load_features``)."""
        loaded = [(weight, load_features(store, splits, advance)) for weight, store in self.stores]
        return {
            split: interpolate(
                [(weight, features[split]) for weight, features in loaded],
                self.stores[0][1].extractor.dtype,
            )
            for split in splits
        }

    def open(self, utterances: Sequence[Utterance], advance: Advance) -> Features:
        """Returns the features of a split that is read once (``superb.features.open_features``)."""
        return interpolate(
            [(weight, open_features(store, utterances, advance)) for weight, store in self.stores],
            self.stores[0][1].extractor.dtype,
        )


def interpolate(parts: Sequence[Weighted], dtype: torch.dtype) -> Features:
    """Returns the weighted sum of features of the same utterances, rounded to ``dtype`` wherever
    they are stored, so that no number depends on the place. A lone part with the weight 1 comes
    back as it is."""
    used = [(weight, features) for weight, features in parts if weight]
    if len(used) == 1 and used[0][0] == 1.0:
        return used[0][1]
    in_memory = [
        (weight, features) for weight, features in used if isinstance(features, InMemoryFeatures)
    ]
    if len(in_memory) < len(used):
        return InterpolatedFeatures(used, dtype)
    first = in_memory[0][1]
    states = torch.empty_like(first.states)
    for layer, of_layer in enumerate(states):
        layers = [(weight, features.states[layer]) for weight, features in in_memory]
        of_layer.copy_(_sum_weighted(layers, dtype))
    return InMemoryFeatures(states, first.frames)


class InterpolatedFeatures:
    """A weighted sum of features that is computed for every batch."""

    def __init__(self, parts: Sequence[Weighted], dtype: torch.dtype) -> None:
        self._parts, self._dtype = parts, dtype
        self.count = parts[0][1].count
        self.location: Location = parts[0][1].location

    def batch(self, indices: Indices) -> Batch:
        """Returns the sum for these utterances."""
        return self._join([features.batch(indices) for _, features in self._parts])

    def read_batches(
        self, order: Iterable[Indices]
    ) -> Generator[tuple[Indices, Batch], None, None]:
        """Yields each of these indices with its batch; every part is read ahead as it is alone."""
        orders = itertools.tee(order, len(self._parts))
        with ExitStack() as stack:
            batches: list[Iterator[tuple[Indices, Batch]]] = [
                stack.enter_context(closing(features.read_batches(own)))
                for (_, features), own in zip(self._parts, orders, strict=True)
            ]
            for pairs in zip(*batches, strict=True):
                yield pairs[0][0], self._join([batch for _, batch in pairs])

    def _join(self, batches: Sequence[Batch]) -> Batch:
        weighted = [
            (weight, batch.restore())
            for (weight, _), batch in zip(self._parts, batches, strict=True)
        ]
        return Batch(_sum_weighted(weighted, self._dtype).float(), batches[0].frames)


def _sum_weighted(parts: Sequence[tuple[float, torch.Tensor]], dtype: torch.dtype) -> torch.Tensor:
    """Returns the sum in float32, rounded. Products and sums are separate steps, so that each
    value is the same in a tensor of any size."""
    weight, first = parts[0]
    total = first.float() * weight
    for weight, values in parts[1:]:
        total += values.float() * weight
    return total.to(dtype)


def measure_error(real: Features, predicted: Features) -> list[float]:
    """Returns the error of predicted features by layer: the norm of the difference over that of
    the real ones, over all utterances together."""
    errors = norms = torch.zeros(())
    for start in range(0, real.count, ERROR_AT_ONCE):
        some = slice(start, min(start + ERROR_AT_ONCE, real.count))
        states = real.batch(some).restore().double()  # (layers, rows, dim)
        others = predicted.batch(some).restore().double()
        errors = errors.to(states) + (others - states).square().sum(dim=(1, 2))
        norms = norms.to(states) + states.square().sum(dim=(1, 2))
    ratios: list[float] = (errors / norms).sqrt().tolist()
    return ratios
