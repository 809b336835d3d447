"""Low-rank adapters of linear layers, LoRA (arXiv 2106.09685) and DoRA (arXiv 2402.09353), merged
into plain weights at the end.

An adapter is a parametrization of a layer's ``weight`` and not a module around the layer, as in
peft: s3prl's attention passes ``q_proj.weight`` to
``torch.nn.functional.multi_head_attention_forward`` and never calls the projection itself, so an
adapter around it would silently have no effect. With a parametrization, every access to the weight
returns the adapted one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize

from speechft_ray.core.errors import UserError
from speechft_ray.core.specs import AdapterSpec


class Adapter(nn.Module):
    """Maps a fixed weight W0, ``(outputs, inputs)``, to the adapted one; at the start that equals
    W0 to the bit.

    ``a`` ``(rank, inputs)`` and ``b`` ``(outputs, rank)`` are the low-rank factors, initialised as
    in peft: A as torch initialises a linear layer, B to zero. ``magnitude`` ``(outputs,)``: DoRA's
    norm of each output's row; ``None`` in LoRA.
    """

    def __init__(self, weight: torch.Tensor, spec: AdapterSpec) -> None:
        super().__init__()
        # Drawn on the CPU, so that every device begins with the same numbers.
        a = torch.empty(spec.rank, weight.shape[1], dtype=weight.dtype)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        self.factor = spec.scale / spec.rank
        self.a = nn.Parameter(a.to(weight.device))
        self.b = nn.Parameter(weight.new_zeros(weight.shape[0], spec.rank))
        self.magnitude = nn.Parameter(_row_norms(weight)) if spec.kind == "dora" else None

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Returns W0 + (scale / rank) B A; DoRA scales its rows to their magnitude, without a
        gradient through the norm.

        Computed in float32 even where the layers compute in bf16: the merged weights must be those
        that were trained.
        """
        with torch.autocast(weight.device.type, enabled=False):
            changed = weight + self.factor * (self.b @ self.a)
            if self.magnitude is None:
                return changed
            # The quotient comes first: as long as B is zero it is 1, and W0 stays as it is.
            return (self.magnitude / _row_norms(changed))[:, None] * changed


def add_adapters(
    module: nn.Module, spec: AdapterSpec, trainable: Collection[str]
) -> dict[str, nn.Parameter]:
    """Adds an adapter to each linear layer that the spec names, and returns the new parameters by
    their names in ``module``.

    Layers whose weight is not among the names in ``trainable`` get none. Adapted weights have other
    names until ``merge_adapters``; their values do not change, nor does ``requires_grad`` of older
    parameters. Draws A from torch's global generator, layer by layer. Raises ``UserError`` when a
    name of the spec fits no layer, or a layer has fewer inputs or outputs than the rank.
    """
    layers = _select_layers(module, spec, trainable)
    for name, layer in layers.items():
        if spec.rank > min(layer.weight.shape):
            outputs, inputs = layer.weight.shape
            raise UserError(
                f"`adapter.rank` is {spec.rank}, but the layer `{name}` has only {inputs} inputs "
                f"and {outputs} outputs: choose a rank of at most {min(outputs, inputs)}, or leave "
                "the layer out of `adapter.layers`."
            )
    for layer in layers.values():
        parametrize.register_parametrization(layer, "weight", Adapter(layer.weight, spec))
    adapters = [name for name, part in module.named_modules() if isinstance(part, Adapter)]
    return {
        f"{name}.{end}": value
        for name in adapters
        for end, value in module.get_submodule(name).named_parameters()
    }


def compute_adapted_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the current weights of the adapted layers, by the family's names, with gradients to
    the adapters."""
    return {f"{name}.weight": layer.weight for name, layer in _iter_adapted_layers(module)}


def merge_adapters(module: nn.Module) -> None:
    """Removes all adapters: the current weights become plain parameters under the family's
    names."""
    for _, layer in list(_iter_adapted_layers(module)):
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def _select_layers(
    module: nn.Module, spec: AdapterSpec, trainable: Collection[str]
) -> dict[str, nn.Linear]:
    every = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    linear = {name: part for name, part in every.items() if f"{name}.weight" in trainable}
    for suffix in spec.layers:
        if not any(_has_suffix(name, suffix) for name in linear):
            allowed = (
                ", ".join(f"`{end}`" for end in sorted({_short_name(name) for name in linear}))
                or "none"
            )
            raise UserError(
                f"`adapter.layers`: no linear layer that may learn is called `{suffix}`; there "
                f"are {allowed}."
            )
    return {
        name: part
        for name, part in linear.items()
        if any(_has_suffix(name, suffix) for suffix in spec.layers)
    }


def _has_suffix(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")


def _short_name(name: str) -> str:
    """Returns the last component of a name, or the last two where that is a number."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]


def _iter_adapted_layers(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear) and parametrize.is_parametrized(part, "weight"):
            yield name, part


def _row_norms(weight: torch.Tensor) -> torch.Tensor:
    """Returns the Euclidean norm of each row, at least the smallest normal number: rows of zeros
    stay zero, not NaN."""
    norms: torch.Tensor = torch.linalg.vector_norm(weight.detach(), dim=1)
    return norms.clamp_min(torch.finfo(weight.dtype).tiny)
