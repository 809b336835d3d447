"""The verb paper: the tables of Speech-FT beside ours."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from speechft_ray.cli.app import EXIT_FAILED, app
from speechft_ray.cli.options import parse_options, parse_stall_minutes
from speechft_ray.cli.sweep_options import (
    Address,
    Cache,
    CacheGb,
    Corpora,
    Mlflow,
    PaperReport,
    Retries,
    StallMinutes,
    Storage,
)
from speechft_ray.core.signals import stop_on_signals
from speechft_ray.storage.open import find_local_root


@app.command("paper")
def reproduce_paper(
    tables: Annotated[
        list[str] | None,
        typer.Argument(help="1 to 16, VIII (of the later version), or all (the default)."),
    ] = None,
    scale: Annotated[
        str,
        typer.Option(
            help="full: the paper's corpora. embedded: synthetic speech that is made here. "
            "real-speech: human speech from Debian's packages, for tables 1, 3 and 9."
        ),
    ] = "embedded",
    plan: Annotated[
        bool, typer.Option("--plan", help="Print the work of each table; run nothing.")
    ] = False,
    encoder: Annotated[
        list[str] | None,
        typer.Option(help="File for an encoder that a table names, NAME=FILE; repeatable."),
    ] = None,
    address: Address = "local",
    corpora: Corpora = None,
    storage: Storage = "runs",
    report: PaperReport = None,
    mlflow: Mlflow = None,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="No Ray: one job after another in this process.")
    ] = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="Use no GPU.")] = False,
    cache: Cache = None,
    cache_gb: CacheGb = 50.0,
    retries: Retries = 3,
    stall_minutes: StallMinutes = None,
) -> None:
    """Make tables of the paper, each beside the published one, with a verdict for every claim."""
    from speechft_ray.commands import real_speech
    from speechft_ray.commands.paper import (
        open_paper,
        parse_scale,
        parse_tables,
        print_paper_plan,
        run_paper,
        write_paper_page,
    )
    from speechft_ray.commands.spaces import make_cache_fields
    from speechft_ray.core.records import Limits

    limits = Limits(retries=retries, **parse_stall_minutes(stall_minutes or []))
    numbers, size = parse_tables(tables or []), parse_scale(scale)
    files = parse_options(encoder or [], "--encoder")
    encoders = {name: str(value) for name, value in files.items()}
    if size == "real-speech":
        numbers = real_speech.select_tables(numbers, bool(tables) and "all" not in (tables or []))
        real_speech.check_corpora(corpora)
        if real_speech.ENCODER not in encoders:
            human = real_speech.find_encoder(find_local_root(storage), corpora, plan, Console())
            encoders[real_speech.ENCODER] = human
    sweeps = open_paper(
        numbers,
        size,
        storage=storage,
        encoders=encoders,
        corpora=corpora,
        changes=make_cache_fields(cache, cache_gb),
        cpu=cpu,
    )
    if plan:
        print_paper_plan(numbers, sweeps, size, Console())
        return
    folder = report or find_local_root(storage) / "report" / f"paper-{size}"

    def write() -> None:
        write_paper_page(numbers, sweeps, size, folder)

    with stop_on_signals() as stop:
        failures = run_paper(
            sweeps, None if in_process else address, folder, mlflow, stop, write, limits
        )
    Console().print(f"The paper beside ours: {folder / 'paper.html'} (paper.md)", soft_wrap=True)
    if failures:
        raise SystemExit(EXIT_FAILED)
