"""Low-rank changes of linear layers, LoRA (arXiv 2106.09685) and DoRA (arXiv 2402.09353), which end
as plain weights.

An adapter is a parametrization of a layer's ``weight`` and not a layer around the layer, as in
peft: s3prl's attention hands ``q_proj.weight`` to
``torch.nn.functional.multi_head_attention_forward`` and never calls the projection itself, so an
adapter around it would silently do nothing. With a parametrization, whoever asks for the weight
gets the adapted one.
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
    """Turns a fixed weight W0, ``(outputs, inputs)``, into the adapted one; at first that is W0 to
    the bit.

    ``a`` ``(rank, inputs)`` and ``b`` ``(outputs, rank)`` are the low-rank change, begun as in
    peft: A as torch begins a linear layer, B at zero. ``magnitude`` ``(outputs,)`` is what DoRA
    brings the norm of each output's row to; ``None`` in LoRA.
    """

    def __init__(self, weight: torch.Tensor, spec: AdapterSpec) -> None:
        super().__init__()
        # Drawn on the CPU, so that every device begins with the same numbers.
        drawn = torch.empty(spec.rank, weight.shape[1], dtype=weight.dtype)
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))
        self.factor = spec.scale / spec.rank
        self.a = nn.Parameter(drawn.to(weight.device))
        self.b = nn.Parameter(weight.new_zeros(weight.shape[0], spec.rank))
        self.magnitude = nn.Parameter(_row_norms(weight)) if spec.kind == "dora" else None

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Returns W0 + (scale / rank) B A; DoRA's rows are brought to their magnitude, the norm
        without a gradient of its own.

        In float32 even where the layers compute in bf16, since the weights that are kept must be
        those that were trained.
        """
        with torch.autocast(weight.device.type, enabled=False):
            changed = weight + self.factor * (self.b @ self.a)
            if self.magnitude is None:
                return changed
            # The quotient comes first: as long as B is zero it is 1, and W0 stays as it is.
            return (self.magnitude / _row_norms(changed))[:, None] * changed


def adapt(
    module: nn.Module, spec: AdapterSpec, learning: Collection[str]
) -> dict[str, nn.Parameter]:
    """Puts an adapter on each linear layer that the spec names, and returns the new parameters by
    their names in ``module``.

    Layers whose weight is not among the names ``learning`` get none. The names of adapted weights
    change until ``merge``; their values, and whether any older parameter learns, do not. Draws A
    from torch's global generator, layer by layer. Raises ``UserError`` when a name of the spec fits
    no layer, or a layer has fewer inputs or outputs than the rank.
    """
    layers = _chosen(module, spec, learning)
    for name, layer in layers.items():
        if spec.rank > min(layer.weight.shape):
            outputs, inputs = layer.weight.shape
            raise UserError(
                f"`adapter.rank` is {spec.rank}, but the layer `{name}` has only {inputs} inputs and {outputs} outputs: choose "
                f"a rank of at most {min(outputs, inputs)}, or leave the layer out of `adapter.layers`."
            )
    for layer in layers.values():
        parametrize.register_parametrization(layer, "weight", Adapter(layer.weight, spec))
    adapters = [name for name, part in module.named_modules() if isinstance(part, Adapter)]
    return {
        f"{name}.{end}": value
        for name in adapters
        for end, value in module.get_submodule(name).named_parameters()
    }


def adapted_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the weights of the adapted layers as they compute now, by the family's names, with
    gradients to the adapters."""
    return {f"{name}.weight": layer.weight for name, layer in _adapted(module)}


def merge(module: nn.Module) -> None:
    """Ends all adapters: their weights become plain parameters under the family's names, with the
    values they had."""
    for _, layer in list(_adapted(module)):
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def _chosen(
    module: nn.Module, spec: AdapterSpec, learning: Collection[str]
) -> dict[str, nn.Linear]:
    every = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    linear = {name: part for name, part in every.items() if f"{name}.weight" in learning}
    for wanted in spec.layers:
        if not any(_ends_with(name, wanted) for name in linear):
            ends = (
                ", ".join(f"`{end}`" for end in sorted({_end(name) for name in linear})) or "none"
            )
            raise UserError(
                f"`adapter.layers`: no linear layer that may learn is called `{wanted}`; there are {ends}."
            )
    return {
        name: part
        for name, part in linear.items()
        if any(_ends_with(name, wanted) for wanted in spec.layers)
    }


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _end(name: str) -> str:
    """The shortest end of a name that says something: a number alone does not."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]


def _adapted(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear) and parametrize.is_parametrized(part, "weight"):
            yield name, part


def _row_norms(weight: torch.Tensor) -> torch.Tensor:
    """Returns the Euclidean norm of each row, at least the smallest normal number: rows of zeros
    stay zero, not NaN."""
    norms: torch.Tensor = torch.linalg.vector_norm(weight.detach(), dim=1)
    return norms.clamp_min(torch.finfo(weight.dtype).tiny)
