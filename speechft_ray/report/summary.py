"""From encoder rows to the lines of the result table, and from those to the answer of the sweep.

Rows that differ only in their fine-tuning seed are one line. The winner is the merge with the best
dev score; what is told of it is its test score. Alpha 0 (pre-trained) and alpha 1 (stable
fine-tuning) are controls and cannot win.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from speechft_ray.core.metrics import METRICS
from speechft_ray.report.intervals import Interval, TestSets, bootstrap, percentile_interval
from speechft_ray.sweep.protocols import EncoderRow, Leak

Value = str | float | int
Role = Literal["pre-trained", "stable fine-tuning", "merge"]
SpreadOver = Literal["fine-tuning seeds", "probe seeds", "nothing"]


def group_rows(
    rows: Iterable[EncoderRow], expected: Iterable[str] = (), chosen: str | None = None
) -> list[TableLine]:
    """Returns the lines of the table: best test score first, lines without a score last.

    ``expected`` names test metrics that every row should have, beside those that any row has; it
    tells what an incomplete row still lacks. ``chosen`` is the encoder that a search chose, by its
    own objectives; else the best dev score chooses.
    """
    members = _members(rows)
    wanted = {name for group in members for row in group for name in row.metrics} | set(expected)
    wanted = {name for name in wanted if not name.startswith("spread.")}
    found = [_group(group, wanted) for group in members]
    best = max(
        (group for group in found if group.role == "merge" and "dev.score" in group.mean),
        key=_dev_score,
        default=None,
    )
    if chosen is not None:
        best = next(
            (group for group in found if any(row.key == chosen for row in group.rows)), None
        )
    vary = varying_params(found)
    titled = [replace(group, title=_title(group, vary), chosen=group is best) for group in found]
    return sorted(
        _disambiguate(titled),
        key=lambda group: (
            not group.count,
            group.score is None,
            -(group.score or 0.0),
            group.title,
        ),
    )


def add_intervals(
    lines: Sequence[TableLine],
    tests: Mapping[str, TestSets],
    references: Mapping[str, tuple[float, float]],
) -> list[TableLine]:
    """Returns the lines with what a bootstrap over test utterances makes of them, drawn for all
    lines together.

    ``tests`` has what was counted of each encoder; a line with a complete encoder that is not in it
    gets no interval.
    """
    keys = [[row.key for row in group.rows if row.complete] for group in lines]
    found = bootstrap(
        [
            [tests[key] for key in line] if all(key in tests for key in line) else []
            for line in keys
        ],
        references,
    )
    return [replace(group, resampled=values) for group, values in zip(lines, found, strict=True)]


def add_leaks(lines: Sequence[TableLine], leaks: Mapping[str, Sequence[Leak]]) -> list[TableLine]:
    """Returns the lines with the leaks of their encoders."""
    mine = [
        dict.fromkeys(leak for row in group.rows for leak in leaks.get(row.key, ()))
        for group in lines
    ]
    return [replace(group, leaks=tuple(found)) for group, found in zip(lines, mine, strict=True)]


def varying_params(lines: Iterable[TableLine]) -> list[str]:
    """Names of the parameters, other than alpha, whose values differ between the lines (pre-trained
    has none of them)."""
    tuned = [group.params for group in lines if group.role != "pre-trained"]
    names = list(dict.fromkeys(name for params in tuned for name in params if name != "alpha"))
    return [name for name in names if len({params.get(name) for params in tuned}) > 1]


def describe_params(params: Mapping[str, Value], names: Sequence[str]) -> str:
    """Returns the named parameters as text, for example ``linear, narrow-phones, anchor_penalty
    0.01``."""
    plain = ("method", "finetune")
    return ", ".join(
        format_value(params[name]) if name in plain else f"{name} {format_value(params[name])}"
        for name in names
        if name in params
    )


def format_value(value: Value) -> str:
    """Returns a parameter as people write it: ``0.25``, ``1e-05``, ``linear``."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def metric_title(name: str) -> str:
    """Returns the column title of a metric, a dev metric or the score."""
    if name.startswith("dev."):
        return f"dev {metric_title(name.removeprefix('dev.'))}"
    return METRICS[name].title if name in METRICS else name


def metric_names(lines: Sequence[TableLine]) -> list[str]:
    """Returns the test metrics that any line has, in the order of the metric table, unknown ones
    last; without the score."""
    present = {name for group in lines for name in group.mean if not name.startswith("dev.")} - {
        "score"
    }
    return [name for name in METRICS if name in present] + sorted(present - set(METRICS))


def find_winner(lines: Sequence[TableLine]) -> TableLine | None:
    """Returns the merge that dev chose, or ``None`` while no merge has a dev score."""
    return next((group for group in lines if group.chosen), None)


def compare_with_control(lines: Sequence[TableLine], role: Role) -> Comparison | None:
    """Compares the winner's test score with a control; among several controls, the one most like
    the winner."""
    best = find_winner(lines)
    if best is None or best.score is None:
        return None
    control = max(
        (group for group in lines if group.role == role and group.score is not None),
        key=lambda group: (-_differences(group.params, best.params), _dev_score(group)),
        default=None,
    )
    if control is None or control.score is None:
        return None
    spreads = [group.spread["score"] for group in (best, control) if "score" in group.spread]
    return Comparison(
        control=control,
        difference=best.score - control.score,
        spread=math.hypot(*spreads) if len(spreads) == 2 else None,
        interval=percentile_interval(best.resampled["score"] - control.resampled["score"])
        if "score" in best.resampled and "score" in control.resampled
        else None,
    )


def headline(lines: Sequence[TableLine]) -> str:
    """Returns the answer of the sweep in one or two sentences of plain text."""
    best = find_winner(lines)
    if best is None:
        return "No merge has a dev score yet, so none could be chosen."
    if best.score is None:
        return f"Dev chose {best.title}, which has no test score yet."
    spread = f" ± {best.spread['score']:.2f}" if "score" in best.spread else ""
    text = f"Best merge, chosen on dev: {best.title}. It scores {best.score:.2f}{spread} on test"
    parts = [
        item.sentence()
        for role in _CONTROLS
        if (item := compare_with_control(lines, role)) is not None
    ]
    return f"{text}: {', and '.join(parts)}." if parts else f"{text}; no control has a score yet."


@dataclass(frozen=True, kw_only=True)
class TableLine:
    """One line of the table: the same merge of fine-tuning runs that differ in their seed alone."""

    params: Mapping[str, Value]
    """Without ``seed``; of the pre-trained encoder ``alpha`` alone, since nothing else touches
    it."""
    role: Role
    rows: tuple[EncoderRow, ...]
    """All encoders of the line, incomplete ones included."""
    count: int
    """Encoders that are complete. Means and spreads are over these (over what there is when none is
    complete)."""
    mean: Mapping[str, float]
    """Means by metric name, ``score``, ``dev.<metric>`` and ``dev.score``. Scores only of complete
    encoders."""
    spread: Mapping[str, float]
    """Sample standard deviations under the same names; a name is absent where one number is all
    there is."""
    spread_over: SpreadOver
    """What ``spread`` was taken over: fine-tuning seeds when there are two or more, else probe
    seeds."""
    missing: tuple[str, ...]
    """What incomplete encoders lack, for example ``seed 1: PR PER, SID ACC``."""
    stopped: tuple[str, ...] = ()
    """Why other encoders will not be complete: runs that they need were stopped early."""
    title: str = ""
    chosen: bool = False
    """Whether this is the merge with the best dev score."""
    leaks: tuple[Leak, ...] = ()
    """What its fine-tuning runs have seen of the test sets."""
    resampled: Mapping[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)
    """Test metrics and the score in each draw of the bootstrap (``report.intervals``), the same
    draws for all lines."""

    def leaked(self, name: str) -> bool:
        """Whether a test metric, or the score, was measured on something that fine-tuning has
        seen."""
        tasks = {leak.task for leak in self.leaks}
        return bool(tasks) if name == "score" else name in METRICS and METRICS[name].task in tasks

    def interval(self, name: str) -> Interval | None:
        """Returns the 95 % interval over test utterances, or ``None`` where nothing was counted."""
        return percentile_interval(self.resampled[name]) if name in self.resampled else None

    @property
    def alpha(self) -> float | None:
        return _alpha(self.params)

    @property
    def score(self) -> float | None:
        """Mean SUPERB score on test."""
        return self.mean.get("score")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The winner against a control, in points of the score on test.

    They are called different when the difference is more than the spread over seeds, and its
    interval over test utterances leaves out 0 as well: the first tells whether other seeds would
    say so, the second whether other utterances would.
    """

    control: TableLine
    difference: float
    spread: float | None
    """Standard deviation of the difference: the root of the sum of both squared spreads; ``None``
    if either is unknown."""
    interval: Interval | None = None
    """Of the difference, over test utterances, paired: each draw is the same for both; ``None``
    where nothing was counted."""

    @property
    def verdict(self) -> str:
        if self.spread is None:
            return "spread not known: one seed only"
        if abs(self.difference) <= self.spread:
            return "within the spread"
        if self.interval is None:
            return "more than the spread, interval not known"
        low, high = self.interval
        told = f"more than the spread, 95 % interval {low:+.2f} to {high:+.2f}"
        return f"different: {told}" if low > 0 or high < 0 else f"not different: {told}"

    def sentence(self) -> str:
        way = "above" if self.difference >= 0 else "below"
        return f"{abs(self.difference):.2f} {way} {self.control.title} ({self.verdict})"


_SCORES = {"score", "dev.score"}
_CONTROLS: tuple[Role, Role] = ("pre-trained", "stable fine-tuning")


def _members(rows: Iterable[EncoderRow]) -> list[list[EncoderRow]]:
    """Rows that belong on one line. Two rows of equal parameters *and* seed are not seeds of one
    thing: they stay apart."""
    unique = {row.key: row for row in rows}
    found: dict[tuple[object, int], dict[object, EncoderRow]] = {}
    for row in unique.values():
        params = tuple(sorted(_line_params(row).items(), key=lambda item: item[0]))
        seed: object = row.key if _role(row) == "pre-trained" else row.params.get("seed")
        place = 0
        while seed in found.get((params, place), {}):
            place += 1
        found.setdefault((params, place), {})[seed] = row
    return [list(line.values()) for line in found.values()]


def _group(rows: Sequence[EncoderRow], wanted: Iterable[str]) -> TableLine:
    complete = [row for row in rows if row.complete]
    used = complete or rows
    role = _role(rows[0])
    names = [name for name in wanted if complete or name not in _SCORES]
    values = {name: [row.metrics[name] for row in used if name in row.metrics] for name in names}
    values = {name: numbers for name, numbers in values.items() if numbers}
    over_runs = len(used) > 1 and role != "pre-trained"
    if over_runs:
        spread = {
            name: statistics.stdev(numbers) for name, numbers in values.items() if len(numbers) > 1
        }
    else:  # the pre-trained encoder never saw a fine-tuning seed, so copies of it tell nothing about that spread
        probes = {
            name: [row.metrics[f"spread.{name}"] for row in used if f"spread.{name}" in row.metrics]
            for name in values
        }
        spread = {name: statistics.fmean(numbers) for name, numbers in probes.items() if numbers}
    return TableLine(
        params=_line_params(rows[0]),
        role=role,
        rows=tuple(rows),
        count=len(complete),
        mean={name: math.fsum(numbers) / len(numbers) for name, numbers in values.items()},
        spread=spread,
        spread_over=("fine-tuning seeds" if over_runs else "probe seeds") if spread else "nothing",
        missing=tuple(
            _missing(row, wanted) for row in rows if not row.complete and not row.stopped
        ),
        stopped=tuple(f"{_place(row)}{row.stopped}" for row in rows if row.stopped),
    )


def _missing(row: EncoderRow, wanted: Iterable[str]) -> str:
    lacking = {name for name in wanted if name not in row.metrics} - _SCORES
    known = [name for base in METRICS for name in (base, f"dev.{base}") if name in lacking]
    titles = [metric_title(name) for name in [*known, *sorted(lacking - set(known))]]
    return _place(row) + (", ".join(titles) or "an evaluation")


def _place(row: EncoderRow) -> str:
    return f"seed {row.params['seed']}: " if "seed" in row.params else ""


def _line_params(row: EncoderRow) -> dict[str, Value]:
    if _role(row) == "pre-trained":
        return {"alpha": row.params["alpha"]}
    return {name: value for name, value in row.params.items() if name != "seed"}


def _role(row: EncoderRow) -> Role:
    if "trial" in row.params:  # what a search proposed is no control, whatever its outer alpha
        return "merge"
    alpha = _alpha(row.params)
    return "pre-trained" if alpha == 0 else "stable fine-tuning" if alpha == 1 else "merge"


def _alpha(params: Mapping[str, Value]) -> float | None:
    value = params.get("alpha")
    return None if value is None or isinstance(value, str) else float(value)


def _differences(first: Mapping[str, Value], second: Mapping[str, Value]) -> int:
    return sum(first.get(name) != second.get(name) for name in {*first, *second})


def _dev_score(group: TableLine) -> float:
    return group.mean.get("dev.score", -math.inf)


def _title(group: TableLine, vary: Sequence[str]) -> str:
    if group.role == "pre-trained":
        return "pre-trained"
    start = (
        f"alpha {format_value(group.params['alpha'])}"
        if group.role == "merge" and "alpha" in group.params
        else group.role
    )
    rest = describe_params(group.params, vary)
    return f"{start}, {rest}" if rest else start


def _disambiguate(lines: Sequence[TableLine]) -> list[TableLine]:
    """Adds the start of the fingerprint to titles that would occur twice."""
    titles = [group.title for group in lines]
    return [
        replace(group, title=f"{group.title} [{group.rows[0].key[:8]}]")
        if titles.count(group.title) > 1
        else group
        for group in lines
    ]
