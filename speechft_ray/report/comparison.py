"""Compares the winner with the controls, and derives the headline of a report from that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from speechft_ray.core.metrics import METRICS
from speechft_ray.report.effects import TestSets, list_metrics
from speechft_ray.report.intervals import Interval, estimate_difference
from speechft_ray.report.lines import (
    CONTROLS,
    Role,
    TableLine,
    Value,
    dev_score,
    find_winner,
    metric_title,
)
from speechft_ray.report.uncertainty import Estimate


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The winner against a control, in points of the score on test.

    The two are called different when the interval of the difference excludes 0.
    """

    control: TableLine
    difference: float
    interval: Interval | None = None
    """Of the difference over other test speakers and other seeds (``report.uncertainty``). It holds
    together with those of the other comparisons in 95 % of sweeps. ``None`` without counts."""
    seeds: int = 0
    """Fine-tuning seeds that are compared."""
    is_partial: bool = False
    """Whether a line has more fine-tuning seeds, which the other one lacks."""
    scope: tuple[str, ...] = ()
    """What the interval does not generalise from: ``this encoder``, ``this probe``."""

    @property
    def verdict(self) -> str:
        """Whether the two are different, in words."""
        if self.interval is None:
            return "not judged: not every metric has counts"
        low, high = self.interval
        is_different = low > 0 or high < 0
        scope = f" for {' and '.join(self.scope)}" if is_different and self.scope else ""
        over = f" over the {self.seeds} seeds of both" if self.is_partial else ""
        word = "different" if is_different else "not different"
        return f"{word}{scope}: 95 % interval {low:+.2f} to {high:+.2f}{over}"

    def sentence(self) -> str:
        """Returns the comparison as the end of a sentence: ``7.33 above pre-trained (...)``."""
        way = "above" if self.difference >= 0 else "below"
        return f"{abs(self.difference):.2f} {way} {self.control.title} ({self.verdict})"


def compare_with_controls(lines: Sequence[TableLine]) -> list[Comparison]:
    """Compares the winner's test score with each control; of several controls of one role with the
    one whose parameters are most like the winner's."""
    best = find_winner(lines)
    if best is None or best.score is None:
        return []
    roles = [role for role in CONTROLS if role != best.role]  # a search can choose a control
    controls = [control for role in roles if (control := find_control(lines, best, role))]
    pairs = [_pair(best, control) for control in controls]
    estimates = [estimate_difference(*pair, best.references) for pair in pairs]
    judged = sum(result is not None for result in estimates)
    return [
        _compare(best, control, pair, result, judged)
        for control, pair, result in zip(controls, pairs, estimates, strict=True)
    ]


def compare_lines(first: TableLine, second: TableLine, judged: int = 1) -> Comparison | None:
    """Compares the test scores of two lines, ``first`` less ``second``; ``None`` where one has no
    score. The interval holds together with those of ``judged`` comparisons."""
    if first.score is None or second.score is None:
        return None
    pair = _pair(first, second)
    return _compare(first, second, pair, estimate_difference(*pair, first.references), judged)


def estimate_lines(first: TableLine, second: TableLine) -> tuple[int, Estimate | None]:
    """Estimates the difference of two lines on test; returns the number of fine-tuning seeds that
    are compared, too."""
    pair = _pair(first, second)
    return len(pair[0]), estimate_difference(*pair, first.references)


def headline(lines: Sequence[TableLine]) -> str:
    """Returns the result of the sweep in a few sentences of plain text."""
    best = find_winner(lines)
    if best is None:
        if untuned := [note for line in lines for note in line.untuned]:
            return f"No merge could be chosen; {untuned[0]}."
        if any(line.unscored for line in lines):
            return "No merge has a score, so none could be chosen; a sentence below says why."
        tuned = [line for line in lines if line.role == "stable fine-tuning"]
        if tuned and not any(line.role in ("merge", "prediction") for line in lines):
            return (
                "Every merge has alpha 1, which is a control, so none could be chosen: add an "
                "alpha below 1."
            )
        return "No merge has a dev score yet, so none could be chosen."
    if best.score is None:
        return f"Dev chose {best.title}, which has no test score{'' if best.unscored else ' yet'}."
    spread = f" ± {best.spread['score']:.2f}" if "score" in best.spread else ""
    text = f"Best merge, chosen on dev: {best.title}. It scores {best.score:.2f}{spread} on test"
    comparisons = compare_with_controls(lines)
    parts = [item.sentence() for item in comparisons]
    text = f"{text}: {', and '.join(parts)}." if parts else f"{text}; no control has a score yet."
    more = [*_explain_selection(best), *_preferred_controls(lines), *_limits(best, comparisons)]
    return " ".join([text, *more])


def _explain_selection(best: TableLine) -> list[str]:
    """Returns a sentence where the winner was selected on test."""
    if not best.dev_is_test:
        return []
    names = " and ".join(map(metric_title, best.dev_is_test))
    sentence = f"Dev of {names} is the test set, as in s3prl, so this choice has seen it"
    return [f"{sentence}: `options: {{protocol: clean}}` of the evaluation selects on dev."]


def _preferred_controls(lines: Sequence[TableLine]) -> list[str]:
    """Returns a sentence where dev prefers a control to every merge."""
    scored = [line for line in lines if "score" in line.dev_mean]
    merges = [line for line in scored if line.role == "merge" or line.chosen]
    best = max(map(dev_score, merges), default=math.inf)
    better = [
        f"{line.title} ({dev_score(line):.2f})"
        for line in scored
        if line.role in CONTROLS and not line.chosen and dev_score(line) > best
    ]
    if not better:
        return []
    verb = "scores" if len(better) == 1 else "score"
    return [f"On dev {' and '.join(better)} {verb} higher than every merge ({best:.2f})."]


def _limits(best: TableLine, comparisons: Sequence[Comparison]) -> list[str]:
    """Returns what the intervals are about and what they are not."""
    judged = [item for item in comparisons if item.interval is not None]
    if not judged:
        return []
    scopes = {part for item in judged for part in item.scope}
    sentences = ["Both intervals hold together with 95 %."] if len(judged) > 1 else []
    if "this encoder" in scopes:
        sentences.append(
            "With one fine-tuning seed this is about this encoder, not about the recipe."
        )
    if "this probe" in scopes:
        sentences.append("With one probe seed it is about this probe; others may differ.")
    if nameless := _metrics_without_speakers(list(best.tests.values())):
        sentences.append(
            f"The speakers of {', '.join(nameless)} are not known: utterances count as "
            "independent, which makes intervals too narrow where a speaker has several."
        )
    return sentences


def _compare(
    best: TableLine,
    control: TableLine,
    pair: tuple[Sequence[TestSets], Sequence[TestSets]],
    result: Estimate | None,
    judged: int,
) -> Comparison:
    difference = (best.score or 0.0) - (control.score or 0.0)
    if result is None:
        return Comparison(control=control, difference=difference)
    low, high = result.interval(judged)
    seeds, is_pretrained = len(pair[0]), control.role == "pre-trained"
    is_partial = seeds < max(best.count, 0 if is_pretrained else control.count)
    one_probe = _count_probes(pair[0]) == 1 and (seeds == 1 or is_pretrained)
    return Comparison(
        control=control,
        difference=float(result.difference) if is_partial else difference,
        interval=(float(low), float(high)),
        seeds=seeds,
        is_partial=is_partial,
        scope=tuple(
            name
            for name, applies in (("this encoder", seeds == 1), ("this probe", one_probe))
            if applies
        ),
    )


def find_control(lines: Sequence[TableLine], best: TableLine, role: Role) -> TableLine | None:
    """Returns the control of a role with a score whose parameters are most like the winner's."""
    return max(
        (line for line in lines if line.role == role and line.score is not None),
        key=lambda line: (-_differences(line.params, best.params), dev_score(line)),
        default=None,
    )


def _pair(best: TableLine, control: TableLine) -> tuple[list[TestSets], list[TestSets]]:
    """Returns the encoders to compare, pairs of one fine-tuning seed: those that both lines have.
    Lines without a common seed are paired in the order of their seeds, which are independent."""
    first, second = best.tests, control.tests
    if control.role == "pre-trained":  # without a fine-tuning seed: one encoder for all
        return list(first.values()), list(second.values())[:1]
    if common := [seed for seed in first if seed in second]:
        return [first[seed] for seed in common], [second[seed] for seed in common]
    count = min(len(first), len(second))
    return list(first.values())[:count], list(second.values())[:count]


def _count_probes(encoders: Sequence[TestSets]) -> int:
    """Returns the number of probe seeds, the lowest of all evaluations."""
    return min(
        (
            len(seeds)
            for tests in encoders
            for sets in tests
            for counts in sets
            for seeds in counts.amounts.values()
        ),
        default=0,
    )


def _metrics_without_speakers(encoders: Sequence[TestSets]) -> list[str]:
    """Returns the titles of the metrics whose test sets name no speaker."""
    names = {
        name
        for tests in encoders[:1]
        for sets in tests
        if sets and not any(counts.speaker_of for counts in sets)
        for name in list_metrics([sets])
    }
    return [metric_title(name) for name in METRICS if name in names]


def _differences(first: Mapping[str, Value], second: Mapping[str, Value]) -> int:
    return sum(first.get(name) != second.get(name) for name in {*first, *second})
