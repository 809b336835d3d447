"""Compares the winner with the controls, and derives the headline of a report from that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from speechft_ray.report.intervals import Interval, percentile_interval
from speechft_ray.report.lines import Role, TableLine, Value, dev_score, find_winner

CONTROLS: tuple[Role, Role] = ("pre-trained", "stable fine-tuning")
"""What the winner is compared with."""


def compare_with_control(lines: Sequence[TableLine], role: Role) -> Comparison | None:
    """Compares the winner's test score with that of a control; of several controls with the one
    whose parameters are most like the winner's."""
    best = find_winner(lines)
    if best is None or best.score is None:
        return None
    control = max(
        (line for line in lines if line.role == role and line.score is not None),
        key=lambda line: (-_differences(line.params, best.params), dev_score(line)),
        default=None,
    )
    if control is None or control.score is None:
        return None
    spreads = [line.spread["score"] for line in (best, control) if "score" in line.spread]
    resampled = [line.resampled["score"] for line in (best, control) if "score" in line.resampled]
    return Comparison(
        control=control,
        difference=best.score - control.score,
        spread=math.hypot(*spreads) if len(spreads) == 2 else None,
        interval=percentile_interval(resampled[0] - resampled[1]) if len(resampled) == 2 else None,
    )


def headline(lines: Sequence[TableLine]) -> str:
    """Returns the result of the sweep in one or two sentences of plain text."""
    best = find_winner(lines)
    if best is None and any(line.unscored for line in lines):
        return "No merge has a score, so none could be chosen; a sentence below says why."
    if best is None:
        return "No merge has a dev score yet, so none could be chosen."
    if best.score is None:
        return f"Dev chose {best.title}, which has no test score{'' if best.unscored else ' yet'}."
    spread = f" ± {best.spread['score']:.2f}" if "score" in best.spread else ""
    text = f"Best merge, chosen on dev: {best.title}. It scores {best.score:.2f}{spread} on test"
    comparisons = [compare_with_control(lines, role) for role in CONTROLS]
    parts = [item.sentence() for item in comparisons if item is not None]
    return f"{text}: {', and '.join(parts)}." if parts else f"{text}; no control has a score yet."


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The winner against a control, in points of the score on test.

    The two are called different when the difference exceeds the spread over seeds, and its 95 %
    interval over test utterances excludes 0: the first asks whether other seeds would agree, the
    second whether other utterances would.
    """

    control: TableLine
    difference: float
    spread: float | None
    """Standard deviation of the difference: the root of the sum of both squared spreads; ``None``
    if either is unknown."""
    interval: Interval | None = None
    """Of the difference over test utterances, paired: each draw is the same for both; ``None``
    where there are no counts."""

    @property
    def verdict(self) -> str:
        """Whether the difference exceeds the spread and the interval, in words."""
        if self.spread is None:
            return "spread not known: one seed only"
        if abs(self.difference) <= self.spread:
            return "within the spread"
        if self.interval is None:
            return "more than the spread, interval not known"
        low, high = self.interval
        reason = f"more than the spread, 95 % interval {low:+.2f} to {high:+.2f}"
        return f"different: {reason}" if low > 0 or high < 0 else f"not different: {reason}"

    def sentence(self) -> str:
        """Returns the comparison as the end of a sentence: ``7.33 above pre-trained (...)``."""
        way = "above" if self.difference >= 0 else "below"
        return f"{abs(self.difference):.2f} {way} {self.control.title} ({self.verdict})"


def _differences(first: Mapping[str, Value], second: Mapping[str, Value]) -> int:
    return sum(first.get(name) != second.get(name) for name in {*first, *second})
