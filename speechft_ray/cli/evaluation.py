"""The verbs evaluate and tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from speechft_ray.cli.app import EXIT_FAILED, app
from speechft_ray.cli.options import parse_options
from speechft_ray.cli.sweep_options import Address, Json, Mlflow, Storage
from speechft_ray.core.errors import UserError
from speechft_ray.core.signals import stop_on_signals
from speechft_ray.storage.address import resolve_storage

if TYPE_CHECKING:
    from speechft_ray.core.records import Place

TrackEvaluation = Annotated[
    str | None,
    typer.Option(
        "--track",
        help="Log the results too: mlflow, jsonl, tensorboard, wandb, with commas; default: "
        "nothing, or mlflow where --mlflow says where.",
    ),
]
EncoderName = Annotated[
    str,
    typer.Option(help="A name of `speechft encoders`, hf:OWNER/NAME, a file or folder, or fbank."),
]
TaskNames = Annotated[
    str,
    typer.Option(
        help="Tasks of `speechft tasks`, with commas: pr,sid; chars and label are for own "
        "recordings."
    ),
]
Rates = Annotated[
    str | None, typer.Option(help="A number, several with commas, or `grid`; default: s3prl's.")
]
FeatureForm = Annotated[
    str | None, typer.Option(help="Stored frames: exact, int8, compact; default: by size.")
]
Rank = Annotated[
    float | None, typer.Option(help="For compact: directions, or the fraction of variance.")
]


@app.command()
def evaluate(
    encoder: EncoderName,
    task: TaskNames,
    corpus: Annotated[
        Path | None,
        typer.Option(help="Folder of the task's corpus, or a manifest; default: synthetic."),
    ] = None,
    corpus_option: Annotated[
        list[str] | None, typer.Option(help="An option of the corpus, NAME=VALUE; repeatable.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the task, NAME=VALUE; repeatable.")
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="Label column; default: the task's own.")
    ] = None,
    updates: Annotated[
        int | None, typer.Option(help="Updates of a probe; default: as published.")
    ] = None,
    learning_rate: Rates = None,
    seeds: Annotated[int, typer.Option(help="How many probes.")] = 1,
    patience: Annotated[int | None, typer.Option(help="Idle validations that end it.")] = None,
    precision: Annotated[
        str, typer.Option(help="Products of the encoder: float32, tf32 or bfloat16.")
    ] = "float32",
    features: FeatureForm = None,
    rank: Rank = None,
    storage: Storage = "runs",
    address: Address = "local",
    in_process: Annotated[bool, typer.Option("--in-process", help="Use no Ray.")] = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="Use no GPU.")] = False,
    as_json: Json = False,
    mlflow: Mlflow = None,
    track: TrackEvaluation = None,
) -> None:
    """Evaluate one encoder on tasks of SUPERB, by default with the published protocol."""
    from speechft_ray.commands.evaluate import evaluate_tasks, print_evaluations
    from speechft_ray.commands.json_output import describe_evaluation, print_json
    from speechft_ray.commands.parts import resolve_encoder
    from speechft_ray.commands.trackers import parse_trackers
    from speechft_ray.core.records import Place

    trackers = parse_trackers(track or ("none" if mlflow is None else "mlflow"), mlflow)
    overrides = {
        "column": column,
        "updates": updates,
        "learning_rate": _parse_rates(learning_rate),
        "seeds": seeds,
        "patience": patience,
        "precision": precision,
        "features": features,
        "rank": int(rank) if rank is not None and rank.is_integer() else rank,
        "options": parse_options(option or [], "--option"),
        "corpus_options": parse_options(corpus_option or [], "--corpus-option"),
    }
    place = Place(
        storage=resolve_storage(storage),
        encoder=resolve_encoder(encoder),
        device="cpu" if cpu else "auto",
    )
    tasks = [name.strip() for name in task.split(",")]
    with stop_on_signals() as stop:
        results = evaluate_tasks(
            tasks,
            corpus,
            overrides,
            place,
            None if in_process else address,
            stop,
            Console(stderr=as_json),
        )
    evaluations = {name: facts for name, facts in results.items() if facts is not None}
    if as_json:
        described = [describe_evaluation(facts) for facts in evaluations.values()]
        print_json({"encoder": encoder, "tasks": described})
    else:
        print_evaluations(evaluations, Console())
    _track(results, place, trackers, mlflow)
    if None in results.values():
        raise SystemExit(EXIT_FAILED)


def _track(results: Any, place: Place, trackers: tuple[str, ...], mlflow: str | None) -> None:
    from speechft_ray.commands.evaluation_tracking import track_evaluations

    for sentence in track_evaluations(
        results, place, trackers, mlflow, lambda text: typer.echo(f"note: {text}", err=True)
    ):
        typer.echo(sentence, err=True)


@app.command("tasks")
def list_tasks(
    task: Annotated[str | None, typer.Argument(help="Print this task in full.")] = None,
) -> None:
    """List the tasks with their metrics, label columns, corpora and steps."""
    from speechft_ray.commands.tasks import print_task, print_tasks

    console = Console(soft_wrap=True, highlight=False)
    if task is None:
        print_tasks(console)
    else:
        print_task(task, console)


def _parse_rates(text: str | None) -> float | str | list[float] | None:
    if text is None or text == "grid":
        return text
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(
            "--learning-rate must be a number, several with commas, or `grid`, "
            f"but is `{text}` instead."
        ) from None
    return rates if len(rates) > 1 else rates[0]
