"""What each speaker of a test set adds to a metric, from the counts of its utterances.

A metric is ``100 * sum(amounts) / sum(of)``. To first order, a speaker adds ``(100 * amounts -
metric * of) / sum(of)``; the variance of the metric over speakers is the sum of the squares. Each
is divided by the root of one minus the speaker's share of ``of``: with few speakers the metric
follows each of them, and deviations from it are too small (Bell and McCaffrey, Survey Methodology
28, 2002). Utterances without a speaker are speakers of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from speechft_ray.core.counts import UtteranceCounts
from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.score import Reference, superb_score

TestSets = Sequence[Sequence[UtteranceCounts]]
"""Counts of one encoder by evaluation, in the order of the plan: one item per test set (several are
folds), none where nothing was counted."""


@dataclass(frozen=True, kw_only=True)
class Effects:
    """A metric of one evaluation, or a weighted sum of its metrics, for several encoders."""

    values: np.ndarray
    """``(encoders, probes)``, in the unit of the metric."""
    effects: np.ndarray
    """``(encoders, probes, speakers)``, in the same unit."""
    speakers: np.ndarray
    """``(speakers,)``: identity of each speaker, int64, sorted."""
    degrees: float
    """Degrees of freedom of the sum of squares."""


def compute_effects(encoders: Sequence[Sequence[UtteranceCounts]], name: str) -> Effects | None:
    """Returns a metric of one evaluation; its value is the mean over folds.

    ``encoders``: the test sets of each. ``None`` where an encoder has no counts of the metric,
    where test sets differ, and for fewer than two speakers.
    """
    folds = len(encoders[0]) if encoders else 0
    if not folds or any(len(sets) != folds for sets in encoders):
        return None
    parts = [_compute_fold([sets[fold] for sets in encoders], name) for fold in range(folds)]
    usable = [part for part in parts if part is not None]
    if len(usable) < folds or len({part.values.shape for part in usable}) > 1:
        return None
    if folds == 1:
        return usable[0]
    speakers, places = np.unique(
        np.concatenate([part.speakers for part in usable]), return_inverse=True
    )
    together = np.concatenate([part.effects for part in usable], axis=-1) / folds
    return Effects(
        values=np.mean([part.values for part in usable], axis=0),
        effects=_add_up(together, places, len(speakers)),
        speakers=speakers,
        degrees=sum(part.degrees for part in usable),
    )


def weigh_metrics(references: Mapping[str, Reference]) -> dict[str, float]:
    """Returns how many points of the score one unit of each metric is. The score is linear in each,
    so the slopes are taken from ``superb_score`` itself."""
    zeros = {name: zero for name, (zero, _) in references.items()}
    return {
        name: superb_score({**zeros, name: zero + 1.0}, references) for name, zero in zeros.items()
    }


def list_metrics(encoders: Sequence[Sequence[UtteranceCounts]]) -> list[str]:
    """Returns the metrics that the counts of one evaluation are of."""
    first = next((counts for sets in encoders for counts in sets), None)
    return list(first.of) if first else []


def add_metrics(metrics: Mapping[str, Effects], weights: Mapping[str, float]) -> Effects:
    """Returns a weighted sum of metrics of one evaluation."""
    weighed = [(weights[name], each) for name, each in metrics.items()]
    if len(weighed) == 1:
        weight, only = weighed[0]
        return replace(only, values=weight * only.values, effects=weight * only.effects)
    speakers = np.unique(np.concatenate([each.speakers for _, each in weighed]))
    effects = np.zeros((*weighed[0][1].values.shape, len(speakers)))
    for weight, each in weighed:
        effects[..., np.searchsorted(speakers, each.speakers)] += weight * each.effects
    return Effects(
        values=np.sum([weight * each.values for weight, each in weighed], axis=0),
        effects=effects,
        speakers=speakers,
        degrees=min(each.degrees for _, each in weighed),
    )


def _compute_fold(encoders: Sequence[UtteranceCounts], name: str) -> Effects | None:
    first = encoders[0]
    probes = min(len(counts.amounts.get(name, ())) for counts in encoders)
    if not probes or any(counts.utterances != first.utterances for counts in encoders):
        return None
    # Which speaker each utterance is of; of an encoder that knows them.
    source = next((counts for counts in encoders if counts.speaker_of), first)
    speakers, places = _identify_speakers(
        source.utterances, len(first.of[name]), source.speakers, source.speaker_of
    )
    tokens = _add_up(np.asarray(first.of[name], dtype=float), places, len(speakers))
    share = tokens / max(tokens.sum(), 1.0)
    present = share > 0
    if present.sum() < 2:
        return None
    amounts = np.asarray([counts.amounts[name][:probes] for counts in encoders], dtype=float)
    sums = _add_up(amounts, places, len(speakers))[..., present]
    speakers, tokens, share = speakers[present], tokens[present], share[present]
    values = 100.0 * sums.sum(-1) / tokens.sum()
    effects = (100.0 * sums - values[..., None] * tokens) / tokens.sum() / np.sqrt(1.0 - share)
    return Effects(values=values, effects=effects, speakers=speakers, degrees=count_degrees(share))


def count_degrees(share: np.ndarray) -> float:
    """Returns Satterthwaite's degrees of freedom of the sum of squares, for speakers who differ by
    more than their utterances do; ``len(share) - 1`` where all speak equally much.

    ``share``: of each speaker, ``(speakers,)``. The sum is a quadratic form whose matrix is
    ``diag(b) - b w' - w b' + sum(b) w w'`` with the shares w and ``b = w^2 / (1 - w)``; the degrees
    are its squared trace over the trace of its square (Bell and McCaffrey 2002, section 3).
    """
    square = share**2 / (1.0 - share)
    total, own, cross, both = square.sum(), square @ square, share @ square, share @ share
    trace = total - 2 * cross + total * both
    of_square = own - 4 * (square**2 @ share) + 2 * total * (square @ share**2)
    of_square += 2 * cross**2 + 2 * own * both - 4 * total * cross * both + (total * both) ** 2
    return max(1.0, float(trace**2 / of_square))


@lru_cache(maxsize=64)
def _identify_speakers(
    utterances: str, size: int, speakers: tuple[str, ...], speaker_of: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the identities of the speakers, sorted, and the place of each utterance's."""
    identities = _hash(utterances) + np.arange(size)
    if speaker_of:
        of = np.asarray(speaker_of)
        identities = np.where(
            of >= 0, np.asarray([_hash(name) for name in speakers])[of], identities
        )
    unique, places = np.unique(identities, return_inverse=True)
    return unique, places


def _hash(name: str) -> int:
    """Returns a number of 62 bits for a name; numbers sort faster than names."""
    return int(fingerprint(name), 16) >> 2


def _add_up(values: np.ndarray, places: np.ndarray, size: int) -> np.ndarray:
    """Adds ``values`` ``(..., items)`` up by place; returns ``(..., size)``."""
    flat = values.reshape(-1, values.shape[-1])
    rows = np.arange(len(flat))[:, None] * size
    sums = np.bincount((rows + places).ravel(), flat.ravel(), minlength=len(flat) * size)
    return sums.reshape(*values.shape[:-1], size)
