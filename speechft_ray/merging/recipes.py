"""Recipes in mergekit's format, and what they may hold for an encoder.

A recipe is the plain data of a mergekit YAML file (version 0.1.5). ``recipe_merge`` merges by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from speechft_ray.core.errors import UserError, unknown_name
from speechft_ray.merging._mergekit import PEER_METHODS

Settings = Mapping[str, Any]

FIELDS = ("merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype")
FOREIGN = {
    "tokenizer": "an encoder has no tokenizer",
    "tokenizer_source": "an encoder has no tokenizer",
    "chat_template": "an encoder has no chat template",
    "modules": "an encoder is one module",
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class RecipeSlice:
    """Layers that share their settings."""

    first: int
    end: int | None
    """One more than the last layer; ``None``: to the last layer of the base."""
    by_model: Mapping[str, Settings]
    shared: Settings


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A merge as a mergekit file describes it."""

    method: str
    """Name of mergekit's method."""
    base: str | None
    models: tuple[str, ...]
    """Models in the order of the file; the base last where the file does not list it."""
    slices: tuple[RecipeSlice, ...]
    settings: Settings
    dtype: torch.dtype | None
    """Number type of the result; ``None``: that of the base."""

    def donors(self) -> tuple[str, ...]:
        """Returns the models whose weights are merged."""
        peer = PEER_METHODS[self.method]
        if peer.donors == "all" and self.method == "slerp" and self.base:
            return (self.base, *(model for model in self.models if model != self.base))
        return tuple(model for model in self.models if peer.donors == "all" or model != self.base)

    def reference(self) -> str:
        """Returns the model that the merge starts from: the base, else the first model."""
        return self.base or self.models[0]


def parse_recipe(raw: Any) -> Recipe:
    """Returns the recipe in the plain data of a mergekit file.

    Raises ``UserError`` for what an encoder does not have, and for what the file may not hold.
    """
    if not isinstance(raw, dict) or not isinstance(raw.get("merge_method"), str):
        raise UserError("a mergekit file is a mapping with `merge_method`, but this is none.")
    for name in raw:
        if name in FOREIGN and raw[name] is not None:
            raise UserError(f"`{name}`: {FOREIGN[name]}; take the line out.")
        if name not in FIELDS and name not in FOREIGN:
            raise UserError(unknown_name("field", str(name), FIELDS))
    method = raw["merge_method"]
    if method not in PEER_METHODS:
        raise UserError(unknown_name("merge method of mergekit", method, PEER_METHODS))
    if bool(raw.get("models")) == bool(raw.get("slices")):
        raise UserError("a recipe has either `models` or `slices`, and one of them.")
    settings = _check_settings(raw.get("parameters"), method, "the file", is_model=False)
    slices = (
        (_parse_models(raw["models"], method),)
        if raw.get("models")
        else _parse_slices(raw["slices"], method)
    )
    base = None if raw.get("base_model") is None else _model_name(raw["base_model"])
    models = tuple(slices[0].by_model)
    recipe = Recipe(
        method=method,
        base=base,
        models=models if base is None or base in models else (*models, base),
        slices=slices,
        settings=settings,
        dtype=_parse_dtype(raw.get("out_dtype") or raw.get("dtype")),
    )
    _check_models(recipe)
    return recipe


def _parse_models(raw: Any, method: str) -> RecipeSlice:
    return RecipeSlice(first=0, end=None, by_model=_parse_sources(raw, method), shared={})


def _parse_slices(raw: Any, method: str) -> tuple[RecipeSlice, ...]:
    slices: list[RecipeSlice] = []
    if not isinstance(raw, list):
        raise UserError("`slices` must be a list.")
    for number, item in enumerate(raw):
        sources = item.get("sources") if isinstance(item, dict) else None
        ranges = {
            tuple(source["layer_range"]) if isinstance(source.get("layer_range"), list) else ()
            for source in sources or ()
        }
        start = slices[-1].end if slices else 0
        (layers,) = ranges if len(ranges) == 1 else ((),)
        if len(layers) != 2 or layers[0] != start or not layers[1] > layers[0]:
            raise UserError(
                f"slice {number + 1} moves layers: in an encoder every source of a slice must have "
                "the same `layer_range`, and the slices must cover each layer once, in order."
            )
        by_model = _parse_sources(sources, method)
        if slices and set(by_model) != set(slices[0].by_model):
            raise UserError(
                f"slice {number + 1} has other models than slice 1: each slice must merge the same."
            )
        shared = _check_settings(
            item.get("parameters"), method, f"slice {number + 1}", is_model=False
        )
        slices.append(RecipeSlice(first=layers[0], end=layers[1], by_model=by_model, shared=shared))
    return tuple(slices)


def _parse_sources(raw: Any, method: str) -> dict[str, Settings]:
    sources: dict[str, Settings] = {}
    for item in raw if isinstance(raw, list) else [None]:
        if not isinstance(item, dict) or "model" not in item:
            raise UserError("every model of a recipe is a mapping with `model`.")
        name = _model_name(item["model"])
        if name in sources:
            raise UserError(f"{name} is listed twice: give each model once.")
        sources[name] = _check_settings(item.get("parameters"), method, name, is_model=True)
    return sources


def _model_name(raw: Any) -> str:
    """Returns the path of a model; mergekit also writes it as ``{model: {path: ...}}``."""
    while isinstance(raw, dict) and ("model" in raw or "path" in raw):
        raw = raw.get("model", raw.get("path"))
    if not isinstance(raw, str) or not raw:
        raise UserError(f"`{raw}` is no model: give its name or path.")
    return raw


def _check_settings(raw: Any, method: str, where: str, *, is_model: bool) -> Settings:
    peer = PEER_METHODS[method]
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise UserError(f"`parameters` of {where} must be a mapping.")
    every = {**peer.shared, **peer.by_donor}
    for name in raw:
        if name not in every:
            raise UserError(
                f"{where}: {unknown_name(f'parameter of `{method}`', str(name), every)}"
            )
        if is_model and name not in peer.by_donor:
            raise UserError(
                f"`{name}` is a parameter of the whole merge, which mergekit ignores under the "
                f"model {where}: move it to the file's own `parameters`."
            )
    return raw


def _parse_dtype(name: Any) -> torch.dtype | None:
    if name is None:
        return None
    if name not in DTYPES:
        raise UserError(unknown_name("dtype", str(name), DTYPES))
    return DTYPES[name]


def _check_models(recipe: Recipe) -> None:
    peer = PEER_METHODS[recipe.method]
    if peer.base == "required" and recipe.base is None:
        raise UserError(f"`{recipe.method}` needs a `base_model`.")
    if peer.base == "no" and recipe.base is not None:
        raise UserError(f"`{recipe.method}` copies one model: take `base_model` out.")
    fewest, most = peer.count
    count = len(recipe.donors())
    if count < fewest or (most is not None and count > most):
        allowed = str(fewest) if most == fewest else f"at least {fewest}"
        raise UserError(
            f"`{recipe.method}` merges {allowed} models"
            f"{' beside the base' if peer.donors == 'others' and recipe.base else ''}, "
            f"but the recipe lists {count}."
        )
