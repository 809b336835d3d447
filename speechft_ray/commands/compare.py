"""The verb ``compare``: two sweeps over the same tasks, line by line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from speechft_ray.commands.stored import StoredSweep, open_store, read_sweep
from speechft_ray.core.errors import UserError
from speechft_ray.core.fingerprint import canonical_json
from speechft_ray.report.comparison import Comparison, compare_lines
from speechft_ray.report.lines import TableLine, find_winner, metric_names
from speechft_ray.report.table import STAR, column_title, format_metric
from speechft_ray.sweep.fields import list_merge_params
from speechft_ray.sweep.plan import Plan

SHOWN_LINES = 20
TRIAL = "trial"
"""Parameter of what a search proposed: its number, which says nothing in another sweep."""


class LinePair(NamedTuple):
    """Lines of two sweeps that are compared, and the difference of their scores, second less
    first; ``None`` where one has no score, or both are the same encoders."""

    title: str
    first: TableLine
    second: TableLine
    comparison: Comparison | None


def compare_sweeps(
    first: str, second: str, storage: str | Path, other: str | Path | None
) -> list[LinePair]:
    """Compares two sweeps of a storage, or of two; the best merges come first.

    Raises ``UserError`` for unknown sweeps and for sweeps whose scores do not measure the same.
    """
    sweeps = (
        read_sweep(open_store(storage), first),
        read_sweep(open_store(other or storage), second),
    )
    _refuse_other_tasks(*sweeps)
    lines = [sweep.data.lines for sweep in sweeps]
    best = [find_winner(of_sweep) for of_sweep in lines]
    pairs = [("best merge", best[0], best[1])] if best[0] and best[1] else []
    plans = (sweeps[0].plan, sweeps[1].plan)
    pairs += [
        (line.title, line, twin) for line in lines[0] if (twin := _find_twin(line, lines[1], plans))
    ]
    judged = sum(not _is_same(one, two) for _, one, two in pairs if one and two)
    return [
        LinePair(title, one, two, None if _is_same(one, two) else compare_lines(two, one, judged))
        for title, one, two in pairs
        if one and two
    ]


def print_comparison(first: str, second: str, pairs: list[LinePair], console: Console) -> None:
    """Prints the scores and their differences, then the metrics of the best merges."""
    if not pairs:
        console.print(f"{first} and {second} have no line in common yet.", markup=False)
        return
    table = _open_table("score on test", first, second)
    table.add_column("")
    for pair in pairs[:SHOWN_LINES]:
        title, *cells = _make_cells(pair)
        table.add_row(Text(title), *cells)  # a title may look like markup
    console.print(table)
    if len(pairs) > SHOWN_LINES:
        console.print(f"{len(pairs) - SHOWN_LINES} more lines have the same parameters.")
    best = pairs[0]
    if best.title == "best merge":
        console.print(
            f"{STAR} {first}: {best.first.title}. {STAR} {second}: {best.second.title}.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        console.print(_make_metric_table(first, second, best))
    sentence = "Differences are the second sweep less the first"
    if any(pair.comparison and pair.comparison.interval for pair in pairs):
        sentence += "; the intervals of all scores hold together with 95 %"
    console.print(f"{sentence}.", soft_wrap=True)


def _open_table(title: str, first: str, second: str) -> Table:
    numbers = (Column(name, justify="right") for name in (first, second, "difference"))
    return Table(title, *numbers, box=SIMPLE_HEAD)


def _make_metric_table(first: str, second: str, best: LinePair) -> Table:
    """Returns the metrics that the best merges of both sweeps have, with their differences."""
    table = _open_table("metric of the best merge", first, second)
    one, two = best.first.mean, best.second.mean
    for name in metric_names([best.first, best.second]):
        if name in one and name in two:
            difference = two[name] - one[name]
            sign = "-" if difference < 0 else "+"
            values = [format_metric(name, means[name]) for means in (one, two)]
            table.add_row(column_title(name), *values, sign + format_metric(name, abs(difference)))
    return table


def _make_cells(pair: LinePair) -> list[str]:
    scores = [
        "" if line.score is None else format_metric("score", line.score)
        for line in (pair.first, pair.second)
    ]
    if _is_same(pair.first, pair.second):
        return [pair.title, *scores, "", "the same encoders"]
    if pair.comparison is None:
        return [pair.title, *scores, "", "no score yet"]
    return [pair.title, *scores, f"{pair.comparison.difference:+.2f}", pair.comparison.verdict]


def _is_same(first: TableLine, second: TableLine) -> bool:
    return {row.key for row in first.rows} == {row.key for row in second.rows}


def _find_twin(
    line: TableLine, others: list[TableLine], plans: tuple[Plan, Plan]
) -> TableLine | None:
    """Returns the one line with the same role and the same values of all parameters of both;
    ``None`` where there is none, or more than one.

    A parameter that varies in one sweep alone is no parameter of the other's lines; their value of
    it is that of their spec.
    """
    own = _list_params(line, plans[0])
    twins = []
    for other in others:
        names = (line.params.keys() | other.params.keys()) - {TRIAL}
        values = _list_params(other, plans[1])
        if line.role == other.role and all(
            _as_text(own.get(name)) == _as_text(values.get(name)) for name in names
        ):
            twins.append(other)
    return twins[0] if len(twins) == 1 else None


def _list_params(line: TableLine, plan: Plan) -> dict[str, object]:
    """Returns the parameters of a line, and all others that its spec has under the same names."""
    job = plan.jobs.get(line.rows[0].key)
    resolved = {} if job is None else list_merge_params(job.payload, plan.jobs)
    return {**resolved, **line.params}


def _as_text(value: object) -> str:
    """Returns a value as its spec has it: 1 and 1.0 are one."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = float(value)
    return value if isinstance(value, str) else json.dumps(value)


def _refuse_other_tasks(first: StoredSweep, second: StoredSweep) -> None:
    tasks = [_describe_tasks(sweep.plan) for sweep in (first, second)]
    pair = f"`{first.name}` and `{second.name}`"
    names = [set(of_sweep) for of_sweep in tasks]
    if names[0] != names[1]:
        only = [
            f"{sweep.name} alone has {', '.join(sorted(own - other))}"
            for sweep, own, other in (
                (first, names[0], names[1]),
                (second, names[1], names[0]),
            )
            if own - other
        ]
        raise UserError(
            f"{pair} were evaluated on other tasks, so their scores measure different things: "
            f"{'; '.join(only)}. Compare sweeps with the same `evaluate` section."
        )
    for name in sorted(names[0]):
        if tasks[0][name] != tasks[1][name]:
            fields = sorted(
                field
                for field in tasks[0][name].keys() | tasks[1][name].keys()
                if tasks[0][name].get(field) != tasks[1][name].get(field)
            )
            raise UserError(
                f"{pair} evaluated `{name}` with other values of {', '.join(fields)}: compare "
                "sweeps with the same `evaluate` section."
            )
    scores = [canonical_json(sweep.plan.spec.score) for sweep in (first, second)]
    if scores[0] != scores[1]:
        raise UserError(f"{pair} have another `score` section, so their points differ in size.")


def _describe_tasks(plan: Plan) -> dict[str, dict[str, Any]]:
    """Returns the spec of every evaluation by its label, with the identities of its corpora."""
    first = next(iter(plan.rows), None)
    keys = first.evaluations if first else plan.baseline
    described: dict[str, dict[str, Any]] = {}
    for spec, key in zip(plan.spec.evaluate, keys, strict=True):
        job = plan.jobs[key]
        resolved: Mapping[str, Any] = job.payload["spec"]  # type: ignore[assignment]
        made = [need for need in job.needs if plan.jobs[need].stage == "corpus"]
        content = [*job.corpora, *made]
        described[spec.label] = {**resolved, "in_score": spec.in_score, "corpus content": content}
    return described
