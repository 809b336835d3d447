"""Prints how many fine-tuning seeds a sweep needs to tell a difference from none."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from speechft_ray.commands.sweep import Sweep
from speechft_ray.report.intervals import read_counts
from speechft_ray.report.lines import CONTROLS, add_intervals, group_rows
from speechft_ray.report.power import (
    DIFFERENCES,
    MOST_SEEDS,
    POWER,
    SIZES,
    Spread,
    find_seeds,
    measure_spread,
)
from speechft_ray.sweep.rows import read_references, read_rows


def print_power(sweep: Sweep, console: Console) -> None:
    """Prints the number of fine-tuning seeds for each difference and size of the test sets, from
    the spreads of the merges that are complete."""
    sweep.replay(None)
    references = read_references(sweep.plan, sweep.store)
    lines = group_rows(read_rows(sweep.plan, sweep.store), expected=references)
    lines = add_intervals(lines, read_counts(sweep.plan, sweep.store), references)
    spreads = {role: measure_spread(lines, role) for role in CONTROLS}
    measured = {role: spread for role, spread in spreads.items() if spread is not None}
    if not measured:
        console.print(
            "\nfine-tuning seeds that tell a difference: not known before one merge and a control "
            "are complete with two fine-tuning seeds.",
            soft_wrap=True,
            highlight=False,
        )
        return
    console.print(
        f"\nfine-tuning seeds that tell a difference at 95 % in {POWER:.0%} of sweeps, from the "
        "spreads so far",
        style="bold",
        soft_wrap=True,
    )
    table = Table.grid(padding=(0, 2, 0, 2))
    table.add_row("points", "from", *(_describe_size(size) for size in SIZES))
    for role, spread in measured.items():
        for difference in DIFFERENCES:
            table.add_row(f"{difference:g}", role, *_list_seeds(difference, spread))
    console.print(table)


def _list_seeds(difference: float, spread: Spread) -> list[str]:
    seeds = (find_seeds(difference, spread, size) for size in SIZES)
    return [f"over {MOST_SEEDS}" if count is None else str(count) for count in seeds]


def _describe_size(size: float) -> str:
    return "these test sets" if size == 1 else f"{size:g} x the test speakers"
