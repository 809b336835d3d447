"""Scores by alpha, one series for each set of the other parameters: never a mean over lambda,
method or donor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from speechft_ray.sweep.protocols import EncoderRow
from speechft_ray.sweep.titles import row_title

AlphaSeries = Mapping[str, Sequence[tuple[float, float]]]
"""Pairs of alpha and score by the title of their series, by rising alpha."""

NOT_IN_SERIES = ("alpha", "seed")


def list_alpha_series(rows: Sequence[EncoderRow]) -> AlphaSeries:
    """Returns the test scores of the rows by alpha, means over fine-tuning seeds alone.

    A series with a merge starts at the pre-trained encoder, which is alpha 0 of all of them; that
    of a later stage of a chain, which interpolates with an earlier merge, starts at its smallest
    alpha. What was fine-tuned and not merged (alpha 1 alone) is one point.
    """
    scores: dict[str, dict[float, list[float]]] = {}
    pretrained: list[float] = []
    later_stages: set[str] = set()
    for row in rows:
        alpha = row.params.get("alpha")
        if "score" not in row.test or not isinstance(alpha, int | float):
            continue
        if row.params.get("method") == "none":
            pretrained.append(row.test["score"])
            continue
        others = {name: value for name, value in row.params.items() if name not in NOT_IN_SERIES}
        title = row_title(others).replace("=", " ")
        scores.setdefault(title, {}).setdefault(float(alpha), []).append(row.test["score"])
        if ">" in str(row.params.get("finetune", "")):  # only titles of chains have one
            later_stages.add(title)
    for title, by_alpha in scores.items():
        if pretrained and title not in later_stages and set(by_alpha) != {1.0}:
            by_alpha.setdefault(0.0, pretrained)
    return {
        title: [
            (alpha, math.fsum(values) / len(values)) for alpha, values in sorted(points.items())
        ]
        for title, points in scores.items()
    }
