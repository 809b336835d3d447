"""Merges by mergekit's YAML files, and writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speechft_ray.commands.merge import check_paths
from speechft_ray.commands.merge_models import read_models, write_merged
from speechft_ray.core.errors import UserError
from speechft_ray.core.files import atomic_write
from speechft_ray.merging._mergekit_out import format_recipe
from speechft_ray.merging.algebra import check_alpha
from speechft_ray.merging.recipe_merge import merge_by_recipe, round_state
from speechft_ray.merging.recipes import Recipe, parse_recipe


def merge_from_recipe(file: Path, alpha: float, out: Path, replace: bool = False) -> None:
    """Merges as a mergekit file says, and writes the result, whole or not at all.

    Raises ``UserError``, with the name of the file, for what the file may not hold and for what an
    encoder does not have, and where ``merge_models`` does.
    """
    recipe = read_recipe(file)
    check_alpha(alpha)
    if recipe.base is None and alpha != 1.0:
        raise UserError(
            f"{file} has no base_model, so there is nothing that alpha {alpha:g} could go back to: "
            "leave --alpha out, or add a base_model."
        )
    others = [name for name in recipe.models if name != recipe.reference()]
    check_paths(recipe.reference(), others, out, replace)
    models = read_models(recipe.reference(), others)
    states = dict(zip((recipe.reference(), *others), (models.base, *models.donors), strict=True))
    try:
        state = merge_by_recipe(recipe, states, alpha, models.list_protected_prefixes())
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    write_merged(models, round_state(state, recipe), out, {"recipe": file.name, "alpha": alpha})


def read_recipe(file: Path) -> Recipe:
    """Reads a mergekit file. Raises ``UserError``, with its name, for what it may not hold."""
    from speechft_ray.sweep.yaml_text import YamlError, load_yaml

    try:
        raw = load_yaml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YamlError) as error:
        raise UserError(f"{file} cannot be read as YAML ({error}).") from error
    try:
        return parse_recipe(raw)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def write_recipe(
    method: str,
    params: Mapping[str, Any],
    base: str,
    donors: Sequence[str],
    alpha: float,
    file: Path,
    replace: bool = False,
) -> None:
    """Writes a merge as a mergekit file. Raises ``UserError`` where mergekit cannot do it, and for
    a file that exists."""
    import yaml

    check_alpha(alpha)
    if file.exists() and not replace:
        raise UserError(f"{file} exists: give another --write-recipe, or --force to replace it.")
    text = yaml.safe_dump(format_recipe(method, params, base, donors, alpha), sort_keys=False)
    with atomic_write(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
