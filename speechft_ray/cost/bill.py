"""Turns the work of a sweep into its bill: seconds by stage, and what would make it cheaper."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from speechft_ray.core.errors import UserError, unknown_name
from speechft_ray.core.records import STAGES, Stage
from speechft_ray.cost.work import Work

THROUGHPUTS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "encode": (("layers", "front end"), "seconds of audio that an encoder encodes in a second"),
    "finetune": (("tune", "tune head"), "updates of fine-tuning in a second"),
    "probe": (("probe",), "updates of one probe in a second"),
}
"""What ``--throughput`` may give, the kinds of unit that it replaces, and what it means."""

UNCOUNTED = {
    "layers": "encoding",
    "front end": "encoding",
    "tune": "fine-tuning",
    "tune head": "fine-tuning",
    "probe": "training of probes",
    "score": "scoring",
    "match": "matching",
    "merge": "merging",
    "synthesise": "synthesis",
    "synthesise start": "synthesis",
    "job": "opening of encoders",
}
"""What a bill leaves out while a kind of unit has no seconds."""

Seconds = Callable[[str], float | None]
"""Seconds of a unit; ``None`` while that is unknown."""


def check_throughput(values: Mapping[str, Any]) -> dict[str, float]:
    """Returns the values of ``--throughput`` as numbers. Raises ``UserError`` for an unknown name
    and for what is not a number above 0."""
    for name, value in values.items():
        if name not in THROUGHPUTS:
            raise UserError(unknown_name("throughput", name, THROUGHPUTS))
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value <= 0:
            raise UserError(
                f"--throughput {name} must be a number above 0 ({THROUGHPUTS[name][1]}), but is "
                f"{value!r} instead."
            )
    return {name: float(value) for name, value in values.items()}


def make_seconds(calibration: Mapping[str, float], throughput: Mapping[str, float] = {}) -> Seconds:
    """Returns the seconds of units: by a throughput where one is given, else as calibrated. The
    front end is part of a throughput ``encode``."""

    def look_up(unit: str) -> float | None:
        kind = unit.split(":")[0]
        for name, rate in throughput.items():
            if kind in THROUGHPUTS[name][0]:
                return 0.0 if kind == "front end" else 1.0 / rate
        return calibration.get(unit)

    return look_up


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """The cost of one stage, or of all."""

    jobs: int = 0
    work: Work = field(default_factory=Work)
    seconds: float = 0.0
    """Of one processor core, or of one GPU."""
    uncounted: frozenset[str] = frozenset()
    """Parts without known seconds."""

    def __add__(self, other: StageCost) -> StageCost:
        return StageCost(
            jobs=self.jobs + other.jobs,
            work=self.work + other.work,
            seconds=self.seconds + other.seconds,
            uncounted=self.uncounted | other.uncounted,
        )


Bill = Mapping[Stage, StageCost]


def make_bill(works: Sequence[tuple[Stage, Work]], seconds_of: Seconds) -> Bill:
    """Returns the cost of jobs by stage."""
    bill = {stage: StageCost() for stage in STAGES}
    for stage, work in works:
        bill[stage] += price(work, seconds_of)
    return bill


def price(work: Work, seconds_of: Seconds) -> StageCost:
    """Returns the cost of one job."""
    spent, uncounted = 0.0, set()
    for unit, amount in work.units.items():
        each = seconds_of(unit)
        if each is None:
            uncounted.add(UNCOUNTED[unit.split(":")[0]])
        else:
            spent += each * amount
    return StageCost(jobs=1, work=work, seconds=spent, uncounted=frozenset(uncounted))


def add_up(bill: Bill) -> StageCost:
    """Returns the cost of all stages."""
    total = StageCost()
    for cost in bill.values():
        total += cost
    return total


@dataclass(frozen=True, kw_only=True)
class Change:
    """A changed setting and what the sweep would cost with it."""

    text: str
    bill: Bill


def rank_changes(bill: Bill, changes: Sequence[Change]) -> list[tuple[Change, float]]:
    """Returns the changes that save something, each with the share of the cost that it saves, the
    largest first. Costs are compared by seconds where all are known, else by encoded audio."""
    total = add_up(bill)
    measure = _by_seconds if total.seconds and not total.uncounted else _by_audio
    whole = measure(total)
    if not whole:
        return []
    shares = [(change, 1.0 - measure(add_up(change.bill)) / whole) for change in changes]
    return sorted((pair for pair in shares if pair[1] > 0.005), key=lambda pair: -pair[1])


def _by_seconds(cost: StageCost) -> float:
    return cost.seconds


def _by_audio(cost: StageCost) -> float:
    return cost.work.encoded_seconds
