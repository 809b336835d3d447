"""The SUPERB score: every metric on a common scale, averaged over tasks, times 1000."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from speechft_ray.core.errors import UserError
from speechft_ray.core.metrics import is_better, metric

Reference = tuple[float, float]
"""The values of one metric that count as 0 and as 1, in the metric's unit."""


def superb_score(values: Mapping[str, float], references: Mapping[str, Reference]) -> float:
    """Returns the SUPERB score of metric values, by metric name, each in its unit.

    A metric counts (value - zero) / (one - zero), which needs no case for its direction; a task
    counts the mean of its metrics, the score is 1000 times the mean of the tasks (SUPERB challenge,
    arXiv 2210.08634; references of Speech-FT, arXiv 2502.12672, Table 15). Not clamped: a model can
    be below 0 or above 1000.

    Raises ``UserError`` when there is no value, for a metric without references, and for two
    references that are equal.
    """
    if not values:
        raise UserError("there is no metric to make a SUPERB score of: evaluate at least one task.")
    missing = sorted(set(values) - set(references))
    if missing:
        raise UserError(_no_references(missing))
    shares: dict[str, list[float]] = {}
    for name, value in values.items():
        zero, one = references[name]
        if zero == one:
            raise UserError(
                f"metric `{name}` has {zero:g} as the value that counts as 0 and as the one that "
                "counts as 1000: state another value for it under `score.topline`."
            )
        shares.setdefault(metric(name).task, []).append((value - zero) / (one - zero))
    return 1000.0 * _mean([_mean(task) for task in shares.values()])


def explain_unscored(name: str, reference: Reference | None, split: str) -> str | None:
    """Returns why a metric cannot be part of the score on a split, ``None`` where it can.

    The value that counts as 1000 must be better than the one that counts as 0: equal values leave
    no scale, and with a better zero the score would fall as the metric improves.
    """
    start = f"{metric(name).title} is not part of the score"
    if reference is None:
        return f"{start}: the evaluation that counts as 0 has no value of it on {split}."
    zero, one = reference
    if not math.isfinite(zero):
        return f"{start}: the value that counts as 0 is not a finite number on {split}."
    if not is_better(name, one, than=zero):
        return (
            f"{start}: the value that counts as 0 is {zero:g} on {split}, and the one that counts "
            f"as 1000, {one:g}, is no better. State a better one under `score.topline`, or take a "
            "harder task."
        )
    return None


def paper_references(names: Iterable[str]) -> dict[str, Reference]:
    """Returns the references of metrics in the paper (Speech-FT, arXiv 2502.12672, Table 15: FBank,
    SOTA).

    Raises ``UserError`` naming the metrics for which the paper has none.
    """
    references: dict[str, Reference] = {}
    missing: list[str] = []
    for name in names:
        item = metric(name)
        if item.fbank is None or item.sota is None:
            missing.append(name)
        else:
            references[name] = (item.fbank, item.sota)
    if missing:
        raise UserError(_no_references(missing))
    return references


def _no_references(names: list[str]) -> str:
    return (
        f"no reference values are known for {', '.join(f'`{name}`' for name in names)}: "
        "set `score.zero: measured` and state the value of each metric that counts as 1000 under "
        "`score.topline`."
    )


def _mean(numbers: list[float]) -> float:
    return math.fsum(numbers) / len(numbers)
