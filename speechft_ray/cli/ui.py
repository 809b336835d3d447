"""The verb ui: the page of MLflow."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from speechft_ray.cli.app import app
from speechft_ray.core.signals import stop_on_signals


@app.command()
def ui(
    target: Annotated[
        str | None, typer.Argument(help="A storage, or the name of a sweep in --storage.")
    ] = None,
    storage: Annotated[
        str, typer.Option(help="Storage of your sweeps: a folder or a URL.")
    ] = "runs",
    mlflow: Annotated[
        str | None, typer.Option(help="MLflow URI; default: the one that the sweep used.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port on 127.0.0.1; default: 5000, else a free one."),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Start MLflow on this machine where a sweep was logged and print the page of its runs, the
    best first. Ctrl-C ends it."""
    from speechft_ray.commands.ui import find_target, find_uri, open_pages

    place = find_target(target, storage)
    uri = find_uri(place, mlflow)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    with stop_on_signals() as stop:
        open_pages(place, uri, port, open_page, stop, console)
