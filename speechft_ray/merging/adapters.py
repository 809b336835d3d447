"""LoRA adapters in peft's format (arXiv 2106.09685; DoRA, arXiv 2402.09353) as donors.

An adapter becomes the donor base + scaling * B A, without the full weights of a tuned model.
``combine_adapters`` makes one donor of several, with the combinations of peft's
``add_weighted_adapter``; those that peft forms of the factors A and B have no counterpart among
methods on whole weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch

from speechft_ray.core.errors import UserError, unknown_name
from speechft_ray.merging._consensus import elect
from speechft_ray.merging._drop import draw_mask
from speechft_ray.merging.alignment import StateDict, join_first_five

Combination = Literal[
    "linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_linear_svd", "dare_ties",
    "dare_ties_svd", "magnitude_prune", "magnitude_prune_svd",
]  # fmt: skip
COMBINATIONS: tuple[str, ...] = get_args(Combination)

_PREFIX = "base_model.model."
_KEY = re.compile(
    r"^(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector)(\.default)?(\.weight)?$"
)

_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of ``init_lora_weights`` in peft that take something out of the base, so that base +
B A is the base again only at the start."""


class LowRank(NamedTuple):
    """The change of one weight: scaling * b @ a."""

    a: torch.Tensor
    """``(rank, inputs)``"""
    b: torch.Tensor
    """``(outputs, rank)``"""
    scaling: float
    magnitude: torch.Tensor | None = None
    """DoRA's norm of each output's row, ``(outputs,)``; ``None`` in LoRA."""

    def change(self) -> torch.Tensor:
        """Returns scaling * b @ a, ``(outputs, inputs)``."""
        return self.scaling * (self.b @ self.a)


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """The changes of an adapter by the key of the weight in the base."""

    name: str
    layers: Mapping[str, LowRank]


def parse_adapter(
    name: str,
    config: Mapping[str, Any],
    tensors: StateDict,
    base: StateDict,
    aliases: Mapping[str, str] | None = None,
) -> Adapter:
    """Returns an adapter aligned with a base.

    ``aliases``: keys of the base by other names of them, such as those of transformers. Raises
    ``UserError`` for an adapter that is no LoRA, holds other weights as well, has matrices of
    another rank than its configuration, or was trained on another base or on a changed one.
    """
    if config.get("peft_type") != "LORA":
        raise UserError(
            f"{name} is an adapter of the type {config.get('peft_type')}: only LORA merges."
        )
    start = str(config.get("init_lora_weights", True))
    if start.startswith(_CHANGES_BASE):
        raise UserError(
            f"{name} was initialized with `{start}`, which changes the base, too, so it is no "
            "change of this one: merge it into its base with peft (`merge_and_unload`) and give "
            "the whole model, or save it with `path_initial_model_for_weight_conversion`."
        )
    parts: dict[str, dict[str, torch.Tensor]] = {}
    others = []
    for key, tensor in tensors.items():
        match = _KEY.match(key.removeprefix(_PREFIX))
        if match is None:
            others.append(key)
        else:
            parts.setdefault(match["module"], {})[match["part"]] = tensor
    if others:
        raise UserError(
            f"{name} holds {len(others)} tensors that are no LoRA factors "
            f"({join_first_five(others)}): only adapters without trained biases and without "
            "`modules_to_save` merge."
        )
    layers, strangers = {}, []
    for module, factors in parts.items():
        weight = _find_weight(module, base, aliases or {})
        layer = _make_layer(name, module, factors, config)
        if weight is None or base[weight].shape != (layer.b.shape[0], layer.a.shape[1]):
            strangers.append(module)
        else:
            layers[weight] = layer
    if strangers or not layers:
        raise UserError(
            f"{name} is a LoRA of another base: {len(strangers)} of its {len(parts)} layers are "
            f"not in this one with their shape ({join_first_five(strangers)}). It names the base "
            f"`{config.get('base_model_name_or_path')}`."
        )
    return Adapter(name=name, layers=layers)


def apply_adapter(adapter: Adapter, base: StateDict) -> dict[str, torch.Tensor]:
    """Returns the base with the adapter's changes; all other tensors are the base's own."""
    donor = dict(base)
    for key, layer in adapter.layers.items():
        start = base[key].detach()
        changed = start.float() + layer.change().to(start.device)
        if layer.magnitude is not None:
            norms = torch.linalg.vector_norm(changed, dim=1)
            changed = changed * (layer.magnitude.float().flatten() / norms)[:, None]
        donor[key] = changed.to(torch.promote_types(start.dtype, torch.float32))
    return donor


def combine_adapters(
    combination: str,
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    *,
    density: float = 1.0,
    majority_sign_method: Literal["total", "frequency"] = "total",
    svd_rank: int | None = None,
    seed: int = 0,
) -> Adapter:
    """Returns one adapter with the combination of peft's ``add_weighted_adapter`` (0.21).

    ``linear``, ``ties``, ``dare_linear``, ``dare_ties`` and ``magnitude_prune`` combine A and B
    apart, each with the square root of weight * scaling; those with ``_svd``, and ``svd``, combine
    the products and truncate them to ``svd_rank`` (``None``: the largest rank); ``cat`` adds the
    products up. Masks are drawn as in this package's DARE, not as in peft.

    Raises ``UserError`` for an unknown combination, a number of weights that is not that of the
    adapters, a density outside (0, 1], ranks that differ where A and B are combined, and DoRA.
    """
    if combination not in COMBINATIONS:
        raise UserError(unknown_name("combination of adapters", combination, COMBINATIONS))
    if len(weights) != len(adapters):
        raise UserError(
            f"`weights` must have one value per adapter, {len(adapters)}, but has {len(weights)}."
        )
    if not 0 < density <= 1:
        raise UserError(f"`density` must be in (0, 1], but is {density:g}.")
    names = dict.fromkeys(key for adapter in adapters for key in adapter.layers)
    layers = {}
    for key in names:
        present = [
            (index, adapter.layers[key], weight)
            for index, (adapter, weight) in enumerate(zip(adapters, weights, strict=True))
            if key in adapter.layers
        ]
        if any(layer.magnitude is not None for _, layer, _ in present):
            raise UserError(
                "DoRA adapters have no combination in peft: give each as a donor of a merge method."
            )
        options = _Options(combination, density, majority_sign_method, svd_rank, seed, key)
        layers[key] = _combine_layer(options, present)
    return Adapter(name=combination, layers=layers)


class _Options(NamedTuple):
    combination: str
    density: float
    majority: str
    rank: int | None
    seed: int
    key: str


def _combine_layer(options: _Options, present: Sequence[tuple[int, LowRank, float]]) -> LowRank:
    kind = options.combination.removesuffix("_svd")
    donors = [index for index, _, _ in present]
    if options.combination == "cat":
        return LowRank(
            a=torch.cat([layer.a * (weight * layer.scaling) for _, layer, weight in present]),
            b=torch.cat([layer.b for _, layer, _ in present], dim=1),
            scaling=1.0,
        )
    if options.combination == "svd" or options.combination.endswith("_svd"):
        changes = [layer.change() for _, layer, _ in present]
        total = _combine_tensors(
            "linear" if kind == "svd" else kind,
            changes,
            [weight for _, _, weight in present],
            donors,
            options,
            "",
        )
        rank = options.rank or max(layer.a.shape[0] for _, layer, _ in present)
        left, values, right = torch.linalg.svd(total, full_matrices=False)
        return LowRank(a=right[:rank], b=left[:, :rank] * values[:rank], scaling=1.0)
    ranks = {layer.a.shape[0] for _, layer, _ in present}
    if len(ranks) > 1:
        raise UserError(
            f"`{options.combination}` combines A and B apart, so all adapters must have one rank, "
            f"but have {sorted(ranks)}: take `{kind if kind != 'linear' else ''}svd`, or `cat`."
        )
    scales = [weight * layer.scaling for _, layer, weight in present]
    roots = [math.sqrt(abs(scale)) for scale in scales]
    signed = [math.copysign(root, scale) for root, scale in zip(roots, scales, strict=True)]
    a, b = (
        _combine_tensors(kind, tensors, factors, donors, options, side)
        for tensors, factors, side in (
            ([layer.a for _, layer, _ in present], signed, "/A"),
            ([layer.b for _, layer, _ in present], roots, "/B"),
        )
    )
    return LowRank(a=a, b=b, scaling=1.0)


def _combine_tensors(
    kind: str,
    tensors: Sequence[torch.Tensor],
    weights: Sequence[float],
    donors: Sequence[int],
    options: _Options,
    side: str,
) -> torch.Tensor:
    """Returns the sum of the weighted tensors after the trim or drop; for TIES the mean of those
    with the elected sign, which the unweighted tensors elect."""
    values = [tensor.float() for tensor in tensors]
    if options.density < 1.0 and kind in ("ties", "magnitude_prune"):
        values = [_trim(value, options.density) for value in values]
    elif options.density < 1.0 and kind.startswith("dare"):
        values = [
            value
            * draw_mask(options.density, options.seed, donor, options.key + side, value)
            / options.density
            for donor, value in zip(donors, values, strict=True)
        ]
    weighted = [value * weight for value, weight in zip(values, weights, strict=True)]
    if not kind.endswith("ties"):
        return torch.stack(weighted).sum(dim=0)
    signs = elect(values, "mass" if options.majority == "total" else "count").add(0.5).sign_()
    agreeing = torch.stack([value.sign() == signs for value in values])
    return (torch.stack(weighted) * agreeing).sum(dim=0) / agreeing.sum(dim=0).clamp_min(1)


def _trim(values: torch.Tensor, density: float) -> torch.Tensor:
    """Returns the int(density * n) values of largest magnitude, else 0; of equal ones the first."""
    places = values.abs().flatten().sort(descending=True, stable=True).indices
    kept = torch.zeros(values.numel(), dtype=torch.bool)
    kept[places[: int(density * values.numel())]] = True
    return values * kept.reshape(values.shape)


def _find_weight(module: str, base: StateDict, aliases: Mapping[str, str]) -> str | None:
    """Returns the key of a module's weight in the base; a leading name of the whole model, such as
    ``hubert.``, may be missing there."""
    while True:
        key = f"{module}.weight"
        if key in base:
            return key
        if aliases.get(key) in base:
            return aliases[key]
        if "." not in module:
            return None
        module = module.partition(".")[2]


def _make_layer(
    name: str, module: str, factors: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> LowRank:
    a, b = factors.get("lora_A"), factors.get("lora_B")
    if a is None or b is None or a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
        raise UserError(
            f"{name} has no pair of matrices A and B for {module}: only LoRA of linear layers "
            "merges."
        )
    patterns = (config.get(key) or {} for key in ("rank_pattern", "alpha_pattern"))
    ranks, alphas = (_find_pattern(name, module, one) for one in patterns)
    rank = int(config.get("r", a.shape[0]) if ranks is None else ranks)
    alpha = float(config.get("lora_alpha", rank) if alphas is None else alphas)
    if rank != a.shape[0]:
        raise UserError(
            f"{name} has matrices of rank {a.shape[0]} for {module}, where its configuration says "
            f"{rank}: they do not belong together. Save the adapter again."
        )
    scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    if config.get("fan_in_fan_out"):
        a, b = b.T, a.T
    return LowRank(
        a=a.float(), b=b.float(), scaling=scaling, magnitude=factors.get("lora_magnitude_vector")
    )


def _find_pattern(name: str, module: str, patterns: Mapping[str, Any]) -> Any:
    """Returns the value of the first regular expression that is the module's name or the end of it
    behind a dot, as in peft; ``None`` where there is none."""
    for pattern, value in patterns.items():
        try:
            is_match = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise UserError(
                f"{name} has the pattern `{pattern}`, which is no regular expression ({error})."
            ) from None
        if is_match:
            return value
    return None
