"""Merge methods written a second time, in float64, from the formulas of their papers and with other
means than the package.

A model is a mapping from names to numpy arrays; ``vectors`` is one such mapping per donor.
Everything returns the combined task vector, before ``scale`` and alpha. Plain loops over positions
wherever a formula speaks of positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.optimize import minimize

Model = dict[str, np.ndarray]


def each(
    vectors: Sequence[Mapping[str, np.ndarray]], merge: Callable[[list[np.ndarray]], np.ndarray]
) -> Model:
    """Merges tensor by tensor."""
    return {
        name: merge([np.asarray(model[name], dtype=np.float64) for model in vectors])
        for name in vectors[0]
    }


def positions(tensors: list[np.ndarray], merge: Callable[[list[float]], float]) -> np.ndarray:
    """Merges position by position."""
    columns = zip(*(tensor.ravel().tolist() for tensor in tensors), strict=True)
    return np.array([merge(list(column)) for column in columns]).reshape(tensors[0].shape)


def agreeing(
    weights: Sequence[float], votes: Sequence[float], divide: bool, when_zero: int
) -> Callable[[list[float]], float]:
    """TIES' elect and merge at one position. ``votes`` are the weights of the election,
    ``when_zero`` the sign of a tie."""

    def merge(values: list[float]) -> float:
        vote = sum(value * weight for value, weight in zip(values, votes, strict=True))
        sign = 1 if vote > 0 else -1 if vote < 0 else when_zero
        kept = [
            (value, weight)
            for value, weight in zip(values, weights, strict=True)
            if value * sign > 0
        ]
        total = sum(value * weight for value, weight in kept)
        divisor = sum(weight for _, weight in kept) if divide else 1.0
        return total / divisor if kept and divisor else 0.0

    return merge


def ties(vectors: Sequence[Model], density: float, weights: Sequence[float] | None = None) -> Model:
    """arXiv 2306.01708 as its authors run it: one threshold per model, ties of the vote go with the
    majority of all signs."""
    weights = weights or [1.0] * len(vectors)
    trimmed = []
    for model in vectors:
        flat = sorted(abs(value) for tensor in model.values() for value in tensor.ravel().tolist())
        rank = len(flat) - int(len(flat) * density)
        threshold = flat[rank - 1] if rank else 0.0
        trimmed.append(
            {
                name: np.where(np.abs(tensor) >= threshold, tensor, 0.0)
                for name, tensor in model.items()
            }
        )
    total = sum(int(np.sign(sum(model[name] for model in trimmed)).sum()) for name in vectors[0])
    merge = agreeing(weights, [1.0] * len(vectors), True, 1 if total > 0 else -1)
    return each(trimmed, lambda tensors: positions(tensors, merge))


def ties_like_mergekit(vectors: Sequence[Model], density: float, weights: Sequence[float]) -> Model:
    """The same with exact counts per tensor, weights in the vote, and + for ties."""

    def trim(tensor: np.ndarray) -> np.ndarray:
        order = sorted(range(tensor.size), key=lambda place: (-abs(tensor.ravel()[place]), place))
        kept = set(order[: max(1, int(density * tensor.size))])
        return np.array(
            [value if place in kept else 0.0 for place, value in enumerate(tensor.ravel())]
        ).reshape(tensor.shape)

    merge = agreeing(weights, weights, True, 1)
    return each(vectors, lambda tensors: positions([trim(tensor) for tensor in tensors], merge))


def breadcrumbs(vectors: Sequence[Model], density: float, gamma: float, consensus: bool) -> Model:
    """arXiv 2312.06795 with counts as mergekit's: int(gamma n) outliers go, then the smallest until
    int(density n) are left."""

    def mask(tensor: np.ndarray) -> np.ndarray:
        order = sorted(range(tensor.size), key=lambda place: (abs(tensor.ravel()[place]), place))
        keep, outliers = int(density * tensor.size), int(gamma * tensor.size)
        smallest = max(0, tensor.size - keep - outliers)
        kept = set(order[smallest : smallest + keep])
        return np.array(
            [value if place in kept else 0.0 for place, value in enumerate(tensor.ravel())]
        ).reshape(tensor.shape)

    ones = [1.0] * len(vectors)
    merge = agreeing(ones, ones, False, 1) if consensus else sum
    return each(vectors, lambda tensors: positions([mask(tensor) for tensor in tensors], merge))


def della_chances(tensor: np.ndarray, density: float, epsilon: float) -> np.ndarray:
    """arXiv 2406.11617: the chance to be kept rises evenly with the rank of the magnitude in its
    row."""
    rows = tensor.reshape(1, -1) if tensor.ndim < 2 else tensor.reshape(tensor.shape[0], -1)
    chances = np.empty(rows.shape)
    for row, chance in zip(rows, chances, strict=True):
        for place, value in enumerate(row):
            rank = sum(abs(other) < abs(value) for other in row)
            chance[place] = (
                density
                if len(row) == 1
                else density - epsilon + 2 * epsilon * rank / (len(row) - 1)
            )
    return chances.reshape(tensor.shape)


def slerp(vectors: Sequence[Model], t: float) -> Model:
    """Shoemake 1985, by a rotation in the plane of the two tensors; only for tensors of one
    length."""

    def turn(tensors: list[np.ndarray]) -> np.ndarray:
        first, second = (tensor.ravel() for tensor in tensors)
        along = first / np.linalg.norm(first)
        across = second - along * (along @ second)
        across /= np.linalg.norm(across)
        angle = t * math.atan2(across @ second, along @ second)
        return (
            np.linalg.norm(first) * (math.cos(angle) * along + math.sin(angle) * across)
        ).reshape(tensors[0].shape)

    return each(vectors, turn)


def karcher(tensors: list[np.ndarray]) -> np.ndarray:
    """The direction of least summed squared angle, found by a general minimiser, times the mean
    length."""
    directions = [tensor.ravel() / np.linalg.norm(tensor) for tensor in tensors]

    def cost(point: np.ndarray) -> float:
        cosines = np.clip(
            [direction @ point / np.linalg.norm(point) for direction in directions], -1.0, 1.0
        )
        return float(sum(np.arccos(cosines) ** 2))

    minimum = minimize(
        cost, directions[0] + 0.3 * directions[1], method="BFGS", options={"gtol": 1e-10}
    ).x
    length = sum(float(np.linalg.norm(tensor)) for tensor in tensors) / len(tensors)
    return (length * minimum / np.linalg.norm(minimum)).reshape(tensors[0].shape)


def model_stock(vectors: Sequence[Model]) -> Model:
    """arXiv 2403.19522, equation of the interpolation ratio for n models."""

    def merge(tensors: list[np.ndarray]) -> np.ndarray:
        n, cosines = len(tensors), []
        for i in range(n):
            for j in range(n):
                if i < j:
                    one, other = tensors[i].ravel(), tensors[j].ravel()
                    cosines.append(one @ other / math.sqrt((one @ one) * (other @ other)))
        c = sum(cosines) / len(cosines)
        return n * c / (1 + (n - 1) * c) * sum(tensors) / n

    return each(vectors, merge)


def sce(vectors: Sequence[Model], density: float) -> Model:
    """arXiv 2408.07990: select by variance, weigh by mean square, erase the minority."""

    def merge(tensors: list[np.ndarray]) -> np.ndarray:
        columns = np.array([tensor.ravel() for tensor in tensors])
        variance = [float(np.mean((column - np.mean(column)) ** 2)) for column in columns.T]
        count = int(sum(value != 0 for value in variance) * density)
        if not count:
            return np.zeros(tensors[0].shape)
        chosen = sorted(range(len(variance)), key=lambda place: -variance[place])[:count]
        selected = np.zeros_like(columns)
        selected[:, chosen] = columns[:, chosen]
        squares = [float(np.mean(row**2)) for row in selected]
        merge = agreeing(
            [square / sum(squares) for square in squares], [1.0] * len(squares), True, 1
        )
        return positions([row.reshape(tensors[0].shape) for row in selected], merge)

    return each(vectors, merge)


def inverse_root(matrix: np.ndarray) -> np.ndarray:
    """M^(-1/2) of a positive definite matrix, by its eigenvectors."""
    values, vectors = np.linalg.eigh(matrix)
    return vectors @ np.diag(values**-0.5) @ vectors.T


def tsv_m(vectors: Sequence[Model]) -> Model:
    """arXiv 2412.00081: each task's first r/n singular triples, made orthogonal as A (A^T
    A)^(-1/2); other tensors averaged."""

    def merge(tensors: list[np.ndarray]) -> np.ndarray:
        if tensors[0].ndim != 2:
            return np.mean(tensors, axis=0)
        rank = min(tensors[0].shape) // len(tensors)
        left, right, values = [], [], []
        for tensor in tensors:
            squares, directions = np.linalg.eigh(tensor.T @ tensor)
            for place in range(1, rank + 1):
                values.append(math.sqrt(squares[-place]))
                right.append(directions[:, -place])
                left.append(tensor @ directions[:, -place] / values[-1])
        u, v = np.array(left).T, np.array(right).T
        return u @ inverse_root(u.T @ u) @ np.diag(values) @ (v @ inverse_root(v.T @ v)).T

    return each(vectors, merge)


def iso_c(vectors: Sequence[Model]) -> Model:
    """arXiv 2502.04959: the polar factor of the sum times its mean singular value; other tensors
    averaged."""

    def merge(tensors: list[np.ndarray]) -> np.ndarray:
        if tensors[0].ndim != 2:
            return np.mean(tensors, axis=0)
        total = sum(tensors)
        total = total if total.shape[0] >= total.shape[1] else total.T
        root = inverse_root(total.T @ total)
        spectrum = 1 / np.linalg.eigvalsh(root)
        flat = total @ root * np.mean(spectrum)
        return flat if tensors[0].shape[0] >= tensors[0].shape[1] else flat.T

    return each(vectors, merge)


def wudi(vectors: Sequence[Model], steps: int, rate: float) -> Model:
    """arXiv 2503.08099 with Adam (arXiv 1412.6980, beta 0.9 and 0.999, epsilon 1e-8) written out;
    other tensors averaged."""

    def merge(tensors: list[np.ndarray]) -> np.ndarray:
        if tensors[0].ndim != 2:
            return np.mean(tensors, axis=0)
        m = sum(tensors)
        first, second = np.zeros_like(m), np.zeros_like(m)
        for step in range(1, steps + 1):
            gradient = sum(
                2 * ((m - tensor) @ tensor.T) @ tensor / np.sum(tensor**2) for tensor in tensors
            )
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            m = m - rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        return m

    return each(vectors, merge)


def regmean(tensors: list[np.ndarray], inputs: list[np.ndarray]) -> np.ndarray:
    """arXiv 2212.09849 by what it minimises: the layer whose outputs on all inputs together are
    nearest to each donor's own."""
    rows = np.concatenate([rows / math.sqrt(len(rows)) for rows in inputs])
    targets = np.concatenate(
        [
            rows / math.sqrt(len(rows)) @ tensor.T
            for rows, tensor in zip(inputs, tensors, strict=True)
        ]
    )
    return np.linalg.lstsq(rows, targets, rcond=None)[0].T
