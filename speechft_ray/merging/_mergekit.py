"""Merge methods of mergekit 0.1.5: their parameters, and what they are here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from speechft_ray.core.errors import UserError

REQUIRED = object()
"""Stands for a parameter without a default."""

Values = Mapping[str, Any]


class Conversion(NamedTuple):
    """A merge by one of our methods; ``None`` as method keeps the base."""

    method: str | None
    params: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PeerMethod:
    """A merge method of mergekit."""

    convert: Callable[[Values, Sequence[Values], bool], Conversion]
    """``convert(shared, by_donor, has_base)``"""
    shared: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the whole merge, with their defaults."""
    by_donor: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of each model, with their defaults."""
    base: Literal["required", "optional", "no"] = "required"
    donors: Literal["others", "all"] = "others"
    """Whether the base itself is merged like the other models."""
    count: tuple[int, int | None] = (1, None)
    """Smallest and largest number of models that are merged."""


def _weights(by_donor: Sequence[Values]) -> list[float]:
    return [float(values["weight"]) for values in by_donor]


def _collapse(by_donor: Sequence[Values], name: str) -> float | list[float]:
    """Returns one value where all donors have the same, else one per donor."""
    values = [min(1.0, float(each[name])) for each in by_donor]
    return values[0] if len(set(values)) == 1 else values


def _make_arithmetic(
    method: str,
    *,
    sparse: Sequence[str] = (),
    more: Mapping[str, Any] | None = None,
    normalize: bool = False,
    rescale: bool = False,
) -> PeerMethod:
    """Returns a method of mergekit's generalised task arithmetic. ``sparse``: its parameters by
    donor beside the weight."""
    defaults = {"density": 1.0, "gamma": 0.01, "epsilon": 0.15}

    def convert(shared: Values, by_donor: Sequence[Values], has_base: bool) -> Conversion:
        weights = _weights(by_donor)
        if not any(weights):
            return Conversion(None, {})
        params: dict[str, Any] = {"weights": weights, "scale": float(shared["lambda"])}
        # mergekit does not divide by a sum of almost 0.
        params["normalize"] = bool(shared["normalize"]) and abs(sum(weights)) >= 1e-8
        for name in sparse:
            params[name] = _collapse(by_donor, name)
        if "density" in sparse:
            if min(float(each["density"]) for each in by_donor) <= 0:
                raise UserError(
                    "a `density` of 0 drops the whole donor: leave that model out, or set its "
                    "`weight` to 0."
                )
            params["rescale"] = "l1" if shared["rescale"] else "none"
        return Conversion(method, {**params, **(more or {})})

    return PeerMethod(
        convert=convert,
        shared={"int8_mask": False, "normalize": normalize, "rescale": rescale, "lambda": 1.0},
        # Methods that do not trim accept a density without effect.
        by_donor={"weight": REQUIRED, **{name: defaults[name] for name in sparse or ("density",)}},
    )


def _convert_linear(shared: Values, by_donor: Sequence[Values], has_base: bool) -> Conversion:
    return Conversion(
        "linear", {"weights": _weights(by_donor), "normalize": bool(shared["normalize"])}
    )


def _convert_slerp(shared: Values, by_donor: Sequence[Values], has_base: bool) -> Conversion:
    return Conversion("slerp", {"on": "weights", "t": float(shared["t"])})


def _convert_nuslerp(shared: Values, by_donor: Sequence[Values], has_base: bool) -> Conversion:
    first, second = _weights(by_donor)
    total = first + second
    along = "tensor"
    if not shared["nuslerp_flatten"]:
        along = "first" if shared["nuslerp_row_wise"] else "last"
    return Conversion(
        "slerp",
        {
            "on": "vectors" if has_base else "weights",
            "t": second / total if abs(total) >= 1e-6 else 0.5,
            "lerp_above": 1.0,
            "along": along,
        },
    )


def _convert_multislerp(shared: Values, by_donor: Sequence[Values], has_base: bool) -> Conversion:
    return Conversion(
        "multislerp",
        {
            "on": "vectors" if has_base else "weights",
            "weights": _weights(by_donor),
            "normalize": bool(shared["normalize_weights"]),
        },
    )


def _convert_karcher(shared: Values, by_donor: Sequence[Values], has_base: bool) -> Conversion:
    return Conversion(
        "karcher",
        {"on": "weights", "steps": int(shared["max_iter"]), "tolerance": float(shared["tol"])},
    )


def _convert_model_stock(shared: Values, by_donor: Sequence[Values], has_base: bool) -> Conversion:
    if shared["filter_wise"]:
        raise UserError(
            "`filter_wise: true` of mergekit's `model_stock` has no counterpart: leave it out."
        )
    return Conversion("model_stock", {})


def _convert_sce(shared: Values, by_donor: Sequence[Values], has_base: bool) -> Conversion:
    return Conversion("sce", {"density": float(shared["select_topk"]), "equal_below": 1e-6})


def _convert_ram(shared: Values, by_donor: Sequence[Values], has_base: bool) -> Conversion:
    params = {"epsilon": float(shared["epsilon"])}
    if "r" in shared:
        params |= {"gain": float(shared["r"]), "gain_limit": float(shared["alpha"])}
    return Conversion("ram", params)


def _convert_passthrough(shared: Values, by_donor: Sequence[Values], has_base: bool) -> Conversion:
    scale = by_donor[0]["scale"]
    if scale is not None and float(scale) != 1.0:
        raise UserError(
            "`scale` of mergekit's `passthrough` multiplies weights themselves, which no merge of "
            "an encoder does: leave it out."
        )
    return Conversion("linear", {})


PEER_METHODS: Mapping[str, PeerMethod] = {
    "linear": PeerMethod(
        convert=_convert_linear,
        shared={"normalize": True},
        by_donor={"weight": REQUIRED},
        base="optional",
        donors="all",
    ),
    "task_arithmetic": _make_arithmetic("task_arithmetic"),
    "ties": _make_arithmetic(
        "ties", sparse=("density",), more={"like": "mergekit"}, normalize=True
    ),
    "dare_linear": _make_arithmetic("dare_linear", sparse=("density",), rescale=True),
    "dare_ties": _make_arithmetic(
        "dare_ties", sparse=("density",), more={"like": "mergekit"}, rescale=True
    ),
    "della": _make_arithmetic("della", sparse=("density", "epsilon"), normalize=True, rescale=True),
    "della_linear": _make_arithmetic(
        "della", sparse=("density", "epsilon"), more={"consensus": False}, rescale=True
    ),
    "breadcrumbs": _make_arithmetic("breadcrumbs", sparse=("density", "gamma")),
    "breadcrumbs_ties": _make_arithmetic(
        "breadcrumbs", sparse=("density", "gamma"), more={"consensus": True}
    ),
    "slerp": PeerMethod(convert=_convert_slerp, shared={"t": REQUIRED}, donors="all", count=(2, 2)),
    "nuslerp": PeerMethod(
        convert=_convert_nuslerp,
        shared={"nuslerp_row_wise": False, "nuslerp_flatten": True},
        by_donor={"weight": REQUIRED},
        base="optional",
        count=(2, 2),
    ),
    "multislerp": PeerMethod(
        convert=_convert_multislerp,
        shared={"normalize_weights": True, "eps": 1e-8},
        by_donor={"weight": REQUIRED},
        base="optional",
    ),
    "karcher": PeerMethod(
        convert=_convert_karcher,
        shared={"max_iter": 10, "tol": 1e-5},
        base="optional",
        donors="all",
    ),
    "model_stock": PeerMethod(
        convert=_convert_model_stock, shared={"filter_wise": False}, count=(2, None)
    ),
    "sce": PeerMethod(convert=_convert_sce, shared={"int8_mask": False, "select_topk": 1.0}),
    "ram": PeerMethod(convert=_convert_ram, shared={"epsilon": 1e-5}),
    "ramplus_tl": PeerMethod(
        convert=_convert_ram, shared={"r": 0.1, "alpha": 0.2, "epsilon": 1e-5}
    ),
    "nearswap": PeerMethod(
        convert=lambda shared, by_donor, has_base: Conversion(
            "nearswap", {"t": float(shared["t"])}
        ),
        shared={"t": REQUIRED},
        count=(1, 1),
    ),
    "arcee_fusion": PeerMethod(
        convert=lambda shared, by_donor, has_base: Conversion("arcee_fusion", {}), count=(1, 1)
    ),
    "passthrough": PeerMethod(
        convert=_convert_passthrough, by_donor={"scale": None}, base="no", count=(1, 1)
    ),
}
