"""Verbs about what a storage holds: ls, gc, compare."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from speechft_ray.cli.app import app

StorageOfSweeps = Annotated[str, typer.Option(help="Storage of your sweeps: a folder or a URL.")]


@app.command("ls")
def list_sweeps(storage: StorageOfSweeps = "runs") -> None:
    """List the sweeps of a storage with their results and sizes, and what no sweep needs."""
    from speechft_ray.commands.listing import print_sweeps
    from speechft_ray.commands.stored import open_store

    print_sweeps(open_store(storage), Console())


@app.command()
def gc(
    storage: StorageOfSweeps = "runs",
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove; without it, only print what would go.")
    ] = False,
    sweep: Annotated[
        str | None, typer.Option(help="Forget this sweep too, with what it alone needs.")
    ] = None,
    older_than: Annotated[
        float,
        typer.Option(min=0, help="Hours; younger results are kept, as a verb may still use them."),
    ] = 24.0,
) -> None:
    """Print what no sweep needs, and remove it with --yes. What a sweep with a name needs, or one
    that runs, is never removed."""
    from speechft_ray.commands.listing import collect_unused
    from speechft_ray.commands.stored import open_store

    collect_unused(open_store(storage), Console(), yes=yes, forget=sweep, hours=older_than)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="Name of a sweep; `speechft ls` prints them.")],
    second: Annotated[str, typer.Argument(help="Name of another sweep with the same tasks.")],
    storage: StorageOfSweeps = "runs",
    other_storage: Annotated[
        str | None, typer.Option(help="Storage of the second sweep; default: that of the first.")
    ] = None,
) -> None:
    """Compare two sweeps over the same tasks: best merges and lines of equal parameters, with
    intervals of the differences."""
    from speechft_ray.commands.compare import compare_sweeps, print_comparison

    pairs = compare_sweeps(first, second, storage, other_storage)
    print_comparison(first, second, pairs, Console())
