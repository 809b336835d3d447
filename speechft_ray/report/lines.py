"""Groups encoder rows into the lines of the result table and marks the winner.

Rows that differ only in their fine-tuning seed are one line. The winner is the merge with the best
dev score of those with the most complete seeds: a mean over fewer seeds varies more, so that the
best would often be a lucky one. Alpha 0 (pre-trained) and alpha 1 (stable fine-tuning) are controls
and cannot win, nor can a merge whose fine-tuning changed nothing (``stages.untuned``), nor a
prediction (``sweep.predictions``): that would be the merge which verifies it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from speechft_ray.core.metrics import METRICS
from speechft_ray.report.effects import TestSets
from speechft_ray.report.intervals import Interval, compute_intervals
from speechft_ray.sweep.predictions import is_prediction
from speechft_ray.sweep.protocols import EncoderRow, Leak
from speechft_ray.sweep.titles import PREDICTED_FROM, format_value, name_param

Value = str | float | int
Role = Literal["pre-trained", "stable fine-tuning", "merge", "prediction"]
CONTROLS: tuple[Role, Role] = ("pre-trained", "stable fine-tuning")
"""What the winner is compared with."""
SpreadOver = Literal["fine-tuning seeds", "probe seeds", "nothing"]


def group_rows(
    rows: Iterable[EncoderRow], expected: Iterable[str] = (), winner: str | None = None
) -> list[TableLine]:
    """Returns the lines of the table: best test score first, lines without a score last.

    ``expected`` names test metrics that every row should have, besides those that any row has; what
    a row lacks of them is in ``TableLine.missing``. ``winner`` is the encoder that a search
    selected by its own objectives; without it the best dev score selects.
    """
    # Rows become lines.
    groups = _group_by_seed(rows)
    expected_test = {name for group in groups for row in group for name in row.test} | set(expected)
    expected_dev = {name for group in groups for row in group for name in row.dev}
    lines = [
        _line(group, () if is_prediction(group[0].params) else expected_test, expected_dev)
        for group in groups
    ]
    # The winner is marked.
    best = _select_winner(lines, winner)
    # Lines are titled by what differs between them, and sorted.
    names = varying_params(lines)
    titled = [replace(line, title=_title(line, names), chosen=line is best) for line in lines]
    return sorted(
        _disambiguate(titled),
        key=lambda line: (
            not line.count,
            line.score is None,
            -(line.score or 0.0),
            line.title,
        ),
    )


def add_intervals(
    lines: Sequence[TableLine],
    tests: Mapping[str, TestSets],
    references: Mapping[str, tuple[float, float]],
) -> list[TableLine]:
    """Returns the lines with their counts on test and the intervals that follow from them.

    ``tests`` has the counts of each encoder by its key. A line with a complete encoder that is not
    in it gets none.
    """
    by_seed = [
        {str(row.params.get("seed", "")): row.key for row in line.rows if row.complete}
        for line in lines
    ]
    counts = [
        {seed: tests[key] for seed, key in keys.items()}
        if all(key in tests for key in keys.values())
        else {}
        for keys in by_seed
    ]
    return [
        replace(
            line,
            tests=of_line,
            intervals=compute_intervals(list(of_line.values()), references) if of_line else {},
            references=references,
        )
        for line, of_line in zip(lines, counts, strict=True)
    ]


def add_leaks(lines: Sequence[TableLine], leaks: Mapping[str, Sequence[Leak]]) -> list[TableLine]:
    """Returns the lines with the leaks of their encoders."""
    by_line = [
        dict.fromkeys(leak for row in line.rows for leak in leaks.get(row.key, ()))
        for line in lines
    ]
    return [
        replace(line, leaks=tuple(of_line)) for line, of_line in zip(lines, by_line, strict=True)
    ]


def varying_params(lines: Iterable[TableLine]) -> list[str]:
    """Returns the names of the parameters whose values differ between the fine-tuned lines; alpha
    is left out."""
    tuned = [line.params for line in lines if line.role != "pre-trained"]
    left_out = ("alpha", PREDICTED_FROM)  # a prediction has a role of its own
    names = list(dict.fromkeys(name for params in tuned for name in params if name not in left_out))
    return [name for name in names if len({params.get(name) for params in tuned}) > 1]


def describe_params(params: Mapping[str, Value], names: Sequence[str]) -> str:
    """Returns the named parameters as text, for example ``linear, narrow-phones, lambda
    0.01``."""
    plain = ("method", "finetune")
    return ", ".join(
        format_value(params[name])
        if name in plain
        else f"{name_param(name)} {format_value(params[name])}"
        for name in names
        if name in params
    )


def metric_title(name: str) -> str:
    """Returns the column title of a metric; an unknown metric is its own title."""
    return METRICS[name].title if name in METRICS else name


def metric_names(lines: Sequence[TableLine]) -> list[str]:
    """Returns the test metrics that any line has, in the order of the metric table, unknown ones
    last; without the score."""
    present = {name for line in lines for name in line.mean} - {"score"}
    return [name for name in METRICS if name in present] + sorted(present - set(METRICS))


def find_winner(lines: Sequence[TableLine]) -> TableLine | None:
    """Returns the line that was selected on dev, or ``None`` while no merge has a dev score."""
    return next((line for line in lines if line.chosen), None)


@dataclass(frozen=True, kw_only=True)
class TableLine:
    """One line of the table: merges that differ only in the seed of their fine-tuning runs."""

    params: Mapping[str, Value]
    """Without ``seed``; only ``alpha`` for the pre-trained encoder, since nothing else affects
    it."""
    role: Role
    rows: tuple[EncoderRow, ...]
    """All encoders of the line, incomplete ones included."""
    count: int
    """Number of complete encoders. Means and spreads are over these, or over all encoders when
    none is complete."""
    mean: Mapping[str, float]
    """Means on test by metric name, and ``score``, which only complete encoders have."""
    dev_mean: Mapping[str, float]
    """The same on dev."""
    spread: Mapping[str, float]
    """Sample standard deviations on test; a name is absent where there is only one number."""
    dev_spread: Mapping[str, float]
    """The same on dev, over fine-tuning seeds only."""
    spread_over: SpreadOver
    """What the spreads are over: fine-tuning seeds if there are two or more, else probe seeds."""
    missing: tuple[str, ...]
    """What incomplete encoders lack, for example ``seed 1: PR PER, SID ACC``."""
    unscored: tuple[str, ...] = ()
    """Why metrics are not part of the score, or why encoders have none."""
    stopped: tuple[str, ...] = ()
    """Why other encoders stay incomplete: fine-tuning runs that they need were stopped early."""
    title: str = ""
    chosen: bool = False
    """Whether this line is the winner."""
    leaks: tuple[Leak, ...] = ()
    """Overlaps of its fine-tuning data with test sets."""
    untuned: tuple[str, ...] = ()
    """Which fine-tuning runs of its encoders changed nothing, and why."""
    unlearnt: tuple[str, ...] = ()
    """Which fine-tuning runs of its encoders learnt next to nothing."""
    dev_is_test: tuple[str, ...] = ()
    """Metrics that take part in selecting the winner and whose dev set is their test set."""
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """95 % intervals of test metrics and of the score over other test speakers."""
    tests: Mapping[str, TestSets] = field(default_factory=dict, compare=False, repr=False)
    """Counts on test of the complete encoders, by fine-tuning seed; empty where they are not
    known."""
    references: Mapping[str, tuple[float, float]] = field(
        default_factory=dict, compare=False, repr=False
    )
    """Metric name to the values that count as 0 and as 1000 in the score."""

    def has_leak(self, name: str) -> bool:
        """Whether fine-tuning data overlaps with the test set of a metric; for the score, with any
        test set."""
        tasks = {leak.task for leak in self.leaks}
        return bool(tasks) if name == "score" else name in METRICS and METRICS[name].task in tasks

    @property
    def alpha(self) -> float | None:
        return _alpha(self.params)

    @property
    def score(self) -> float | None:
        """Mean SUPERB score on test."""
        return self.mean.get("score")


def _select_winner(lines: Sequence[TableLine], winner: str | None) -> TableLine | None:
    """Returns the line of the encoder that a search selected, else the best merge on dev."""
    tuned = [line for line in lines if not line.untuned]
    if winner is not None:
        return next((line for line in tuned if any(row.key == winner for row in line.rows)), None)
    scored = [line for line in tuned if line.role == "merge" and "score" in line.dev_mean]
    most = max((line.count for line in scored), default=0)
    return max((line for line in scored if line.count == most), key=dev_score, default=None)


def _group_by_seed(rows: Iterable[EncoderRow]) -> list[list[EncoderRow]]:
    """Returns the rows of each line. Rows of equal parameters *and* equal seed are of different
    encoders and never on one line."""
    unique = {row.key: row for row in rows}
    lines: dict[tuple[object, int], dict[object, EncoderRow]] = {}
    for row in unique.values():
        params = tuple(sorted(_line_params(row).items(), key=lambda item: item[0]))
        seed: object = row.key if _role(row) == "pre-trained" else row.params.get("seed")
        place = 0
        while seed in lines.get((params, place), {}):
            place += 1
        lines.setdefault((params, place), {})[seed] = row
    return [list(line.values()) for line in lines.values()]


def _line(
    rows: Sequence[EncoderRow], expected_test: Iterable[str], expected_dev: Iterable[str]
) -> TableLine:
    complete = [row for row in rows if row.complete]
    used = complete or rows
    role = _role(rows[0])
    # A mean over some of the encoders would not be the score of this line.
    with_score = all("score" in row.test for row in complete) and bool(complete)
    test = _collect([row.test for row in used], with_score)
    # A prediction has no test score.
    with_dev_score = with_score or all(is_prediction(row.params) for row in complete)
    dev = _collect([row.dev for row in used], with_dev_score and bool(complete))
    # Copies of the pre-trained encoder do not differ in a fine-tuning seed.
    over_runs = len(used) > 1 and role != "pre-trained"
    if over_runs:
        spread, dev_spread = _deviations(test), _deviations(dev)
    else:
        over_probes = _collect([row.spread for row in used], with_score)
        spread = {name: statistics.fmean(values) for name, values in over_probes.items()}
        dev_spread = {}
    return TableLine(
        params=_line_params(rows[0]),
        role=role,
        rows=tuple(rows),
        count=len(complete),
        mean=_means(test),
        dev_mean=_means(dev),
        spread=spread,
        dev_spread=dev_spread,
        spread_over=("fine-tuning seeds" if over_runs else "probe seeds")
        if spread or dev_spread
        else "nothing",
        missing=tuple(
            _missing(row, expected_test, expected_dev)
            for row in rows
            if not row.complete and not row.stopped
        ),
        unscored=tuple(dict.fromkeys(reason for row in used for reason in row.unscored)),
        stopped=tuple(f"{_seed_prefix(row)}{row.stopped}" for row in rows if row.stopped),
        untuned=tuple(dict.fromkeys(row.untuned for row in rows if row.untuned)),
        unlearnt=tuple(dict.fromkeys(row.unlearnt for row in rows if row.unlearnt)),
        dev_is_test=tuple(dict.fromkeys(name for row in rows for name in row.dev_is_test)),
    )


def _collect(parts: Iterable[Mapping[str, float]], with_score: bool) -> dict[str, list[float]]:
    """Returns the values of several rows by metric; the score only where it is asked for."""
    values: dict[str, list[float]] = {}
    for part in parts:
        for name, value in part.items():
            if with_score or name != "score":
                values.setdefault(name, []).append(value)
    return values


def _means(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: math.fsum(numbers) / len(numbers) for name, numbers in values.items()}


def _deviations(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {
        name: statistics.stdev(numbers)
        for name, numbers in values.items()
        if len(numbers) > 1 and all(map(math.isfinite, numbers))
    }


def _missing(row: EncoderRow, expected_test: Iterable[str], expected_dev: Iterable[str]) -> str:
    """Returns what an incomplete row lacks: ``seed 1: PR PER, dev PR PER``."""
    test = set(expected_test) - set(row.test) - {"score"}
    dev = set(expected_dev) - set(row.dev) - {"score"}
    titles = []
    for name in [*METRICS, *sorted((test | dev) - set(METRICS))]:
        titles += [metric_title(name)] if name in test else []
        titles += [f"dev {metric_title(name)}"] if name in dev else []
    return _seed_prefix(row) + (", ".join(titles) or "an evaluation")


def _seed_prefix(row: EncoderRow) -> str:
    return f"seed {row.params['seed']}: " if "seed" in row.params else ""


def _line_params(row: EncoderRow) -> dict[str, Value]:
    if _role(row) == "pre-trained":
        return {"alpha": row.params["alpha"]}
    return {name: value for name, value in row.params.items() if name != "seed"}


def _role(row: EncoderRow) -> Role:
    if is_prediction(row.params):
        return "prediction"
    if "trial" in row.params:  # a proposal of a search is no control, whatever its outer alpha
        return "merge"
    alpha = _alpha(row.params)
    return "pre-trained" if alpha == 0 else "stable fine-tuning" if alpha == 1 else "merge"


def _alpha(params: Mapping[str, Value]) -> float | None:
    value = params.get("alpha")
    return None if value is None or isinstance(value, str) else float(value)


def dev_score(line: TableLine) -> float:
    return line.dev_mean.get("score", -math.inf)


def _title(line: TableLine, names: Sequence[str]) -> str:
    if line.role == "pre-trained":
        return "pre-trained"
    start = (
        f"alpha {format_value(line.params['alpha'])}"
        if line.role in ("merge", "prediction") and "alpha" in line.params
        else line.role
    )
    rest = describe_params(line.params, names)
    return f"{start}, {rest}" if rest else start


def _disambiguate(lines: Sequence[TableLine]) -> list[TableLine]:
    """Adds the start of the fingerprint to titles that occur more than once."""
    titles = [(line.title, line.role == "prediction") for line in lines]
    return [
        replace(line, title=f"{line.title} [{line.rows[0].key[:8]}]")
        if titles.count((line.title, line.role == "prediction")) > 1
        else line
        for line in lines
    ]
