"""Verbs about sweeps: run, plan, status, report, pretrain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from speechft_ray.cli.app import EXIT_FAILED, app

DEFAULT_SPACE = "search_spaces/alpha.yaml"

Space = Annotated[Path, typer.Option(help="Search space (YAML).")]
Encoder = Annotated[
    str | None,
    typer.Option(
        help="Encoder to start from: a name of `speechft encoders`, hf:OWNER/NAME, or a file."
    ),
]
Corpora = Annotated[
    Path | None, typer.Option(help="Folder with the real corpora, one sub-folder each.")
]
Manifest = Annotated[
    Path | None, typer.Option(help="Your own recordings: a tsv with path, split and label columns.")
]
Storage = Annotated[
    Path, typer.Option(help="Where everything is kept; every node must see it under this path.")
]
Cache = Annotated[
    Path | None,
    typer.Option(
        help="Features that evaluations share, best on each node's own disk; default: STORAGE/cache."
    ),
]
CacheGb = Annotated[
    float,
    typer.Option(min=0, help="Most that the cache may take, in GB; the oldest features make room."),
]
Address = Annotated[
    str,
    typer.Option(
        help="Ray cluster: `local` (start one here), `auto` (the running one) or HOST:PORT."
    ),
]


@app.command()
def run(
    space: Space = Path(DEFAULT_SPACE),
    address: Address = "local",
    encoder: Encoder = None,
    corpora: Corpora = None,
    manifest: Manifest = None,
    storage: Storage = Path("runs"),
    report: Annotated[
        Path | None, typer.Option(help="Report folder; default: STORAGE/report/NAME.")
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(help="MLflow URI; default: sqlite in the storage folder.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print every trial, merge and evaluation; run nothing.")
    ] = False,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="No Ray: one job after another in this process.")
    ] = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="Leave GPUs alone.")] = False,
    cache: Cache = None,
    cache_gb: CacheGb = 50.0,
) -> None:
    """Run a sweep. Finished work is never repeated: after a stop, run the same command again.

    Ends with 1 where a job failed. Runs that `stop_tuning` ended early are no failures: their rows
    say so.
    """
    from speechft_ray.cli.app import stop_on_signals
    from speechft_ray.commands.parts import place_for
    from speechft_ray.commands.search import run_search_sweep
    from speechft_ray.commands.status import describe_plan
    from speechft_ray.commands.sweep import run_sweep
    from speechft_ray.sweep.space_file import read_space

    spec = read_space(space)
    place = place_for(
        spec, storage=storage, encoder=encoder, corpora=corpora, manifest=manifest, cpu=cpu
    )
    place = place.model_copy(
        update={
            "cache": str(cache.expanduser().absolute()) if cache else None,
            "cache_gb": cache_gb,
        }
    )
    if plan:
        describe_plan(spec, place, Console())
        return
    folder = report or Path(place.storage) / "report" / spec.name
    with stop_on_signals() as stop:
        runs = run_search_sweep if spec.search else run_sweep
        failures = runs(spec, place, None if in_process else address, folder, mlflow, stop)
    if failures:
        raise SystemExit(EXIT_FAILED)


@app.command("plan")
def show_plan(
    space: Space = Path(DEFAULT_SPACE),
    encoder: Encoder = None,
    corpora: Corpora = None,
    manifest: Manifest = None,
    storage: Storage = Path("runs"),
) -> None:
    """Print every trial, merge and evaluation of a sweep with what is already done."""
    from speechft_ray.commands.parts import place_for
    from speechft_ray.commands.status import describe_plan
    from speechft_ray.sweep.space_file import read_space

    spec = read_space(space)
    describe_plan(
        spec,
        place_for(spec, storage=storage, encoder=encoder, corpora=corpora, manifest=manifest),
        Console(),
    )


@app.command()
def status(
    space: Space = Path(DEFAULT_SPACE),
    encoder: Encoder = None,
    corpora: Corpora = None,
    manifest: Manifest = None,
    storage: Storage = Path("runs"),
) -> None:
    """Print how far a sweep is and who runs it."""
    from speechft_ray.commands.parts import place_for
    from speechft_ray.commands.status import describe_status
    from speechft_ray.sweep.space_file import read_space

    spec = read_space(space)
    describe_status(
        spec,
        place_for(spec, storage=storage, encoder=encoder, corpora=corpora, manifest=manifest),
        Console(),
    )


@app.command("report")
def write_report(
    space: Space = Path(DEFAULT_SPACE),
    encoder: Encoder = None,
    corpora: Corpora = None,
    manifest: Manifest = None,
    storage: Storage = Path("runs"),
    report: Annotated[
        Path | None, typer.Option(help="Report folder; default: STORAGE/report/NAME.")
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(help="MLflow URI; default: sqlite in the storage folder.")
    ] = None,
) -> None:
    """Write the report again from the store, and send to MLflow what it lacks."""
    from speechft_ray.commands.parts import place_for
    from speechft_ray.commands.search import publish_search_again
    from speechft_ray.commands.sweep import publish_again
    from speechft_ray.sweep.space_file import read_space

    spec = read_space(space)
    place = place_for(spec, storage=storage, encoder=encoder, corpora=corpora, manifest=manifest)
    publish = publish_search_again if spec.search else publish_again
    publish(spec, place, report or Path(place.storage) / "report" / spec.name, mlflow)


@app.command()
def pretrain(
    out: Annotated[
        Path, typer.Option(help="Folder for the finished encoder and its learning curve.")
    ],
    work: Annotated[Path, typer.Option(help="Folder for checkpoints and the corpus.")] = Path(
        "runs/pretrain"
    ),
) -> None:
    """Pre-train the tiny HuBERT that ships with the package, from the synthetic speech world."""
    from speechft_ray.commands.pretrain import pretrain_tiny

    pretrain_tiny(out, work)
