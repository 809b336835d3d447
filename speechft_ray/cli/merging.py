"""The verbs merge and diff."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from speechft_ray.cli.app import app
from speechft_ray.cli.options import parse_options
from speechft_ray.core.errors import UserError

if TYPE_CHECKING:
    from speechft_ray.merging.difference import Difference


@app.command()
def merge(
    method: Annotated[str | None, typer.Argument(help="Merge method; see --list.")] = None,
    base: Annotated[
        str | None, typer.Option(help="Pre-trained encoder, or any safetensors file.")
    ] = None,
    donor: Annotated[
        list[str] | None,
        typer.Option(help="Model tuned from the base, or a LoRA folder; may be repeated."),
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(help="Parameter of the method as NAME=VALUE (YAML, as in a search space)."),
    ] = None,
    alpha: Annotated[float, typer.Option(help="0 is the base, 1 the whole merge.")] = 1.0,
    out: Annotated[
        Path | None, typer.Option(help="File to write (.safetensors), or a folder for an encoder.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Merge as this mergekit YAML file says; with --out alone.")
    ] = None,
    write_recipe: Annotated[
        Path | None, typer.Option(help="Write the merge as this mergekit YAML file instead.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace --out when it exists.")] = False,
    show: Annotated[
        bool, typer.Option("--list", help="Show all methods with their parameters and defaults.")
    ] = False,
) -> None:
    """Merge models that were tuned from one base: encoders of any format, or safetensors files of
    any model."""
    if show:
        Console().print(_method_table())
        return
    if recipe is not None:
        _merge_from_recipe(recipe, alpha, out, force, others=[method, base, donor, param])
        return
    if method is None or base is None or not donor or (out is None and write_recipe is None):
        raise UserError(
            "a merge needs METHOD, --base, at least one --donor and --out; "
            "`speechft merge --list` shows the methods."
        )
    if write_recipe is not None:
        from speechft_ray.commands.recipes import write_recipe as write

        params = parse_options(param or [], "--param")
        write(method, params, base, donor, alpha, write_recipe, replace=force)
        print(write_recipe)
        return
    assert out is not None
    from speechft_ray.commands.merge import merge_models

    merge_models(
        method, parse_options(param or [], "--param"), base, donor, alpha, out, replace=force
    )
    print(out)


def _merge_from_recipe(
    recipe: Path, alpha: float, out: Path | None, force: bool, others: list[Any]
) -> None:
    from speechft_ray.commands.recipes import merge_from_recipe

    if out is None:
        raise UserError("--recipe needs --out.")
    if any(others):
        raise UserError(
            "--recipe names the method, the models and their parameters: give neither METHOD nor "
            "--base, --donor or --param beside it."
        )
    merge_from_recipe(recipe, alpha, out, replace=force)
    print(out)


@app.command()
def diff(
    first: Annotated[str, typer.Argument(help="Encoder, or any safetensors file.")],
    second: Annotated[
        str, typer.Argument(help="Another encoder or safetensors file of the same architecture.")
    ],
    picture: Annotated[
        Path | None, typer.Option(help="PNG file for a plot of the differences.")
    ] = None,
) -> None:
    """Print the differences between two models, layer by layer."""
    from speechft_ray.commands.merge import read_states
    from speechft_ray.merging.difference import compute_differences, draw_differences

    differences = compute_differences(*read_states(first, second))
    Console().print(_difference_table(differences))
    if picture is not None:
        if not picture.parent.is_dir():
            raise UserError(
                f"the folder of {picture} does not exist: make it, or give another --picture."
            )
        draw_differences(differences, f"{Path(first).name} → {Path(second).name}", picture)


def _method_table() -> Table:
    from speechft_ray.merging.base import METHODS, MergeParams

    table = Table("method", "donors", "parameters and their defaults", box=SIMPLE_HEAD)
    common = ", ".join(
        f"{name}={field.default}" for name, field in MergeParams.model_fields.items()
    )
    table.caption = (
        f"All methods: {common}; and --alpha. LoRA donors: also add_weighted_adapter, as in peft."
    )
    for name, method in METHODS.items():
        fields = {
            key: field
            for key, field in method.params.model_fields.items()
            if key not in MergeParams.model_fields
        }
        defaults = method.params()
        params = ", ".join(f"{key}={_format_default(getattr(defaults, key))}" for key in fields)
        fewest, most = method.donors(defaults)
        table.add_row(
            name,
            f"{fewest}+" if most is None else str(most) if most == fewest else f"{fewest}-{most}",
            params,
        )
    return table


def _format_default(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _difference_table(differences: list[Difference]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("group")
    for title in ("parameters", "distance", "relative", "cosine", "changed"):
        table.add_column(title, justify="right")
    for item in differences:
        values = (
            f"{item.num_params:,}",
            f"{item.distance:.4g}",
            f"{item.relative:.3%}",
            f"{item.cosine:.6f}",
        )
        share = item.changed / item.num_params if item.num_params else 0.0
        table.add_row(
            item.name, *values, f"{share:.1%}", style="bold" if item.name == "all" else ""
        )
    return table
