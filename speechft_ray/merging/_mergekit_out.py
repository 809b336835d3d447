"""Writes merges of ours as mergekit's configuration, where mergekit 0.1.5 has the method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from speechft_ray.core.errors import UserError
from speechft_ray.merging.base import MergeParams, spread, validate_params

Config = dict[str, Any]


def format_recipe(
    method: str, params: Mapping[str, Any], base: str, donors: Sequence[str], alpha: float = 1.0
) -> Config:
    """Returns the plain data of a mergekit file that gives this merge.

    Raises ``UserError`` for a method that mergekit does not have, and for parameters that its
    method cannot have, naming them.
    """
    checked = validate_params(method, params, donors=len(donors))
    if method not in _WRITERS:
        raise UserError(f"mergekit has no `{method}`. It has: {', '.join(sorted(_WRITERS))}.")
    if checked.pos_conv != "factors":
        raise _missing(method, "pos_conv", "factors")
    config = _WRITERS[method](checked, base, list(donors), alpha * checked.scale)
    return {**config, "dtype": "float32"}


def _missing(method: str, name: str, value: Any) -> UserError:
    return UserError(
        f"mergekit's counterpart of `{method}` can only do `{name}: {value}`: set that, or merge "
        "here."
    )


def _require(method: str, params: MergeParams, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if getattr(params, name) != value:
            raise _missing(method, name, value)


def _require_whole(method: str, factor: float) -> None:
    if factor != 1.0:
        raise UserError(
            f"mergekit's counterpart of `{method}` has no lambda, so alpha times `scale` must be "
            f"1, but is {factor:g}."
        )


def _list_models(
    donors: Sequence[str], values: Mapping[str, float | tuple[float, ...]]
) -> list[Config]:
    """Returns the models with their parameters: one value for all, or one for each."""
    columns = {name: spread(value, len(donors)) for name, value in values.items()}
    return [
        {
            "model": donor,
            **(
                {"parameters": {name: column[index] for name, column in columns.items()}}
                if columns
                else {}
            ),
        }
        for index, donor in enumerate(donors)
    ]


def _write_arithmetic(
    peer: str,
    params: Any,
    base: str,
    donors: list[str],
    factor: float,
    shared: Mapping[str, Any],
    more: Mapping[str, float | tuple[float, ...]],
) -> Config:
    weights = params.weights_of(len(donors))
    return {
        "merge_method": peer,
        "base_model": base,
        "models": _list_models(donors, {"weight": weights, **more}),
        "parameters": {"normalize": params.normalize, "lambda": factor, **shared},
    }


def _write_linear(params: Any, base: str, donors: list[str], factor: float) -> Config:
    return _write_arithmetic("task_arithmetic", params, base, donors, factor, {}, {})


def _require_weighted_votes(method: str, params: Any, donors: int) -> None:
    if not params.weigh_election and len(set(params.weights_of(donors))) > 1:
        raise _missing(method, "weigh_election", "true")


def _write_ties(params: Any, base: str, donors: list[str], factor: float) -> Config:
    _require("ties", params, {"zero_sign": "positive", "elect": "mass", "aggregate": "mean"})
    if params.density != 1.0:
        _require("ties", params, {"scope": "tensor", "kept": "exact"})
    _require_weighted_votes("ties", params, len(donors))
    shared = {"rescale": params.rescale == "l1"}
    return _write_arithmetic(
        "ties", params, base, donors, factor, shared, {"density": params.density}
    )


def _check_rescale(method: str, params: Any) -> dict[str, Any]:
    if params.density != 1.0 and params.rescale == "inverse":
        raise _missing(method, "rescale", "l1")
    return {"rescale": params.rescale == "l1"}


def _write_dare_linear(params: Any, base: str, donors: list[str], factor: float) -> Config:
    shared = _check_rescale("dare_linear", params)
    more = {"density": params.density}
    return _write_arithmetic("dare_linear", params, base, donors, factor, shared, more)


def _write_dare_ties(params: Any, base: str, donors: list[str], factor: float) -> Config:
    _require("dare_ties", params, {"trim": 1.0, "zero_sign": "positive", "elect": "mass"})
    _require_weighted_votes("dare_ties", params, len(donors))
    shared = _check_rescale("dare_ties", params)
    more = {"density": params.density}
    return _write_arithmetic("dare_ties", params, base, donors, factor, shared, more)


def _write_della(params: Any, base: str, donors: list[str], factor: float) -> Config:
    peer = "della" if params.consensus else "della_linear"
    more = {"density": params.density, "epsilon": params.epsilon}
    shared = _check_rescale("della", params)
    return _write_arithmetic(peer, params, base, donors, factor, shared, more)


def _write_breadcrumbs(params: Any, base: str, donors: list[str], factor: float) -> Config:
    peer = "breadcrumbs_ties" if params.consensus else "breadcrumbs"
    more = {"density": params.density, "gamma": params.gamma}
    shared = {"rescale": params.rescale == "l1"}
    return _write_arithmetic(peer, params, base, donors, factor, shared, more)


def _write_slerp(params: Any, base: str, donors: list[str], factor: float) -> Config:
    _require_whole("slerp", factor)
    if params.on == "weights" and params.along == "tensor" and params.lerp_above == 0.9995:
        return {
            "merge_method": "slerp",
            "base_model": donors[0],
            "models": _list_models(donors, {}),
            "parameters": {"t": params.t},
        }
    _require("slerp", params, {"lerp_above": 1.0})
    return {
        "merge_method": "nuslerp",
        **({"base_model": base} if params.on == "vectors" else {}),
        "models": _list_models(donors, {"weight": (1 - params.t, params.t)}),
        "parameters": {
            "nuslerp_flatten": params.along == "tensor",
            "nuslerp_row_wise": params.along == "first",
        },
    }


def _write_multislerp(params: Any, base: str, donors: list[str], factor: float) -> Config:
    _require_whole("multislerp", factor)
    return {
        "merge_method": "multislerp",
        **({"base_model": base} if params.on == "vectors" else {}),
        "models": _list_models(donors, {"weight": params.weights_of(len(donors))}),
        "parameters": {"normalize_weights": params.normalize},
    }


def _write_karcher(params: Any, base: str, donors: list[str], factor: float) -> Config:
    _require_whole("karcher", factor)
    _require("karcher", params, {"on": "weights"})
    return {
        "merge_method": "karcher",
        "models": _list_models(donors, {}),
        "parameters": {"max_iter": params.steps, "tol": params.tolerance},
    }


def _write_plain(
    method: str, peer: Callable[[Any], tuple[str, Config]]
) -> Callable[[Any, str, list[str], float], Config]:
    """Returns the writer of a method on a base whose models have no parameters of their own."""

    def write(params: Any, base: str, donors: list[str], factor: float) -> Config:
        _require_whole(method, factor)
        name, shared = peer(params)
        return {
            "merge_method": name,
            "base_model": base,
            "models": _list_models(donors, {}),
            **({"parameters": shared} if shared else {}),
        }

    return write


def _name_ram(params: Any) -> tuple[str, Config]:
    shared = {"epsilon": params.epsilon}
    if params.gain == 0.0:
        return "ram", shared
    return "ramplus_tl", {"r": params.gain, "alpha": params.gain_limit, **shared}


def _name_sce(params: Any) -> tuple[str, Config]:
    _require("sce", params, {"equal_below": 1e-6})
    return "sce", {"select_topk": params.density}


def _write_nearswap(params: Any, base: str, donors: list[str], factor: float) -> Config:
    if len(donors) != 1:
        raise UserError("mergekit's `nearswap` takes one donor: merge here.")
    write = _write_plain("nearswap", lambda each: ("nearswap", {"t": each.t}))
    return write(params, base, donors, factor)


_WRITERS: Mapping[str, Callable[[Any, str, list[str], float], Config]] = {
    "linear": _write_linear,
    "task_arithmetic": _write_linear,
    "ties": _write_ties,
    "dare_linear": _write_dare_linear,
    "dare_ties": _write_dare_ties,
    "della": _write_della,
    "breadcrumbs": _write_breadcrumbs,
    "slerp": _write_slerp,
    "multislerp": _write_multislerp,
    "karcher": _write_karcher,
    "model_stock": _write_plain("model_stock", lambda params: ("model_stock", {})),
    "sce": _write_plain("sce", _name_sce),
    "ram": _write_plain("ram", _name_ram),
    "nearswap": _write_nearswap,
    "arcee_fusion": _write_plain("arcee_fusion", lambda params: ("arcee_fusion", {})),
}
