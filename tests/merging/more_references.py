"""Independent implementations of further merge methods, in numpy and float64, from their papers.

See ``references.py`` for the conventions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tests.merging.references import (
    Array,
    Model,
    inverse_root,
    make_elected_mean,
    map_positions,
    map_tensors,
)


def magmax(vectors: Sequence[Model]) -> Model:
    """arXiv 2407.06322: the value of largest magnitude."""
    return map_tensors(vectors, lambda tensors: map_positions(tensors, lambda v: max(v, key=abs)))


def nearswap(vectors: Sequence[Model], t: float) -> Model:
    """The weight min(t / |d|, 1) of the donor, as its author writes it; the mean over donors."""

    def merge(values: list[float]) -> float:
        return sum(value * min(1.0, t / abs(value)) for value in values) / len(values)

    return map_tensors(vectors, lambda tensors: map_positions(tensors, merge))


def ram(vectors: Sequence[Model], epsilon: float, gain: float = 0.0, limit: float = 0.2) -> Model:
    """arXiv 2601.13572: lone changes in full, shared ones averaged; RAM+ amplifies lone ones."""

    def merge(tensors: list[Array]) -> Array:
        changed = np.array([np.abs(tensor) > epsilon for tensor in tensors])
        count = changed.sum(axis=0)
        total = np.zeros(tensors[0].shape)
        for tensor, mask in zip(tensors, changed, strict=True):
            lone, shared = mask & (count == 1), mask & (count > 1)
            ratio = shared.sum() / lone.sum() if lone.any() else math.inf
            total[lone] += tensor[lone] * (1 + gain * min(ratio, limit))
            total[shared] += tensor[shared] / count[shared]
        return total

    return map_tensors(vectors, merge)


def multislerp(tensors: list[Array], weights: Sequence[float]) -> Array:
    """Barycentre on the sphere by one exponential map, with rotations written out by angle."""
    shares = np.array(weights) / sum(weights)
    flat = [tensor.ravel() for tensor in tensors]
    units = [tensor / np.linalg.norm(tensor) for tensor in flat]
    pole = sum(share * unit for share, unit in zip(shares, units, strict=True))
    pole = pole / np.linalg.norm(pole)
    tangent = sum(
        share * (unit - pole * (unit @ pole)) for share, unit in zip(shares, units, strict=True)
    )
    angle = np.linalg.norm(tangent)
    direction = pole * np.cos(angle) + np.sin(angle) * tangent / angle if angle else pole
    length = sum(share * np.linalg.norm(tensor) for share, tensor in zip(shares, flat, strict=True))
    return np.asarray(length * direction).reshape(tensors[0].shape)


def arcee_fusion(base: Array, vector: Array) -> Array:
    """Importance |d| KL(softmax(donor) || softmax(base)) per row; kept from median + 1.5 IQR on."""
    rows, steps = base.reshape(-1, base.shape[-1]), vector.reshape(-1, base.shape[-1])
    importance = np.empty(rows.shape)
    for place, (row, step) in enumerate(zip(rows, steps, strict=True)):
        p, q = (np.exp(each) / np.exp(each).sum() + 1e-8 for each in (row + step, row))
        importance[place] = np.abs(step) * np.sum(p * np.log(p / q))
    ordered = np.sort(importance.ravel())
    first, middle, third = (ordered[int(q * (ordered.size - 1))] for q in (0.25, 0.5, 0.75))
    kept = importance >= middle + 1.5 * (third - first)
    return np.where(kept, steps, 0.0).reshape(vector.shape)


def polar(matrix: Array) -> Array:
    """The orthogonal polar factor of a matrix of full rank."""
    if matrix.shape[0] >= matrix.shape[1]:
        return np.asarray(matrix @ inverse_root(matrix.T @ matrix))
    return np.asarray(inverse_root(matrix @ matrix.T) @ matrix)


def iso_cts(vectors: Sequence[Model], common: float) -> Model:
    """arXiv 2502.04959, algorithm 2; other tensors averaged."""

    def merge(tensors: list[Array]) -> Array:
        if tensors[0].ndim != 2:
            return np.asarray(np.mean(tensors, axis=0))
        rank, n = min(tensors[0].shape), len(tensors)
        own = round((rank - int(rank * common)) / n)
        k = rank - own * n
        u, s, v = np.linalg.svd(np.sum(tensors, axis=0), full_matrices=False)
        lefts, values, rights = [u[:, :k]], [s[:k]], [v[:k]]
        for tensor in tensors:
            rest = tensor - u[:, :k] @ u[:, :k].T @ tensor
            left, value, right = np.linalg.svd(rest, full_matrices=False)
            lefts.append(left[:, :own])
            values.append(value[:own])
            rights.append(right[:own])
        flat = np.mean(np.concatenate(values))
        merged = polar(np.concatenate(lefts, axis=1)) @ polar(np.concatenate(rights))
        return np.asarray(flat * merged)

    return map_tensors(vectors, merge)


def tsv_m_boosted(vectors: Sequence[Model], boost: float) -> Model:
    """arXiv 2603.05354: singular values are raised to the one at which their cumulative sum reaches
    the share ``boost``; then TSV-M."""

    def merge(tensors: list[Array]) -> Array:
        if tensors[0].ndim != 2:
            return np.asarray(np.mean(tensors, axis=0))
        rank = min(tensors[0].shape) // len(tensors)
        lefts, values, rights = [], [], []
        for tensor in tensors:
            u, s, v = np.linalg.svd(tensor, full_matrices=False)
            place = next(i for i in range(len(s)) if s[: i + 1].sum() >= boost * s.sum())
            lefts.append(u[:, :rank])
            values.append(np.maximum(s, s[place])[:rank])
            rights.append(v[:rank])
        left, right = polar(np.concatenate(lefts, axis=1)), polar(np.concatenate(rights))
        return np.asarray(left @ np.diag(np.concatenate(values)) @ right)

    return map_tensors(vectors, merge)


def knots(vectors: Sequence[Model], density: float) -> Model:
    """arXiv 2410.19735: TIES of S V_i, from one decomposition of the task vectors side by side;
    other tensors as they are."""
    count = len(vectors)
    coordinates: list[Model] = [{} for _ in vectors]
    bases = {}
    for name, first in vectors[0].items():
        if first.ndim != 2:
            for model, aligned in zip(vectors, coordinates, strict=True):
                aligned[name] = model[name]
            continue
        side_by_side = np.concatenate([model[name] for model in vectors], axis=1)
        bases[name], s, v = np.linalg.svd(side_by_side, full_matrices=False)
        parts = np.split(np.diag(s) @ v, count, axis=1)
        for part, aligned in zip(parts, coordinates, strict=True):
            aligned[name] = part
    flat = [
        np.concatenate([np.abs(tensor).ravel() for tensor in model.values()])
        for model in coordinates
    ]
    cuts = [np.sort(each)[each.size - int(each.size * density) - 1] for each in flat]
    trimmed = [
        {name: np.where(np.abs(t) >= cut, t, 0.0) for name, t in model.items()}
        for model, cut in zip(coordinates, cuts, strict=True)
    ]
    merge = make_elected_mean([1.0] * count, [1.0] * count, True, 1)
    merged = map_tensors(trimmed, lambda tensors: map_positions(tensors, merge))
    return {
        name: bases[name] @ tensor if name in bases else tensor for name, tensor in merged.items()
    }


def lors(vectors: Sequence[Model], rank: float, density: float) -> Model:
    """arXiv 2502.17380: truncated decomposition plus the largest of the rest; other tensors as they
    are; summed."""

    def decompose(tensor: Array) -> Array:
        if tensor.ndim != 2:
            return tensor
        directions = np.linalg.eigh(tensor.T @ tensor)[1]
        kept = directions[:, -max(1, int(rank * min(tensor.shape))) :]
        low = tensor @ kept @ kept.T
        rest = (tensor - low).ravel()
        largest = sorted(range(rest.size), key=lambda place: -abs(rest[place]))
        sparse = np.zeros(rest.size)
        places = largest[: int(density * rest.size)]
        sparse[places] = rest[places]
        return np.asarray(low + sparse.reshape(tensor.shape))

    return map_tensors(vectors, lambda tensors: np.sum([decompose(t) for t in tensors], axis=0))


def star(vectors: Sequence[Model], share: float) -> Model:
    """arXiv 2502.10339: the fewest directions whose singular values reach the share, scaled to the
    whole nuclear norm; averaged."""

    def truncate(tensor: Array) -> Array:
        if tensor.ndim != 2:
            return tensor
        u, s, v = np.linalg.svd(tensor, full_matrices=False)
        r = next(i + 1 for i in range(len(s)) if s[: i + 1].sum() >= share * s.sum())
        return np.asarray(u[:, :r] @ np.diag(s[:r] * s.sum() / s[:r].sum()) @ v[:r])

    return map_tensors(vectors, lambda tensors: np.mean([truncate(t) for t in tensors], axis=0))


def metagpt(vectors: Sequence[Model]) -> Model:
    """arXiv 2406.11385: lambda_i = |d_i|^2 / sum_j |d_j|^2."""
    squares = [sum(float(np.sum(t**2)) for t in model.values()) for model in vectors]
    shares = [square / sum(squares) for square in squares]
    return map_tensors(vectors, lambda tensors: np.average(tensors, axis=0, weights=shares))


def consensus(vectors: Sequence[Model], threshold: float, least: int) -> Model:
    """arXiv 2405.07813: the sum where at least ``least`` tasks need the position."""

    def merge(values: list[float]) -> float:
        total = sum(values)
        needs = sum(abs(value) > threshold * abs(total - value) for value in values)
        return total if needs >= least else 0.0

    return map_tensors(vectors, lambda tensors: map_positions(tensors, merge))


def pcb(vectors: Sequence[Model], ratio: float) -> Model:
    """arXiv 2410.02396 with the quantiles of its authors' code, on one vector per model."""
    names = list(vectors[0])
    flat = np.array([np.concatenate([model[name].ravel() for name in names]) for model in vectors])
    n, d = flat.shape
    sizes = np.sort(np.abs(flat), axis=1)
    low = sizes[:, int(d * 0.0001)][:, None]
    high = sizes[:, int(d * (1 - 0.0001) - 1)][:, None]
    clipped = np.sign(flat) * np.clip(np.abs(flat), low, high)
    own = ((np.abs(clipped) - low) / (high - low)) ** 2
    score = np.exp(n * own) * np.tanh(flat * flat.sum(axis=0))
    ordered = np.sort(score, axis=1)
    least, most = ordered[:, int(d * (1 - ratio))][:, None], ordered[:, -1][:, None]
    weight = (np.clip(score, least, most) - least) / (most - least)
    merged = (clipped * weight).sum(axis=0) / np.maximum(weight.sum(axis=0), 1e-12)
    result, start = {}, 0
    for name in names:
        shape = vectors[0][name].shape
        result[name] = merged[start : start + math.prod(shape)].reshape(shape)
        start += math.prod(shape)
    return result


def ties_variant(
    vectors: Sequence[Model],
    densities: Sequence[float],
    elect: str,
    aggregate: str,
    kept: str = "threshold",
    rescale: bool = False,
) -> Model:
    """arXiv 2306.01708 with the options of its authors' code, on one vector per model; MergeLM's
    count of what is dropped; mergekit's L1 norm by tensor."""
    names = list(vectors[0])
    trimmed = []
    for model, density in zip(vectors, densities, strict=True):
        sizes = np.sort(np.concatenate([np.abs(model[name]).ravel() for name in names]))
        drop = (
            int(sizes.size * (1 - density))
            if kept == "mask_rate"
            else sizes.size - int(sizes.size * density)
        )
        cut = sizes[drop - 1] if drop else 0.0
        values = {name: np.where(np.abs(t) >= cut, t, 0.0) for name, t in model.items()}
        if rescale:
            values = {
                name: t * np.abs(model[name]).sum() / np.abs(t).sum() if t.any() else t
                for name, t in values.items()
            }
        trimmed.append(values)
    squares = [sum(float(np.sum(t**2)) for t in model.values()) for model in trimmed]

    def vote(column: list[float]) -> float:
        shares = [value**2 / square for value, square in zip(column, squares, strict=True)]
        if elect == "normfrac":
            return float(np.sign(column[int(np.argmax(shares))]))
        if elect == "normmass":
            return float(
                np.sign(sum(math.copysign(s, v) for s, v in zip(shares, column, strict=True)))
            )
        return float(np.sign(sum(column)))

    signs = map_tensors(trimmed, lambda tensors: map_positions(tensors, vote))
    majority = 1.0 if sum(float(sign.sum()) for sign in signs.values()) > 0 else -1.0

    def merge(column: list[float]) -> float:
        if elect == "none":
            present = [value for value in column if value]
            return sum(present) / len(present) if present else 0.0
        sign = vote(column) or majority
        agreeing = [value for value in column if value * sign > 0]
        if not agreeing:
            return 0.0
        return max(agreeing, key=abs) if aggregate == "max" else sum(agreeing) / len(agreeing)

    return map_tensors(trimmed, lambda tensors: map_positions(tensors, merge))
