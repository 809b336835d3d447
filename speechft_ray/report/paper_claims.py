"""What the text of Speech-FT says about its tables, as inequalities between two rows.

Each claim is judged twice: on the published numbers, by the sampling error of their test sets, and
on ours, by the interval of the difference over other test speakers and seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from speechft_ray.report.comparison import compare_lines
from speechft_ray.report.lines import TableLine
from speechft_ray.report.paper_tables import (
    LATER,
    PublishedRow,
    compute_sampling_error,
    find_line,
    list_rows,
)

PRETRAINED = "Pre-trained"
HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot tell"
NORMAL_95 = 1.96
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One row scores above another. ``first`` and ``second`` are places in the table."""

    table: int
    sentence: str
    first: PublishedRow
    second: PublishedRow
    is_above: bool = True
    """Whether the claim is that ``first`` is above ``second``, or below it."""


@dataclass(frozen=True, kw_only=True)
class JudgedClaim:
    """A claim with its difference ``first - second`` in points of the score and its verdict."""

    claim: Claim
    published: float
    published_verdict: str
    ours: float | None = None
    interval: tuple[float, float] | None = None
    verdict: str = OPEN


def list_claims(table: int) -> list[Claim]:
    """Returns the claims about one table."""
    rows = [row for row in list_rows(table) if "score" in row.values]
    claims: list[Claim] = []

    def add(
        first: PublishedRow, second: PublishedRow, sentence: str, is_above: bool = True
    ) -> None:
        claims.append(
            Claim(table=table, sentence=sentence, first=first, second=second, is_above=is_above)
        )

    def of(method: str, **fields: object) -> list[PublishedRow]:
        return [
            row
            for row in rows
            if row.method == method
            and all(getattr(row, name) == value for name, value in fields.items())
        ]

    def one(method: str, **fields: object) -> PublishedRow:
        (row,) = of(method, **fields)
        return row

    if table in (1, 6):
        for row in of("Speech-FT"):
            where = row.task if table == 1 else row.model
            start = one(PRETRAINED, model=row.model)
            add(row, start, f"{where}: Speech-FT scores above pre-trained.")
            stable = one("Stable-FT", task=row.task, model=row.model)
            add(row, stable, f"{where}: Speech-FT scores above stable fine-tuning alone.")
    elif table == 3:
        row = one("Speech-FT")
        text = "Interpolation restores the English tasks after training on Mandarin."
        add(row, one("Stable-FT"), text)
        text = "After training on Mandarin the English tasks stay below pre-trained."
        add(row, one(PRETRAINED), text, is_above=False)
    elif table == 4:
        merged = {row.strategy: row for row in of("Speech-FT")}
        stable_rows = {row.strategy: row for row in of("Stable-FT")}
        for name, row in merged.items():
            add(row, stable_rows[name], f"{name}: interpolation scores above none.")
            add(row, one(PRETRAINED), f"{name}: with interpolation it scores above pre-trained.")
        for name in ("MTF", "Linear Merge", "TIES Merge"):
            text = f"With interpolation, sequential scores above {name}."
            add(merged["Sequential"], merged[name], text)
            text = f"Without interpolation, sequential scores below {name}."
            add(stable_rows["Sequential"], stable_rows[name], text, is_above=False)
    elif table == 7:
        for row in of("Speech-FT"):
            text = f"{row.task}: Speech-FT scores above the best regularization."
            add(row, one("Regularization", task=row.task), text)
            text = f"{row.task}: the best regularization stays below pre-trained."
            add(one("Regularization", task=row.task), one(PRETRAINED), text, is_above=False)
    elif table == 8:
        for row in of("Speech-FT"):
            without = one("Speech-FT w/o stable fine-tuning", task=row.task)
            text = (
                f"{row.task}: interpolation scores higher after stable than after regular tuning."
            )
            add(row, without, text)
            text = f"{row.task}: without stable fine-tuning it does not score above pre-trained."
            add(without, one(PRETRAINED), text, is_above=False)
    elif table == 9:
        peak = one("Speech-FT", alpha=0.25)
        for row in rows:
            if row is not peak:
                add(peak, row, f"Alpha 0.25 scores above alpha {row.alpha:g}.")
    elif table == 10:
        for row in of("Stable-FT"):
            regular = one("Regular fine-tuning", task=row.task)
            add(row, regular, f"{row.task}: stable scores above regular fine-tuning.")
    elif table == LATER:
        for method in ("Regularization", "LoRA", "DoRA", "Early checkpoint"):
            add(one("Speech-FT"), one(method), f"Speech-FT scores above {method}.")
            add(one(method), one(PRETRAINED), f"{method} stays below pre-trained.", is_above=False)
    elif table == 16:
        text = "Over all ten tasks Speech-FT scores above pre-trained."
        add(one("Speech-FT"), one(PRETRAINED), text)
    return claims


def judge_claims(table: int, lines: Sequence[TableLine]) -> list[JudgedClaim]:
    """Returns the claims about a table with verdicts; rows that no line has leave a claim open."""
    return [_judge(claim, lines) for claim in list_claims(table)]


def _judge(claim: Claim, lines: Sequence[TableLine]) -> JudgedClaim:
    published = claim.first.values["score"] - claim.second.values["score"]
    errors = [compute_sampling_error(row) for row in (claim.first, claim.second)]
    band = NORMAL_95 * math.hypot(*(error for error in errors if error is not None))
    published_verdict = (
        OPEN if None in errors else _decide(claim, published - band, published + band)
    )
    verdict = JudgedClaim(
        claim=claim,
        published=published,
        published_verdict=published_verdict,
    )
    first, second = (find_line(row, lines) for row in (claim.first, claim.second))
    comparison = compare_lines(first, second) if first and second else None
    if comparison is None:
        return verdict
    interval = comparison.interval
    return replace(
        verdict,
        ours=comparison.difference,
        interval=interval,
        verdict=_decide(claim, *interval) if interval else OPEN,
    )


def _decide(claim: Claim, low: float, high: float) -> str:
    """Returns the verdict for a difference that lies between these ends."""
    return decide_above(low, high) if claim.is_above else decide_above(-high, -low)


def decide_above(low: float, high: float) -> str:
    """Returns the verdict of the claim that a difference between these ends is above 0."""
    return HOLDS if low > 0 else FAILS if high < 0 else OPEN
