"""How often is `different` wrong? Simulated sweeps whose encoders are equal, judged as the headline
judges them.

    python benchmarks/uncertainty.py [--sweeps 4000]

In each sweep a merge is compared with the pre-trained encoder and with stable fine-tuning. A score
has an effect of its fine-tuning seed, one of its probe (a part of which is noise of single
utterances), and one of each speaker of the test set, so that the difference of two encoders has a
standard error of 7 (a small test set) or 2 (a large one). With one fine-tuning seed the truth is
that of the encoder, with one probe seed that of the probe, as the headline says.

Columns, in percent of the sweeps: a false `different` in the headline; both intervals cover the
truth; the 95 % interval of one comparison alone covers it, with the pre-trained encoder and with
stable fine-tuning; the earlier rule's false `different` (a difference above the spread over seeds,
and an interval over utterances without 0), of encoders whose recipes are equal; and an interval
of the comparison with the pre-trained encoder that is above 0.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import NamedTuple

import numpy as np

from speechft_ray.report.effects import count_degrees
from speechft_ray.report.power import Spread, make_spread
from speechft_ray.report.uncertainty import Components, Estimate, Part, estimate

NUMBERS_AT_ONCE = 2_000_000
"""In one array of the simulation."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """One kind of sweep. Effects are standard deviations in points of the score."""

    tunings: int = 3
    probes: int = 3
    speakers: int = 48
    utterances: int = 20
    """Of each speaker, on average."""
    sigma: float = 0.0
    """Of the log-normal numbers of utterances; 0: all speakers have equally many."""
    correlation: float = 0.3
    """Of two utterances of one speaker, in the difference of two encoders."""
    tasks: int = 1
    tuning: float = 8.0
    probe: float = 8.0
    noise: float = 0.4
    """Part of the probes' variance that is noise of single utterances. 0.4 in the default sweep."""
    error: float = 7.0
    """Standard error over speakers of the difference of two encoders with the same seeds."""
    difference: float = 0.0
    """By which the merge is truly better than both controls."""
    candidates: int = 1
    """Equal merges, of which dev selects one. Dev is as large as test."""


class Shares(NamedTuple):
    """Rates of a design over its simulated sweeps, in percent."""

    false: float
    both: float
    pretrained: float
    stable: float
    old: float
    power: float
    """The interval of the comparison with the pre-trained encoder alone is above 0."""


@dataclass(kw_only=True)
class _Line:
    """Simulated scores of one line of the table. Axes: sweeps, tasks, tunings, probes, speakers."""

    tuning: np.ndarray
    probe: np.ndarray
    values: np.ndarray = field(default_factory=lambda: np.zeros(()))
    effects: np.ndarray = field(default_factory=lambda: np.zeros(()))


def simulate(design: Design, sweeps: int, random: np.random.Generator) -> Shares:
    """Judges simulated sweeps of one design."""
    sizes = _draw_sizes(design, random)
    numbers = design.tasks * design.tunings * design.probes * design.speakers * design.candidates
    at_once = max(1, NUMBERS_AT_ONCE // numbers)
    counts = [min(at_once, sweeps - start) for start in range(0, sweeps, at_once)]
    judged = np.concatenate([_judge(design, sizes, n, random) for n in counts], axis=1)
    both, *others = 100 * judged.mean(axis=1)
    return Shares(100 - both, both, *others)


def simulate_spread(design: Design, sweeps: int, random: np.random.Generator) -> Spread:
    """Returns the mean spread of the differences between a merge and the pre-trained encoder."""
    sizes = _draw_sizes(design, random)
    numbers = design.tasks * design.tunings * design.probes * design.speakers
    at_once = max(1, NUMBERS_AT_ONCE // numbers)
    components: list[Components] = []
    for start in range(0, sweeps, at_once):
        count = min(at_once, sweeps - start)
        best, control = (_draw_line(design, sizes, count, random, x) for x in (True, False))
        result = _estimate(design, sizes, best, control, shared_probes=True)
        components.append(result.components)
    joined = Components(*map(np.concatenate, zip(*components, strict=True)))
    return make_spread(joined, design.tunings)


def _judge(
    design: Design, sizes: np.ndarray, sweeps: int, random: np.random.Generator
) -> np.ndarray:
    """Returns whether both intervals, and each alone, cover the truth, whether the earlier rule
    says different, and whether the first interval is above 0: ``(5, sweeps)``."""
    best = _select_on_dev(design, sizes, sweeps, random)
    best.values = best.values + design.difference / design.tasks
    powers: list[np.ndarray] = []
    covered: list[np.ndarray] = []
    alone: list[np.ndarray] = []
    old = np.zeros(sweeps, dtype=bool)
    for is_tuned in (False, True):
        control = _draw_line(design, sizes, sweeps, random, is_tuned)
        result = _estimate(design, sizes, best, control, shared_probes=not is_tuned)
        truth = np.zeros((sweeps, design.tasks, design.tunings, design.probes))
        if design.tunings == 1:
            truth = truth + best.tuning - control.tuning
        if design.probes == 1 and design.tunings == 1:
            truth = truth + best.probe
        if design.probes == 1 and (design.tunings == 1 or not is_tuned):
            truth = truth - control.probe
        true = truth.mean((2, 3)).sum(1) + design.difference
        powers.append(result.interval()[0] > 0)
        for intervals, comparisons in ((covered, 2), (alone, 1)):
            low, high = result.interval(comparisons)
            intervals.append((low <= true) & (true <= high))
        old |= _differs_by_the_earlier_rule(design, sizes, best, control, result.difference)
    return np.array([np.all(covered, axis=0), *alone, old, powers[0]])


def _draw_sizes(design: Design, random: np.random.Generator) -> np.ndarray:
    """Returns the number of utterances of each speaker."""
    sizes = np.full(design.speakers, float(design.utterances))
    if design.sigma:
        spread = random.lognormal(-(design.sigma**2) / 2, design.sigma, design.speakers)
        sizes = np.ceil(sizes * spread)
    return sizes


def _estimate(
    design: Design, sizes: np.ndarray, best: _Line, control: _Line, shared_probes: bool
) -> Estimate:
    values, effects = best.values - control.values, best.effects - control.effects
    degrees = count_degrees(sizes / sizes.sum())
    parts = [Part(values[:, task], effects[:, task], degrees) for task in range(design.tasks)]
    return estimate(parts, shared_probes)


def _select_on_dev(
    design: Design, sizes: np.ndarray, sweeps: int, random: np.random.Generator
) -> _Line:
    """Returns the best of the candidates on dev, which shares their seeds and has other
    utterances."""
    best = _draw_line(design, sizes, sweeps, random, True)
    best_dev = np.full(sweeps, -np.inf)
    for _ in range(design.candidates if design.candidates > 1 else 0):
        line = _draw_line(design, sizes, sweeps, random, True)
        dev = (line.tuning + line.probe).mean((2, 3)).sum(1)
        dev += random.normal(0, design.error / 2**0.5, sweeps)
        better = dev > best_dev
        best_dev = np.maximum(dev, best_dev)
        for name in ("tuning", "probe", "values", "effects"):
            getattr(best, name)[better] = getattr(line, name)[better]
    return best


def _draw_line(
    design: Design, sizes: np.ndarray, sweeps: int, random: np.random.Generator, is_tuned: bool
) -> _Line:
    """Draws a line whose expected score is 0; tasks have equal parts in its variance."""
    scale = design.tasks**-0.5
    shape = (sweeps, design.tasks, design.tunings if is_tuned else 1, design.probes)
    tuning = random.normal(0, 1, (sweeps, 1, shape[2], 1)) / design.tasks
    line = _Line(
        tuning=tuning * (design.tuning if is_tuned else 0.0),
        probe=random.normal(0, design.probe * (1 - design.noise) ** 0.5 * scale, shape),
    )
    # The mean of each speaker: a part that all seeds share, and noise of single utterances.
    share = sizes / sizes.sum()
    variance = design.correlation + (1 - design.correlation) / sizes
    variance *= (design.error * scale) ** 2 / 2 / (share**2 * variance).sum()
    noise = design.noise * (design.probe * scale) ** 2 / sizes / (share**2 / sizes).sum()
    common_shape = (sweeps, design.tasks, 1, 1, design.speakers)
    means = random.normal(0, 1, common_shape) * variance**0.5
    if design.noise:
        means = means + random.normal(0, 1, (*shape, design.speakers)) * noise**0.5
    average = (means * share).sum(-1)
    line.values = line.tuning + line.probe + average
    effects = (means - average[..., None]) * share / np.sqrt(1 - share)
    line.effects = np.array(np.broadcast_to(effects, (*shape, design.speakers)))
    return line


def _differs_by_the_earlier_rule(
    design: Design, sizes: np.ndarray, best: _Line, control: _Line, difference: np.ndarray
) -> np.ndarray:
    """Whether the difference exceeds the spread over seeds, and the interval over utterances, each
    drawn on its own, excludes 0."""
    spreads = []
    for line in (best, control):
        scores = line.values.sum(1)
        if scores.shape[1] > 1:
            spreads.append(scores.mean(2).std(axis=1, ddof=1))
        elif design.probes > 1:
            spreads.append(scores[:, 0].std(axis=1, ddof=1))
    if len(spreads) < 2:
        return np.zeros(len(difference), dtype=bool)
    share = sizes / sizes.sum()
    variance = (share**2 * (design.correlation + (1 - design.correlation) / sizes)).sum()
    half = 1.96 * design.error * (1 / sizes.sum() / variance) ** 0.5
    return np.asarray((np.abs(difference) > np.hypot(*spreads)) & (np.abs(difference) > half))


def list_designs() -> Iterator[Design]:
    """Yields the designs of the table."""
    seeds = list(product((1, 3, 5), (1, 3)))
    for (tunings, probes), error, speakers, tuning in product(
        seeds, (7.0, 2.0), (10, 48, 1000), (0.0, 4.0, 8.0)
    ):
        if tunings > 1 or not tuning:  # with one seed its effect is part of the truth
            utterances = 2 if speakers == 1000 else 20
            yield Design(
                tunings=tunings,
                probes=probes,
                speakers=speakers,
                utterances=utterances,
                tuning=tuning,
                error=error,
            )
    base = Design()
    for noise, error, (tunings, probes) in product((0.0, 1.0), (7.0, 2.0), seeds):
        tuning = 0.0 if noise else base.tuning
        yield replace(base, noise=noise, error=error, tunings=tunings, probes=probes, tuning=tuning)
    for tunings, probes in seeds:
        changed = replace(base, tunings=tunings, probes=probes)
        yield replace(changed, sigma=0.7)
        yield replace(changed, tasks=4)
        yield replace(changed, candidates=4)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sweeps", type=int, default=4000)
    sweeps = parser.parse_args().sweeps
    header = ["tunings", "probes", "speakers", "error", "tuning", "noise", "other", *Shares._fields]
    print(f"| {' | '.join(header)} |\n|{' ---: |' * len(header)}")
    base = Design()
    for place, design in enumerate(list_designs()):
        shares = simulate(design, sweeps, np.random.default_rng(place))
        other = ", ".join(
            f"{name} {getattr(design, name)}"
            for name in ("sigma", "tasks", "candidates")
            if getattr(design, name) != getattr(base, name)
        )
        facts = [design.tunings, design.probes, design.speakers, design.error, design.tuning]
        cells = [*map("{:g}".format, [*facts, design.noise]), other, *map("{:.1f}".format, shares)]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
