"""The axis ``alpha: {curve: 21, encode: [0, 0.5, 1], verify: 3}``: a curve over alpha of which a
few points are encoded, the others predicted, and the best predictions verified."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeGuard

from speechft_ray.core.errors import unknown_name
from speechft_ray.core.validation import AxisError, Steps

ENCODE = (0.0, 0.5, 1.0)
"""Alphas that are encoded unless stated: three, since features bend with alpha."""
VERIFY = 3
"""Predicted merges that are verified unless stated."""
FEWEST = 3
"""Alphas of the shortest curve."""
MOST = 10_000
"""Alphas of the longest curve."""

_KEYS = ("curve", "encode", "verify")
_DECIMALS = 6
"""Alphas are rounded to these, so that 0.15 of a curve is the merge of a listed 0.15."""


class AlphaCurve(NamedTuple):
    """The points of a curve."""

    encode: tuple[float, ...]
    """Alphas that are merged, encoded and evaluated, in rising order."""
    predict: tuple[float, ...]
    """The other alphas, evenly spaced between the first and the last of ``encode``."""
    verify: int
    """How many of ``predict``, the best on dev, are then merged, encoded and evaluated."""

    @property
    def alphas(self) -> list[float]:
        """All alphas in rising order."""
        return sorted({*self.encode, *self.predict})

    def mark(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Returns a merge entry with one of these alphas, marked as a prediction if it is one."""
        if entry["alpha"] in self.encode:
            return entry
        return {**entry, "predicted_from": list(self.encode), "verify": self.verify}


def is_curve(value: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a value is meant as this axis."""
    return isinstance(value, dict) and "curve" in value


def read_curve(value: dict[str, Any], path: Steps) -> AlphaCurve:
    """Returns the curve of an axis at ``path``. Raises ``AxisError``."""
    unknown = [key for key in value if key not in (*_KEYS, "knots")]
    if path != ("alpha",):
        raise AxisError(
            path,
            "has a `curve`, which only `alpha` of a merge can have: alpha moves the weights on a "
            "straight line, on which features can be interpolated. List values with `grid` "
            "instead.",
        )
    count, encode = value["curve"], value.get("encode", list(ENCODE))
    if "knots" in value or isinstance(count, list):
        raise AxisError(
            path,
            "`{curve: [low, high], knots: 4}` is an axis of `search`, with one number per layer; "
            "in a list of merges `curve` is the number of alphas: `{curve: 21}`.",
        )
    if unknown:
        raise AxisError(path, unknown_name("part of a curve", str(unknown[0]), _KEYS))
    if type(count) is not int or not FEWEST <= count <= MOST:
        raise AxisError(
            (*path, "curve"),
            f"must be a whole number from {FEWEST} to {MOST}, the alphas of the curve, but is "
            f"{count!r} instead.",
        )
    points = encode if isinstance(encode, list) else []
    numbers = [float(one) for one in points if type(one) in (int, float) and 0 <= one <= 1]
    if len(set(numbers)) < 2 or len(set(numbers)) < len(points):
        raise AxisError(
            (*path, "encode"),
            f"must be at least two different alphas within [0, 1], but is {encode!r} instead.",
        )
    low, high = min(numbers), max(numbers)
    even = [round(low + (high - low) * place / (count - 1), _DECIMALS) for place in range(count)]
    predict = tuple(alpha for alpha in even if alpha not in numbers and low < alpha < high)
    if not predict:
        raise AxisError(
            path, "leaves no alpha to predict: raise `curve`, or list the alphas with `grid`."
        )
    verify = value.get("verify", min(VERIFY, len(predict)))
    if type(verify) is not int or not 1 <= verify <= len(predict):
        raise AxisError(
            (*path, "verify"),
            f"must be a whole number from 1 to {len(predict)}, the alphas that are predicted, but "
            f"is {verify!r} instead.",
        )
    return AlphaCurve(tuple(sorted(numbers)), predict, verify)
