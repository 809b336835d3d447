"""The verbs encoders, new and export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from speechft_ray.cli.app import app


@app.command()
def encoders() -> None:
    """List the encoders that have names, and which of them are cached on this machine."""
    from speechft_ray.commands.encoders import print_encoders

    print_encoders(Console())


@app.command()
def new(
    family: Annotated[
        str, typer.Argument(help="Encoder family: hubert, wav2vec2, wavlm, decoar2.")
    ],
    out: Annotated[
        Path, typer.Argument(help="Folder to write, or a file that ends in .safetensors.")
    ],
    layers: Annotated[int, typer.Option(min=1, max=48, help="Transformer layers.")] = 4,
    dim: Annotated[
        int, typer.Option(min=16, max=2048, help="Width of the transformer, a multiple of 16.")
    ] = 64,
    large: Annotated[
        bool, typer.Option("--large", help="Normalisation as in the Large models.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random weights.")] = 0,
) -> None:
    """Write an encoder with random weights, for experiments."""
    from speechft_ray.commands.encoders import new_encoder

    new_encoder(family, out, layers=layers, dim=dim, large=large, seed=seed)
    typer.echo(
        f"{out}: {family}, {layers} layers of {dim}, random weights. Use it with --encoder {out}"
    )


@app.command()
def export(
    run: Annotated[
        str,
        typer.Argument(help="A sweep's name (its winner), or the fingerprint of a merged encoder."),
    ],
    out: Annotated[Path, typer.Argument(help="File or folder to write; must not exist.")],
    to: Annotated[str, typer.Option(help="Format: hf, fairseq, s3prl or safetensors.")],
    storage: Annotated[str, typer.Option(help="Storage of the sweep: a folder or a URL.")] = "runs",
    push: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="Also upload the folder to the Hugging Face hub, as a private model.",
        ),
    ] = None,
) -> None:
    """Write the merged encoder that a sweep selected in the format of another tool, with a model
    card."""
    from speechft_ray.commands.encoders import export_encoder

    for sentence in export_encoder(run, to, out, storage, push):
        typer.echo(sentence)
