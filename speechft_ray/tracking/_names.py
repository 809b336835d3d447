"""Names of metrics and params in trackers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from speechft_ray.sweep.protocols import EncoderRow

Point = tuple[str, float, int]
"""Name, value and step of a metric."""


def split_points(points: Iterable[tuple[int, Mapping[str, float]]]) -> list[Point]:
    """Returns the values of the points of a curve one by one; the step is the update."""
    return [(name, value, step) for step, values in points for name, value in values.items()]


def clean_name(name: str) -> str:
    """Returns a name that MLflow accepts: letters, digits, ``_ - . space : /`` (mlflow
    ``utils/validation.py``)."""
    return re.sub(r"[^A-Za-z0-9_\-. :/]", "_", name)


def name_metrics(row: EncoderRow) -> dict[str, float]:
    """Returns the numbers of a row by metric key. An ``extra`` metric keeps its name."""
    keys = {
        **{name if name == "score" else f"test.{name}": value for name, value in row.test.items()},
        **{f"test.spread.{name}": value for name, value in row.spread.items()},
        **{f"dev.{name}": value for name, value in row.dev.items()},
        **row.extra,
    }
    return {clean_name(key): value for key, value in keys.items()}
