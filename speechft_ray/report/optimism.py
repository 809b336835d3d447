"""How much better the winner of a selection on dev looks than it is, by a bootstrap over dev
utterances.

The best of N noisy values is above its own true value on average. In the world of the bootstrap the
truth is known: candidate i has the true value ``c_i``, a resample of the utterances moves its value
by ``d_i``, the highest ``c_i + d_i`` is selected, and looks ``d_i`` better than it is. All
candidates have the same utterances in a resample, so what moves all of them alike selects nothing.

``c_i`` must not be the measured values: they spread by noise already, and differences that are
noise would count as true ones (for N equal candidates the estimate would be 0.7 of the truth). They
are shrunk to their mean until their variance is what is left of the measured one without the noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from speechft_ray.core.counts import UtteranceCounts
from speechft_ray.report.effects import TestSets, add_metrics, compute_effects

RESAMPLES = 2000
"""Of the bootstrap. The estimate then varies by 1 to 3 % with the seed."""


class Optimism(NamedTuple):
    """What selection does to the value of the winner."""

    candidates: int
    excess: float
    """How much better than it is the winner is expected to look, in the unit of the objective."""


def estimate_optimism(
    candidates: Sequence[TestSets], weights: Mapping[str, float], seed: int = 0
) -> Optimism | None:
    """Returns the optimism of selecting the highest weighted sum of metrics.

    ``candidates``: the counts on dev of each, evaluation by evaluation. ``weights``: of each
    metric, above 0 where more is better. Noise of probe seeds is not part of it. ``None`` for fewer
    than two candidates, and where a metric has no counts by utterance.
    """
    if len(candidates) < 2:
        return None
    generator = np.random.default_rng(seed)
    values = np.zeros(len(candidates))
    moves = np.zeros((RESAMPLES, len(candidates)))
    weighed: set[str] = set()
    for of_evaluation in zip(*candidates, strict=True):
        sets = [[_drop_speakers(counts) for counts in one] for one in of_evaluation]
        metrics = {
            name: effects
            for name in weights
            if (effects := compute_effects(sets, name)) is not None
        }
        if not metrics:
            continue
        weighed |= set(metrics)
        together = add_metrics(metrics, weights)
        values += together.values.mean(1)
        of_utterances = together.effects.mean(1)  # (candidates, utterances)
        size = of_utterances.shape[1]
        drawn = generator.multinomial(size, np.full(size, 1 / size), RESAMPLES)
        moves += (drawn - 1.0) @ of_utterances.T
    if weighed != set(weights):
        return None
    moves -= moves.mean(1, keepdims=True)  # what moves all candidates selects none
    noise = moves.var(0).sum() / (len(candidates) - 1)
    measured = values.var(ddof=1)
    kept = max(0.0, 1.0 - noise / measured) ** 0.5 if measured else 0.0
    true_values = values.mean() + kept * (values - values.mean())
    winners = (true_values + moves).argmax(1)
    return Optimism(len(candidates), float(moves[np.arange(RESAMPLES), winners].mean()))


def _drop_speakers(counts: UtteranceCounts) -> UtteranceCounts:
    """Returns the counts with each utterance by itself."""
    return counts.model_copy(update={"speakers": (), "speaker_of": ()})
