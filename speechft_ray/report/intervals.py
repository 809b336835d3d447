"""Intervals of test metrics: bootstrap over utterances, the same draws for every encoder, so that
differences are paired.

A draw takes as many utterances of a test set as it has, with replacement (Efron and Tibshirani, An
Introduction to the Bootstrap, 1993; for error rates: Bisani and Ney, ICASSP 2004). Test sets are
drawn independently of each other. What varies between probe or fine-tuning seeds is not in it:
amounts are averaged over seeds, and the spread tells of those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from pydantic import TypeAdapter, ValidationError

from speechft_ray.core.counts import COUNTS_FILE, UtteranceCounts
from speechft_ray.core.score import Reference, superb_score
from speechft_ray.core.store import Store
from speechft_ray.sweep.plan import Plan

DRAWS = 1000
"""Usual for percentile intervals (Efron and Tibshirani, section 19.3)."""
PERCENT = 95
"""Of the draws that lie in an interval."""
AT_ONCE = 50
"""Draws of one matrix product: 50 of 10 000 utterances are 4 MB."""

TestSets = Sequence[Sequence[UtteranceCounts]]
"""Of one encoder: by evaluation in the order of the plan, its test sets; none where nothing was
counted."""

Interval = tuple[float, float]

_LIST = TypeAdapter(list[UtteranceCounts])


def read_counts(plan: Plan, store: Store) -> dict[str, TestSets]:
    """Returns what was counted, by merged encoder, for the rows that are complete. What cannot be
    read is left out."""
    complete = [
        row
        for row in plan.rows
        if all(store.is_complete("evaluate", key) for key in row.evaluations)
    ]
    return {row.key: [_counted(store, key) for key in row.evaluations] for row in complete}


def bootstrap(
    lines: Sequence[Sequence[TestSets]], references: Mapping[str, Reference]
) -> list[dict[str, np.ndarray]]:
    """Returns the drawn values of each line: by metric, and of the ``score``, ``(DRAWS,)`` in their
    units.

    A line is the encoders that it averages. A metric without counts, or measured on other
    utterances than that of the first line, is missing; the score is there when every metric of
    ``references`` is. A draw in which a metric has no reference token at all is not a number.
    """
    found: list[dict[str, np.ndarray]] = [{} for _ in lines]
    evaluations = max((len(tests) for line in lines for tests in line), default=0)
    for place in range(evaluations):
        for values, mine in zip(
            found,
            _of_evaluation([[tests[place] for tests in line] for line in lines], place),
            strict=True,
        ):
            values.update(mine)
    for values in found:
        if references and all(name in values for name in references):
            values["score"] = _score(values, references)
    return found


def percentile_interval(values: np.ndarray) -> Interval:
    """Returns the middle ``PERCENT`` of drawn values."""
    tail = (100 - PERCENT) / 200
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _counted(store: Store, key: str) -> list[UtteranceCounts]:
    try:
        return _LIST.validate_json((store.folder("evaluate", key) / COUNTS_FILE).read_bytes())
    except (OSError, ValidationError):  # an evaluation without counts, or one of an older version
        return []


def _of_evaluation(
    lines: Sequence[Sequence[Sequence[UtteranceCounts]]], seed: int
) -> list[dict[str, np.ndarray]]:
    """Draws each test set of one evaluation; several are folds, whose mean is the metric."""
    folds = max((len(sets) for line in lines for sets in line), default=0)
    whole = [bool(line) and all(len(sets) == folds for sets in line) for line in lines]
    by_fold = [
        _of_test_set(
            [
                [sets[fold] for sets in line] if fits else []
                for line, fits in zip(lines, whole, strict=True)
            ],
            [seed, fold],
        )
        for fold in range(folds)
    ]
    return [
        {
            name: sum(fold[name] for fold in mine) / folds
            for name in mine[0]
            if all(name in fold for fold in mine)
        }
        for mine in zip(*by_fold, strict=True)
    ] or [{} for _ in lines]


def _of_test_set(
    lines: Sequence[Sequence[UtteranceCounts]], seed: Sequence[int]
) -> list[dict[str, np.ndarray]]:
    """Draws one test set for all lines at once; one matrix product has every sum of a draw."""
    known = next((encoder for line in lines for encoder in line), None)
    found: list[dict[str, np.ndarray]] = [{} for _ in lines]
    if known is None:
        return found
    fits = [
        bool(line) and all(encoder.utterances == known.utterances for encoder in line)
        for line in lines
    ]
    columns = [
        (
            place,
            name,
            np.mean([amounts for encoder in line for amounts in encoder.amounts[name]], axis=0),
        )
        for place, line in enumerate(lines)
        if fits[place]
        for name in known.of
    ]
    amounts = np.stack([column for _, _, column in columns], axis=1)  # (utterances, columns)
    of = np.stack(
        [np.asarray(known.of[name], dtype=float) for name in known.of], axis=1
    )  # (utterances, metrics)
    sums = np.concatenate(
        [
            weights @ np.concatenate([amounts, of], axis=1)
            for weights in _weights(len(amounts), seed)
        ]
    )
    totals = dict(zip(known.of, sums[:, len(columns) :].T, strict=True))
    for (place, name, _), wrong in zip(columns, sums.T, strict=False):
        total = totals[name]
        found[place][name] = 100.0 * np.divide(
            wrong, total, out=np.full(len(wrong), np.nan), where=total > 0
        )
    return found


def _weights(count: int, seed: Sequence[int]) -> Iterator[np.ndarray]:
    """Yields how often each utterance is drawn, ``(AT_ONCE, count)``, for ``DRAWS`` draws in
    all."""
    random = np.random.default_rng(list(seed))
    for _ in range(0, DRAWS, AT_ONCE):
        places = random.integers(count, size=(AT_ONCE, count)) + count * np.arange(AT_ONCE)[:, None]
        yield (
            np.bincount(places.ravel(), minlength=AT_ONCE * count)
            .reshape(AT_ONCE, count)
            .astype(float)
        )


def _score(values: Mapping[str, np.ndarray], references: Mapping[str, Reference]) -> np.ndarray:
    """Returns the score of every draw: it is a sum over metrics, whose slopes the score itself
    tells."""
    zeros = {name: zero for name, (zero, _) in references.items()}
    found = np.zeros(DRAWS)
    for name, zero in zeros.items():
        slope = superb_score({**zeros, name: zero + 1.0}, references)
        found += slope * (values[name] - zero)
    return found
