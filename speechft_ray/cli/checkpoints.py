"""The verbs inspect and convert, for checkpoints of any format."""

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
        help="For s3prl downstream checkpoints: the checkpoint that training started from."
    ),
]


@app.command()
def inspect(
    encoder: Annotated[str, typer.Argument(help="A file or folder of any format, or a name.")],
    config_from: ConfigFrom = None,
) -> None:
    """Print what a checkpoint holds, its provenance and the formats it can become; nothing in it is
    executed, no model is built."""
    from speechft_ray.commands.parts import ensure_downloaded
    from speechft_ray.speech.checkpoints.inspect import inspect
    from speechft_ray.speech.checkpoints.load import locate_encoder

    ensure_downloaded(encoder)
    path = locate_encoder(encoder)
    inspection = inspect(path, config_from)
    table = Table(
        title=escape(str(path)), title_justify="left", show_header=False, box=None, pad_edge=False
    )
    for heading, text in inspection.lines:
        table.add_row(heading, escape(text))
    Console().print(table)
    if inspection.refusal:
        raise UserError(inspection.refusal)


@app.command()
def convert(
    encoder: Annotated[str, typer.Argument(help="A file or folder of any format, or a name.")],
    out: Annotated[Path, typer.Argument(help="File or folder to write.")],
    to: Annotated[
        str, typer.Option(help="Format: fairseq, s3prl, s3prl-downstream, hf or safetensors.")
    ],
    config_from: ConfigFrom = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an encoder at OUT.")] = False,
) -> None:
    """Write an encoder in another format, completely or not at all."""
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
        conversion = convert(path, to, out, config_from=config_from, force=force)
    checkpoint = conversion.checkpoint
    typer.echo(
        f"{path}: {checkpoint.format}, {checkpoint.weights.family}, {describe_size(checkpoint)}"
    )
    for note in (*checkpoint.notes, *conversion.notes):
        typer.echo(f"  {note}")
    typer.echo(f"{out}: {to}, {format_megabytes(measure_disk_bytes(out))}")
