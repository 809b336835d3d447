"""Independent implementations of the merge methods, in numpy and float64, from their papers.

A model is a mapping from names to arrays; ``vectors`` holds one task vector, such a mapping, per
donor. Every function returns the combined task vector, without ``scale`` and alpha. Formulas per
position are plain loops over positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

Array = npt.NDArray[np.float64]
Model = dict[str, Array]


def map_tensors(
    vectors: Sequence[Mapping[str, Array]], merge: Callable[[list[Array]], Array]
) -> Model:
    """Merges tensor by tensor."""
    return {
        name: merge([np.asarray(model[name], dtype=np.float64) for model in vectors])
        for name in vectors[0]
    }


def map_positions(tensors: list[Array], merge: Callable[[list[float]], float]) -> Array:
    """Merges position by position."""
    columns = zip(*(tensor.ravel().tolist() for tensor in tensors), strict=True)
    return np.array([merge(list(column)) for column in columns]).reshape(tensors[0].shape)


def make_elected_mean(
    weights: Sequence[float], votes: Sequence[float], divide: bool, sign_of_zero: int
) -> Callable[[list[float]], float]:
    """TIES' elect and merge at one position. ``votes`` are the weights of the election,
    ``sign_of_zero`` is the sign of a sum of 0."""

    def merge(values: list[float]) -> float:
        vote = sum(value * weight for value, weight in zip(values, votes, strict=True))
        sign = 1 if vote > 0 else -1 if vote < 0 else sign_of_zero
        agreeing = [
            (value, weight)
            for value, weight in zip(values, weights, strict=True)
            if value * sign > 0
        ]
        total = sum(value * weight for value, weight in agreeing)
        divisor = sum(weight for _, weight in agreeing) if divide else 1.0
        return total / divisor if agreeing and divisor else 0.0

    return merge


def ties(vectors: Sequence[Model], density: float, weights: Sequence[float] | None = None) -> Model:
    """arXiv 2306.01708 as in its authors' code: one threshold per model; a sum of 0 takes the
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
    signs = map_tensors(trimmed, lambda tensors: np.sign(np.sum(tensors, axis=0)))
    total = sum(int(sign.sum()) for sign in signs.values())
    merge = make_elected_mean(weights, [1.0] * len(vectors), True, 1 if total > 0 else -1)
    return map_tensors(trimmed, lambda tensors: map_positions(tensors, merge))


def ties_like_mergekit(vectors: Sequence[Model], density: float, weights: Sequence[float]) -> Model:
    """TIES with exact counts per tensor, weights in the vote, and + for sums of 0."""

    def trim(tensor: Array) -> Array:
        order = sorted(range(tensor.size), key=lambda place: (-abs(tensor.ravel()[place]), place))
        agreeing = set(order[: max(1, int(density * tensor.size))])
        return np.array(
            [value if place in agreeing else 0.0 for place, value in enumerate(tensor.ravel())]
        ).reshape(tensor.shape)

    merge = make_elected_mean(weights, weights, True, 1)
    return map_tensors(
        vectors, lambda tensors: map_positions([trim(tensor) for tensor in tensors], merge)
    )


def breadcrumbs(vectors: Sequence[Model], density: float, gamma: float, consensus: bool) -> Model:
    """arXiv 2312.06795 with mergekit's counts: drops int(gamma n) outliers, then the smallest until
    int(density n) are left."""

    def mask(tensor: Array) -> Array:
        order = sorted(range(tensor.size), key=lambda place: (abs(tensor.ravel()[place]), place))
        keep, outliers = int(density * tensor.size), int(gamma * tensor.size)
        smallest = max(0, tensor.size - keep - outliers)
        agreeing = set(order[smallest : smallest + keep])
        return np.array(
            [value if place in agreeing else 0.0 for place, value in enumerate(tensor.ravel())]
        ).reshape(tensor.shape)

    ones = [1.0] * len(vectors)
    merge = make_elected_mean(ones, ones, False, 1) if consensus else sum
    return map_tensors(
        vectors, lambda tensors: map_positions([mask(tensor) for tensor in tensors], merge)
    )


def della_probabilities(tensor: Array, density: float, epsilon: float) -> Array:
    """arXiv 2406.11617: the probability of being kept rises linearly with the rank of the magnitude
    in its row."""
    rows = tensor.reshape(1, -1) if tensor.ndim < 2 else tensor.reshape(tensor.shape[0], -1)
    probabilities = np.empty(rows.shape)
    for row, chance in zip(rows, probabilities, strict=True):
        for place, value in enumerate(row):
            rank = sum(abs(other) < abs(value) for other in row)
            chance[place] = (
                density
                if len(row) == 1
                else density - epsilon + 2 * epsilon * rank / (len(row) - 1)
            )
    return probabilities.reshape(tensor.shape)


def slerp(vectors: Sequence[Model], t: float) -> Model:
    """Shoemake 1985, as a rotation in the plane of two tensors of equal length."""

    def rotate(tensors: list[Array]) -> Array:
        first, second = (tensor.ravel() for tensor in tensors)
        along = first / np.linalg.norm(first)
        across = second - along * (along @ second)
        across /= np.linalg.norm(across)
        angle = t * math.atan2(across @ second, along @ second)
        point = math.cos(angle) * along + math.sin(angle) * across
        return np.asarray(np.linalg.norm(first) * point).reshape(tensors[0].shape)

    return map_tensors(vectors, rotate)


def karcher(tensors: list[Array]) -> Array:
    """The direction of the smallest sum of squared angles, from a general minimiser, times the mean
    length."""
    directions = [tensor.ravel() / np.linalg.norm(tensor) for tensor in tensors]

    def cost(point: Array) -> float:
        cosines = np.clip(
            [direction @ point / np.linalg.norm(point) for direction in directions], -1.0, 1.0
        )
        return float(sum(np.arccos(cosines) ** 2))

    minimum = minimize(
        cost, directions[0] + 0.3 * directions[1], method="BFGS", options={"gtol": 1e-10}
    ).x
    length = sum(float(np.linalg.norm(tensor)) for tensor in tensors) / len(tensors)
    return np.asarray(length * minimum / np.linalg.norm(minimum)).reshape(tensors[0].shape)


def model_stock(vectors: Sequence[Model]) -> Model:
    """arXiv 2403.19522, the interpolation ratio for n models."""

    def merge(tensors: list[Array]) -> Array:
        n, cosines = len(tensors), []
        for i in range(n):
            for j in range(n):
                if i < j:
                    one, other = tensors[i].ravel(), tensors[j].ravel()
                    cosines.append(one @ other / math.sqrt((one @ one) * (other @ other)))
        c = sum(cosines) / len(cosines)
        return np.asarray(n * c / (1 + (n - 1) * c) * np.sum(tensors, axis=0) / n)

    return map_tensors(vectors, merge)


def sce(vectors: Sequence[Model], density: float) -> Model:
    """arXiv 2408.07990: select by variance, weigh by mean square, erase the minority."""

    def merge(tensors: list[Array]) -> Array:
        columns = np.array([tensor.ravel() for tensor in tensors])
        variance = [float(np.mean((column - np.mean(column)) ** 2)) for column in columns.T]
        count = int(sum(value != 0 for value in variance) * density)
        if not count:
            return np.zeros(tensors[0].shape)
        chosen = sorted(range(len(variance)), key=lambda place: -variance[place])[:count]
        selected = np.zeros_like(columns)
        selected[:, chosen] = columns[:, chosen]
        squares = [float(np.mean(row**2)) for row in selected]
        merge = make_elected_mean(
            [square / sum(squares) for square in squares], [1.0] * len(squares), True, 1
        )
        return map_positions([row.reshape(tensors[0].shape) for row in selected], merge)

    return map_tensors(vectors, merge)


def inverse_root(matrix: Array) -> Array:
    """M^(-1/2) of a positive definite matrix, by its eigenvectors."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray(vectors @ np.diag(values**-0.5) @ vectors.T)


def tsv_m(vectors: Sequence[Model]) -> Model:
    """arXiv 2412.00081: each task's first r/n singular triples, made orthogonal as A (A^T
    A)^(-1/2); other tensors averaged."""

    def merge(tensors: list[Array]) -> Array:
        if tensors[0].ndim != 2:
            return np.asarray(np.mean(tensors, axis=0))
        rank = min(tensors[0].shape) // len(tensors)
        left, right, values = [], [], []
        for tensor in tensors:
            squares, directions = np.linalg.eigh(tensor.T @ tensor)
            for place in range(1, rank + 1):
                values.append(math.sqrt(squares[-place]))
                right.append(directions[:, -place])
                left.append(tensor @ directions[:, -place] / values[-1])
        u, v = np.array(left).T, np.array(right).T
        left_basis, right_basis = u @ inverse_root(u.T @ u), v @ inverse_root(v.T @ v)
        return np.asarray(left_basis @ np.diag(values) @ right_basis.T)

    return map_tensors(vectors, merge)


def iso_c(vectors: Sequence[Model]) -> Model:
    """arXiv 2502.04959: the polar factor of the sum times its mean singular value; other tensors
    averaged."""

    def merge(tensors: list[Array]) -> Array:
        if tensors[0].ndim != 2:
            return np.asarray(np.mean(tensors, axis=0))
        total = np.sum(tensors, axis=0)
        total = total if total.shape[0] >= total.shape[1] else total.T
        root = inverse_root(total.T @ total)
        spectrum = 1 / np.linalg.eigvalsh(root)
        flat = np.asarray(total @ root * np.mean(spectrum))
        return flat if tensors[0].shape[0] >= tensors[0].shape[1] else flat.T

    return map_tensors(vectors, merge)


def wudi(vectors: Sequence[Model], steps: int, rate: float) -> Model:
    """arXiv 2503.08099 with Adam (arXiv 1412.6980, beta 0.9 and 0.999, epsilon 1e-8) written out;
    other tensors averaged."""

    def merge(tensors: list[Array]) -> Array:
        if tensors[0].ndim != 2:
            return np.asarray(np.mean(tensors, axis=0))
        m = np.sum(tensors, axis=0)
        first, second = np.zeros_like(m), np.zeros_like(m)
        for step in range(1, steps + 1):
            gradient = sum(
                2 * ((m - tensor) @ tensor.T) @ tensor / np.sum(tensor**2) for tensor in tensors
            )
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            m = m - rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        return np.asarray(m)

    return map_tensors(vectors, merge)


def regmean(tensors: list[Array], inputs: list[Array]) -> Array:
    """arXiv 2212.09849 as a least-squares problem: the layer whose outputs on all inputs are
    nearest to each donor's own."""
    rows = np.concatenate([rows / math.sqrt(len(rows)) for rows in inputs])
    targets = np.concatenate(
        [
            rows / math.sqrt(len(rows)) @ tensor.T
            for rows, tensor in zip(inputs, tensors, strict=True)
        ]
    )
    return np.asarray(np.linalg.lstsq(rows, targets, rcond=None)[0].T)
