"""Merges by a recipe: resolves its settings for each parameter, and merges those with equal ones.

Settings are resolved as in mergekit: per model before per slice before the whole file; of
conditions the first whose ``filter`` is part of the parameter's name; a list of numbers is a
gradient over the layers, whose first value also holds for parameters in no layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.layers import ANY_LAYER, ENCODER_LAYER, layer_of
from speechft_ray.merging._mergekit import PEER_METHODS, REQUIRED, Conversion
from speechft_ray.merging.algebra import merge
from speechft_ray.merging.alignment import StateDict, check_compatible, find_tied
from speechft_ray.merging.recipes import Recipe, Settings


def resolve(recipe: Recipe, names: Iterable[str]) -> dict[str, Conversion]:
    """Returns the merge of each parameter by name.

    Raises ``UserError`` for a filter that is part of no name, and for slices that do not cover the
    layers.
    """
    names = list(names)
    layers = {name: _find_layer(name) for name in names}
    count = max((layer + 1 for layer in layers.values() if layer is not None), default=0)
    _check_filters(recipe, names)
    if recipe.slices[-1].end not in (None, count):
        raise UserError(
            f"the slices end at layer {recipe.slices[-1].end}, but the base has {count} layers: "
            "the slices must cover each layer once, in order."
        )
    return {name: _resolve_name(recipe, name, layer, count) for name, layer in layers.items()}


def merge_by_recipe(
    recipe: Recipe,
    states: Mapping[str, StateDict],
    alpha: float = 1.0,
    protected_prefixes: Sequence[str] = (),
) -> dict[str, torch.Tensor]:
    """Merges state dicts by a recipe; ``states`` by the name of the model in it.

    Parameters that share their resolved settings are merged together. Raises ``UserError`` where
    ``algebra.merge`` does.
    """
    base = states[recipe.reference()]
    donors = [states[name] for name in recipe.donors()]
    for name, donor in zip(recipe.donors(), donors, strict=True):
        check_compatible(base, donor, name, tuple(protected_prefixes))
    tied = find_tied(base)
    conversions = resolve(recipe, base)
    # Parameters by their settings; what the base ties stays together.
    parts: dict[str, list[str]] = {}
    for name in base:
        conversion = conversions[tied[name]]
        parts.setdefault(repr(conversion), []).append(name)
    merged: dict[str, torch.Tensor] = {}
    for names in parts.values():
        method, params = conversions[tied[names[0]]]
        own = {name: base[name] for name in names}
        if method is None or not any(
            tensor.is_floating_point() and not name.startswith(tuple(protected_prefixes))
            for name, tensor in own.items()
        ):
            merged |= {name: tensor.detach().clone() for name, tensor in own.items()}
            continue
        sources = [{name: donor[name] for name in names if name in donor} for donor in donors]
        merged |= merge(method, params, own, sources, alpha, protected_prefixes)
    return {name: merged[name] for name in base}


def round_state(state: StateDict, recipe: Recipe) -> dict[str, torch.Tensor]:
    """Returns the state with its floating-point values in the number type of the recipe."""
    return {
        name: tensor.to(recipe.dtype)
        if recipe.dtype is not None and tensor.is_floating_point()
        else tensor
        for name, tensor in state.items()
    }


def _resolve_name(recipe: Recipe, name: str, layer: int | None, count: int) -> Conversion:
    peer = PEER_METHODS[recipe.method]
    part = next(
        (
            each
            for each in recipe.slices
            if layer is not None and each.first <= layer < (count if each.end is None else each.end)
        ),
        recipe.slices[0],
    )
    depth = 0.0
    if layer is not None:
        length = (count if part.end is None else part.end) - part.first
        depth = (layer - part.first) / (length - 1) if length > 1 else 1.0
    scopes = (part.shared, recipe.settings)
    shared = {
        key: _resolve_value(key, default, scopes, name, depth, "the merge")
        for key, default in peer.shared.items()
    }
    by_donor = [
        {
            key: _resolve_value(
                key, default, (part.by_model.get(model, {}), *scopes), name, depth, model
            )
            for key, default in peer.by_donor.items()
        }
        for model in recipe.donors()
    ]
    return peer.convert(shared, by_donor, recipe.base is not None)


def _resolve_value(
    key: str, default: Any, scopes: Sequence[Settings], name: str, depth: float, model: str
) -> Any:
    for scope in scopes:
        if key in scope:
            value = _evaluate(scope[key], name, depth)
            if value is not None:
                return value
    if default is REQUIRED:
        raise UserError(
            f"`{key}` is missing for {name} of {model}: mergekit has no default for it."
        )
    return default


def _evaluate(setting: Any, name: str, depth: float) -> Any:
    """Returns the value of a setting for a parameter at a depth from 0 to 1; ``None`` where no
    condition holds."""
    if isinstance(setting, dict):
        setting = [setting]
    if not isinstance(setting, list):
        return _to_scalar(setting)
    if not any(isinstance(each, dict) for each in setting):
        values = [_to_scalar(each) for each in setting]
        if None in values:
            return values[int(depth * (len(values) - 1))]
        # As in mergekit, true and false are 1 and 0 here: all between them is true.
        position = depth * (len(values) - 1)
        below = int(position)
        above = min(len(values) - 1, below + 1)
        share = position - below
        return (1 - share) * values[below] + share * values[above]
    for condition in setting:
        pattern = condition.get("filter")
        if pattern in (None, "*") or pattern in name:
            return _evaluate(condition.get("value"), name, depth)
    return None


def _to_scalar(value: Any) -> Any:
    """Returns a float for a number, also for one that YAML 1.1 reads as text (1e-5)."""
    if isinstance(value, bool) or value is None:
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UserError(f"`{value}` is no number: parameters of a merge are numbers.") from None


def _find_layer(name: str) -> int | None:
    layer = layer_of(name, ENCODER_LAYER)
    return layer_of(name, ANY_LAYER) if layer is None else layer


def _check_filters(recipe: Recipe, names: Sequence[str]) -> None:
    def conditions(setting: Any) -> Iterable[str]:
        for item in setting if isinstance(setting, list) else [setting]:
            if isinstance(item, dict) and item.get("filter") not in (None, "*"):
                yield str(item["filter"])

    scopes = [recipe.settings]
    for part in recipe.slices:
        scopes += [part.shared, *part.by_model.values()]
    for scope in scopes:
        for setting in scope.values():
            for pattern in conditions(setting):
                if not any(pattern in name for name in names):
                    raise UserError(
                        f"the filter `{pattern}` is part of no parameter's name: an encoder has "
                        "names such as `self_attn`, `fc1`, `layer_norm`, `feature_extractor`."
                    )
