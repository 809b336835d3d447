"""Estimates how far a difference of two encoders would vary with other seeds and other test
speakers.

A difference has a value for each fine-tuning seed and probe seed, and each value is a sum over the
speakers of the test sets. Seeds, probes and speakers are crossed random effects, so the variance of
the mean is a sum of components, each estimated from the differences themselves:

- speakers: a sum of squares over speakers, as of a cluster-robust regression (Bell and McCaffrey,
  Survey Methodology 28, 2002: "bias reduced linearization"), which is exact for clusters of equal
  size;
- fine-tuning seeds: the sample variance over seeds, which holds the noise of their probes, too;
- probe seeds: the same over probes, where all fine-tuning seeds share the probes of a side.

The sum is compared with a t distribution of Satterthwaite's degrees of freedom (Biometrics
Bulletin 2, 1946). Spreads over seeds are measured on the same utterances as the mean and so hold
utterance noise that the first component has already: ``NOISE_SHARE`` of it is taken off, not below
0. Two or three seeds say little about their variance, and where it comes out small by chance,
Satterthwaite's degrees of freedom are too many: ``CAUTION`` weights it. Both constants are from
``benchmarks/uncertainty.py``; docs/superb.md has the coverage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

NOISE_SHARE = 0.5
"""Share of the utterance noise that is taken off a spread over seeds. With 1 coverage falls to 90 %
for three seeds and a large test set, with 0 it rises to 99 % where seeds differ in noise alone."""
CAUTION = 2.0
"""Weight of a spread over seeds in the degrees of freedom."""


class Part(NamedTuple):
    """What one evaluation adds to a difference of scores, in points. Leading axes are
    simulations."""

    values: np.ndarray
    """``(..., tunings, probes)``: the difference by fine-tuning seed and probe seed."""
    effects: np.ndarray
    """``(..., tunings, probes, speakers)``: what each speaker adds to the deviation of a value from
    that of all speakers (``report.effects``); zero in sum, up to the correction for few
    speakers."""
    degrees: float
    """Degrees of freedom of the sum over speakers."""
    places: np.ndarray | None = None
    """``(speakers,)``: identity of each speaker, as a number; equal ones in two evaluations are one
    speaker. ``None``: the evaluations share no speaker."""


class Components(NamedTuple):
    """What the variance of a mean difference is made of, in points squared."""

    speakers: np.ndarray
    speaker_degrees: np.ndarray
    """Degrees of freedom of ``speakers``."""
    tunings: np.ndarray
    """Falls with the number of fine-tuning seeds."""
    probes: np.ndarray
    """Of probes that do not average out over fine-tuning seeds."""
    probe_degrees: np.ndarray


class Estimate(NamedTuple):
    """A difference with its standard error; arrays over the leading axes of the parts."""

    difference: np.ndarray
    error: np.ndarray
    degrees: np.ndarray
    components: Components

    def interval(self, comparisons: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ends of an interval; those of so many comparisons hold together with at least
        95 % (Bonferroni)."""
        half = -stdtrit(self.degrees, 0.025 / comparisons) * self.error
        return self.difference - half, self.difference + half


def estimate(parts: Sequence[Part], shared_probes: bool) -> Estimate:
    """Estimates the sum of the parts and its standard error.

    ``shared_probes``: whether one side has the same probes for every fine-tuning seed, as the
    pre-trained encoder has. Without it the spread over two or more fine-tuning seeds holds the
    noise of all probes. With one fine-tuning seed or one probe seed, the estimate is about that
    seed.
    """
    tunings = parts[0].values.shape[-2]
    mean = sum((part.values.mean((-2, -1)) for part in parts), start=np.zeros(()))
    # Speakers: effects are averaged over seeds, and added up over evaluations.
    averages = [part.effects.mean((-3, -2)) for part in parts]
    variance = weighted = _sum_squares(averages, parts)
    alone = [(average**2).sum(-1) for average in averages]
    squares = sum(own**2 / part.degrees for own, part in zip(alone, parts, strict=True))
    # Speakers that evaluations share change the variance, not its degrees of freedom.
    squares = squares * (variance / np.maximum(sum(alone), 1e-300)) ** 2
    nothing = np.zeros_like(variance)
    components = Components(variance, _divide(variance**2, squares), nothing, nothing, nothing)
    # Fine-tuning seeds: one spread of the whole score, since evaluations share the encoder.
    if tunings > 1:
        seeds = sum((part.values.mean(-1) for part in parts), start=np.zeros(()))
        deviations = [_center(part.effects.mean(-2), -2) for part in parts]
        noise = _sum_squares(deviations, parts).sum(-1) / (tunings - 1)
        component = np.maximum(seeds.var(-1, ddof=1) - NOISE_SHARE * noise, 0) / tunings
        components = components._replace(tunings=component)
        variance = variance + component
        weighted = weighted + CAUTION * component
        squares = squares + (CAUTION * component) ** 2 / (tunings - 1)
    # Probe seeds: a spread of each evaluation, since its probes are its own.
    probed = [part for part in parts if part.values.shape[-1] > 1]
    if probed and (tunings == 1 or shared_probes):
        caution = CAUTION if tunings == 1 else 1.0
        spreads = [_probe_variance(part) for part in probed]
        interactions = [_interaction_variance(part) for part in probed]
        component = np.maximum(sum(spreads) - sum(interactions), 0)
        variance = variance + component
        weighted = weighted + caution * component
        before = squares
        for part, spread in zip(probed, spreads, strict=True):
            freedom = part.values.shape[-1] - 1
            squares = squares + (caution * np.maximum(spread, 0)) ** 2 / freedom
        degrees = _divide((caution * component) ** 2, squares - before)
        components = components._replace(probes=component, probe_degrees=degrees)
    degrees = np.maximum(_divide(weighted**2, squares), 1.0)
    return Estimate(mean, np.sqrt(variance), degrees, components)


def _divide(weighted: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Returns degrees of freedom; as good as endless where nothing varies."""
    many = np.full_like(weighted, 1e9)
    return np.asarray(np.divide(weighted, squares, out=many, where=squares > 0))


def _probe_variance(part: Part) -> np.ndarray:
    """Returns the variance of a mean over probe seeds, less the noise of its utterances."""
    probes = part.values.shape[-1]
    noise = (_center(part.effects.mean(-3), -2) ** 2).sum((-2, -1)) / (probes - 1)
    spread = part.values.mean(-2).var(-1, ddof=1) - NOISE_SHARE * noise
    return np.asarray(spread / probes)


def _interaction_variance(part: Part) -> np.ndarray:
    """Returns what the probes of single fine-tuning seeds add to ``_probe_variance``."""
    tunings, probes = part.values.shape[-2:]
    if tunings == 1:
        return np.zeros(part.values.shape[:-2])
    values = _center(_center(part.values, -1), -2)
    noise = _center(_center(part.effects, -2), -3)
    total = (values**2).sum((-2, -1)) - NOISE_SHARE * (noise**2).sum((-3, -2, -1))
    return np.asarray(total / ((tunings - 1) * (probes - 1) * tunings * probes))


def _sum_squares(effects: Sequence[np.ndarray], parts: Sequence[Part]) -> np.ndarray:
    """Adds the effects ``(..., speakers)`` of each speaker over evaluations, and returns the sum of
    their squares over speakers."""
    alone = [
        (own**2).sum(-1) for own, part in zip(effects, parts, strict=True) if part.places is None
    ]
    shared = [
        (own, part.places)
        for own, part in zip(effects, parts, strict=True)
        if part.places is not None
    ]
    if shared:
        size = 1 + max(int(places.max()) for _, places in shared)
        total = np.zeros((*shared[0][0].shape[:-1], size))
        for own, places in shared:
            total[..., places] += own
        alone.append((total**2).sum(-1))
    return np.asarray(np.sum(alone, axis=0))


def _center(values: np.ndarray, axis: int) -> np.ndarray:
    return np.asarray(values - values.mean(axis, keepdims=True))
