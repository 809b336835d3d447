"""Verbs about sweeps: run, plan, status, report, pretrain."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from speechft_ray.cli.app import EXIT_FAILED, app
from speechft_ray.cli.options import parse_options, parse_stall_minutes, read_resources
from speechft_ray.cli.sweep_options import (
    DEFAULT_SPACE,
    Address,
    Cache,
    CacheGb,
    Calibrate,
    Corpora,
    CpusPerTrial,
    Encoder,
    GpusPerTrial,
    Json,
    Label,
    Manifest,
    MemoryPerTrial,
    Mlflow,
    Report,
    Retries,
    SetField,
    Smoke,
    Space,
    StallMinutes,
    Storage,
    Throughput,
    Track,
)
from speechft_ray.core.signals import stop_on_signals

if TYPE_CHECKING:
    from speechft_ray.commands.sweep import Sweep


@app.command()
def run(
    space: Space = DEFAULT_SPACE,
    change: SetField = None,
    smoke: Smoke = False,
    address: Address = "local",
    encoder: Encoder = None,
    corpora: Corpora = None,
    manifest: Manifest = None,
    storage: Storage = "runs",
    report: Report = None,
    mlflow: Mlflow = None,
    track: Track = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Print every trial, merge and evaluation, and the bill; run nothing."
        ),
    ] = False,
    calibrate: Calibrate = False,
    throughput: Throughput = None,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="No Ray: one job after another in this process.")
    ] = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="Use no GPU.")] = False,
    cache: Cache = None,
    cache_gb: CacheGb = 50.0,
    cpus_per_trial: CpusPerTrial = None,
    gpus_per_trial: GpusPerTrial = None,
    memory_per_trial: MemoryPerTrial = None,
    label: Label = None,
    retries: Retries = 3,
    stall_minutes: StallMinutes = None,
) -> None:
    """Run a sweep. Finished work is never repeated: after a stop, run the same command again.

    Ends with 1 where a job failed. Runs that `stop_tuning` ended early are no failures: their rows
    say so.
    """
    from speechft_ray.commands.spaces import find_report_folder, make_cache_fields
    from speechft_ray.commands.sweep import run
    from speechft_ray.commands.trackers import parse_trackers
    from speechft_ray.core.errors import UserError
    from speechft_ray.core.records import Limits

    trackers = parse_trackers(track, mlflow)
    rates = _read_throughput(throughput)
    if (calibrate or rates) and not plan:
        raise UserError("--calibrate and --throughput are for --plan, which runs nothing: add it.")
    limits = Limits(retries=retries, **parse_stall_minutes(stall_minutes or []))
    asked = read_resources(cpus_per_trial, gpus_per_trial, memory_per_trial, label or [])
    sweep = _open_sweep(
        space,
        change,
        storage=storage,
        encoder=encoder,
        corpora=corpora,
        manifest=manifest,
        cpu=cpu,
        smoke=smoke,
        place=make_cache_fields(cache, cache_gb),
        asked=asked,
    )
    if plan:
        _print_plan(sweep, calibrate, rates)
        return
    with stop_on_signals() as stop:
        failures = run(
            sweep,
            None if in_process else address,
            report or find_report_folder(sweep),
            mlflow,
            stop,
            limits,
            trackers,
        )
    if failures:
        raise SystemExit(EXIT_FAILED)


@app.command("plan")
def show_plan(
    space: Space = DEFAULT_SPACE,
    change: SetField = None,
    smoke: Smoke = False,
    encoder: Encoder = None,
    corpora: Corpora = None,
    manifest: Manifest = None,
    storage: Storage = "runs",
    cpu: Annotated[bool, typer.Option("--cpu", help="Use no GPU.")] = False,
    cache_gb: CacheGb = 50.0,
    calibrate: Calibrate = False,
    throughput: Throughput = None,
    as_json: Json = False,
) -> None:
    """Print every trial, merge and evaluation of a sweep with what is already done, and the bill of
    the rest: audio to encode, updates, bytes and hours."""
    from speechft_ray.commands.spaces import make_cache_fields

    rates = _read_throughput(throughput)
    sweep = _open_sweep(
        space,
        change,
        storage=storage,
        encoder=encoder,
        corpora=corpora,
        manifest=manifest,
        cpu=cpu,
        smoke=smoke,
        place=make_cache_fields(None, cache_gb),
    )
    _print_plan(sweep, calibrate, rates, as_json=as_json)


@app.command()
def status(
    space: Space = DEFAULT_SPACE,
    change: SetField = None,
    smoke: Smoke = False,
    encoder: Encoder = None,
    corpora: Corpora = None,
    manifest: Manifest = None,
    storage: Storage = "runs",
    as_json: Json = False,
) -> None:
    """Print how far a sweep is, the best score so far, what failed, and who runs it; from any node
    that sees the storage."""
    from speechft_ray.commands.bill import print_time_left
    from speechft_ray.commands.current_status import (
        print_other_sweeps,
        print_progress,
        read_current_status,
    )
    from speechft_ray.commands.json_output import print_json

    sweep = _open_sweep(
        space,
        change,
        storage=storage,
        encoder=encoder,
        corpora=corpora,
        manifest=manifest,
        smoke=smoke,
        is_to_run=False,
    )
    if as_json:
        sweep.replay(None)
    else:
        sweep.print_status(Console())
    status = read_current_status(sweep.plan, sweep.fingerprint, sweep.store)
    if as_json:
        print_json(status.model_dump(mode="json"))
        return
    print_progress(status, Console())
    if status.state != "running":
        print_time_left(sweep, Console())
    print_other_sweeps(sweep.store, sweep.fingerprint, Console())


@app.command("report")
def write_report(
    space: Space = DEFAULT_SPACE,
    change: SetField = None,
    smoke: Smoke = False,
    encoder: Encoder = None,
    corpora: Corpora = None,
    manifest: Manifest = None,
    storage: Storage = "runs",
    report: Report = None,
    mlflow: Mlflow = None,
    track: Track = None,
    as_json: Json = False,
) -> None:
    """Write the report again from the store, and send the trackers what they lack."""
    from speechft_ray.commands.spaces import find_report_folder
    from speechft_ray.commands.sweep import write_report_again
    from speechft_ray.commands.trackers import parse_trackers

    trackers = parse_trackers(track, mlflow)
    sweep = _open_sweep(
        space,
        change,
        storage=storage,
        encoder=encoder,
        corpora=corpora,
        manifest=manifest,
        smoke=smoke,
        is_to_run=False,
    )
    write_report_again(
        sweep, report or find_report_folder(sweep), mlflow, trackers, as_json=as_json
    )


@app.command()
def verify(
    storage: Storage = "runs",
    repair: Annotated[
        bool, typer.Option("--repair", help="Set damaged units aside, to be computed again.")
    ] = False,
) -> None:
    """Read a whole storage and compare it with its checksums. Ends with 1 where a unit is damaged
    and was not set aside."""
    from speechft_ray.commands.stored import open_store
    from speechft_ray.commands.verify import verify_store

    console = Console(soft_wrap=True, highlight=False, markup=False)
    damaged = verify_store(open_store(storage), repair, console)
    if damaged and not repair:
        raise SystemExit(EXIT_FAILED)


@app.command()
def pretrain(
    out: Annotated[
        Path, typer.Option(help="Folder for the finished encoder and its learning curve.")
    ],
    work: Annotated[Path, typer.Option(help="Folder for checkpoints and the corpus.")] = Path(
        "runs/pretrain"
    ),
    corpus: Annotated[
        str, typer.Option(help="What to learn from; `speechft corpora list` prints the names.")
    ] = "synthetic",
    option: Annotated[
        list[str] | None,
        typer.Option(help="An option of the corpus as NAME=VALUE; may be repeated."),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            help="A tiny HuBERT to go on from, such as tiny_hubert; default: new weights."
        ),
    ] = None,
    updates: Annotated[
        int | None, typer.Option(min=1, help="Updates from a --start; default: 4500.")
    ] = None,
    corpora: Corpora = None,
) -> None:
    """Pre-train a tiny HuBERT like the one that ships with the package, on synthetic speech or on
    another corpus."""
    from speechft_ray.commands.pretrain import pretrain_tiny

    pretrain_tiny(
        out, work, corpus, parse_options(option or [], "--option"), corpora, start, updates
    )


def _read_throughput(pairs: list[str] | None) -> dict[str, float]:
    from speechft_ray.cost.bill import check_throughput

    return check_throughput(parse_options(pairs or [], "--throughput"))


def _print_plan(
    sweep: Sweep, calibrate: bool, throughput: Mapping[str, float], *, as_json: bool = False
) -> None:
    from speechft_ray.commands.bill import print_bill
    from speechft_ray.commands.json_output import print_json_plan
    from speechft_ray.commands.power import print_power
    from speechft_ray.commands.status import print_resources

    if as_json:
        print_json_plan(sweep, calibrate, throughput)
        return
    sweep.print_plan(Console())
    print_resources(sweep.plan.spec, Console())
    print_bill(sweep, Console(), measure=calibrate, throughput=throughput)
    print_power(sweep, Console())


def _open_sweep(
    space: str, changes: list[str] | None, *, is_to_run: bool = True, **options: Any
) -> Sweep:
    """Reads, checks and plans a search space; ``options`` are fields of ``SweepOptions``."""
    from speechft_ray.commands.spaces import SweepOptions, open_space_sweep
    from speechft_ray.sweep.space_changes import parse_changes

    return open_space_sweep(
        space,
        SweepOptions(changes=parse_changes(changes or []), **options),
        lambda text: typer.echo(f"note: {text}", err=True),
        is_to_run=is_to_run,
    )
