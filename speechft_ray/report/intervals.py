"""Computes intervals of test metrics by a bootstrap over utterances. Its draws are the same for
every encoder, so that differences are paired.

A draw takes as many utterances of a test set as it has, with replacement (Efron and Tibshirani, An
Introduction to the Bootstrap, 1993; for error rates: Bisani and Ney, ICASSP 2004). Test sets are
drawn independently of each other. The intervals exclude the variation between probe or fine-tuning
seeds: counts are averaged over seeds, and the spread reports that variation.
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
"""Share of the draws that an interval contains."""
AT_ONCE = 50
"""Draws in one matrix product; their weights for 10 000 utterances are 4 MB."""

TestSets = Sequence[Sequence[UtteranceCounts]]
"""Counts of one encoder by evaluation, in the order of the plan: one item per test set (several are
folds), none where nothing was counted."""

Interval = tuple[float, float]

_LIST = TypeAdapter(list[UtteranceCounts])


def read_counts(plan: Plan, store: Store) -> dict[str, TestSets]:
    """Returns the counts of all complete rows by merged encoder; counts that cannot be read are
    left out."""
    complete = [
        row
        for row in plan.rows
        if all(store.is_complete("evaluate", key) for key in row.evaluations)
    ]
    return {row.key: [_read_evaluation(store, key) for key in row.evaluations] for row in complete}


def bootstrap(
    lines: Sequence[Sequence[TestSets]], references: Mapping[str, Reference]
) -> list[dict[str, np.ndarray]]:
    """Returns the resampled values of each line: by metric, and of the ``score``, ``(DRAWS,)`` in
    their units.

    A line is the encoders that it averages. A metric is missing without counts, and where its
    utterances differ from those of the first line. The score needs every metric of ``references``.
    A draw is NaN for a metric of which it has no reference token.
    """
    resampled: list[dict[str, np.ndarray]] = [{} for _ in lines]
    evaluations = max((len(tests) for line in lines for tests in line), default=0)
    for place in range(evaluations):
        test_sets = [[tests[place] for tests in line] for line in lines]
        metrics = _resample_evaluation(test_sets, place)
        for values, of_line in zip(resampled, metrics, strict=True):
            values.update(of_line)
    for values in resampled:
        if references and all(name in values for name in references):
            values["score"] = _score(values, references)
    return resampled


def percentile_interval(values: np.ndarray) -> Interval:
    """Returns the ends of the middle ``PERCENT`` of resampled values."""
    tail = (100 - PERCENT) / 200
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _read_evaluation(store: Store, key: str) -> list[UtteranceCounts]:
    try:
        return _LIST.validate_json((store.folder("evaluate", key) / COUNTS_FILE).read_bytes())
    except (OSError, ValidationError):  # an evaluation without counts, or of an older version
        return []


def _resample_evaluation(
    lines: Sequence[Sequence[Sequence[UtteranceCounts]]], seed: int
) -> list[dict[str, np.ndarray]]:
    """Resamples each test set of one evaluation; several are folds, whose mean is the metric."""
    folds = max((len(sets) for line in lines for sets in line), default=0)
    has_all_folds = [bool(line) and all(len(sets) == folds for sets in line) for line in lines]
    by_fold = [
        _resample_test_set(
            [
                [sets[fold] for sets in line] if complete else []
                for line, complete in zip(lines, has_all_folds, strict=True)
            ],
            [seed, fold],
        )
        for fold in range(folds)
    ]
    return [
        {
            name: sum(values[name] for values in of_line) / folds
            for name in of_line[0]
            if all(name in values for values in of_line)
        }
        for of_line in zip(*by_fold, strict=True)
    ] or [{} for _ in lines]


def _resample_test_set(
    lines: Sequence[Sequence[UtteranceCounts]], seed: Sequence[int]
) -> list[dict[str, np.ndarray]]:
    """Resamples one test set for all lines at once."""
    first = next((encoder for line in lines for encoder in line), None)
    resampled: list[dict[str, np.ndarray]] = [{} for _ in lines]
    if first is None:
        return resampled
    # One column per line and metric: amounts per utterance, averaged over seeds and encoders.
    same_utterances = [
        bool(line) and all(encoder.utterances == first.utterances for encoder in line)
        for line in lines
    ]
    columns = [
        (
            place,
            name,
            np.mean([amounts for encoder in line for amounts in encoder.amounts[name]], axis=0),
        )
        for place, line in enumerate(lines)
        if same_utterances[place]
        for name in first.of
    ]
    amounts = np.stack([column for _, _, column in columns], axis=1)  # (utterances, columns)
    # One column per metric: reference tokens per utterance.
    tokens = np.stack(
        [np.asarray(first.of[name], dtype=float) for name in first.of], axis=1
    )  # (utterances, metrics)
    # One matrix product has the sums of all columns in a draw.
    both = np.concatenate([amounts, tokens], axis=1)
    sums = np.concatenate([weights @ both for weights in _weights(len(amounts), seed)])
    totals = dict(zip(first.of, sums[:, len(columns) :].T, strict=True))
    for (place, name, _), amount in zip(columns, sums.T, strict=False):
        total = totals[name]
        resampled[place][name] = 100.0 * np.divide(
            amount, total, out=np.full(len(amount), np.nan), where=total > 0
        )
    return resampled


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
    """Returns the score of every draw. The score is linear in each metric, so its slopes are taken
    from ``superb_score`` itself."""
    zeros = {name: zero for name, (zero, _) in references.items()}
    score = np.zeros(DRAWS)
    for name, zero in zeros.items():
        slope = superb_score({**zeros, name: zero + 1.0}, references)
        score += slope * (values[name] - zero)
    return score
