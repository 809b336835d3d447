"""Verbs about checkpoints of any format: inspect, convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from speechft_ray.cli.app import app
from speechft_ray.core.errors import UserError

ConfigFrom = Annotated[
    Path | None,
    typer.Option(
        help="For s3prl downstream checkpoints: the checkpoint that the training began from."
    ),
]


@app.command()
def inspect(
    encoder: Annotated[str, typer.Argument(help="A file or folder of any format, or a name.")],
    config_from: ConfigFrom = None,
) -> None:
    """Say what a checkpoint is, where it comes from and what it can become; nothing in it is run,
    no model is built."""
    from speechft_ray.commands.parts import ensure_downloaded
    from speechft_ray.speech.checkpoints.inspect import inspect
    from speechft_ray.speech.checkpoints.load import locate_encoder

    ensure_downloaded(encoder)
    path = locate_encoder(encoder)
    findings = inspect(path, config_from)
    table = Table(
        title=escape(str(path)), title_justify="left", show_header=False, box=None, pad_edge=False
    )
    for heading, text in findings.lines:
        table.add_row(heading, escape(text))
    Console().print(table)
    if findings.refusal:
        raise UserError(findings.refusal)


@app.command()
def convert(
    encoder: Annotated[str, typer.Argument(help="A file or folder of any format, or a name.")],
    out: Annotated[Path, typer.Argument(help="File or folder to write.")],
    to: Annotated[
        str, typer.Option(help="Format: fairseq, s3prl, s3prl-downstream, hf or safetensors.")
    ],
    config_from: ConfigFrom = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an encoder that lies at OUT.")
    ] = False,
) -> None:
    """Write an encoder in another format, whole or not at all."""
    from speechft_ray.commands.parts import ensure_downloaded
    from speechft_ray.speech.checkpoints.convert import convert
    from speechft_ray.speech.checkpoints.inspect import (
        describe_size,
        format_megabytes,
        measure_disk_bytes,
    )
    from speechft_ray.speech.checkpoints.load import locate_encoder

    ensure_downloaded(encoder)
    path = locate_encoder(encoder)
    with Console(stderr=True).status(
        escape(f"Converting {path}, {format_megabytes(measure_disk_bytes(path))}")
    ):
        done = convert(path, to, out, config_from=config_from, force=force)
    typer.echo(
        f"{path}: {done.found.format}, {done.found.weights.family}, {describe_size(done.found)}"
    )
    for note in (*done.found.notes, *done.notes):
        typer.echo(f"  {note}")
    typer.echo(f"{out}: {to}, {format_megabytes(measure_disk_bytes(out))}")
