"""Inner products of each layer's inputs behind the merged layers below it, which the merge method
``regmean_plusplus`` needs (arXiv 2508.03121, algorithm 1).

An encoder is merged part by part: the convolutional front end, everything else outside of layers,
then layer by layer. For each part every donor's own part runs on that donor's waveforms behind the
parts that are merged already; from what its linear layers see there, the part is merged in turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from speechft_ray.core.layers import ANY_LAYER, layer_of
from speechft_ray.finetuning.merge_statistics import GramRecorder
from speechft_ray.merging.algebra import merge, require_statistics
from speechft_ray.merging.alignment import StateDict
from speechft_ray.speech.encoders.base import FAMILIES, Encoder, EncoderWeights

METHOD = "regmean_plusplus"
OUTSIDE = -1
"""Depth of the parameters that belong to neither a layer nor the front end, such as the projection
of its output. They are merged before the first layer."""

Features = Sequence[torch.Tensor]
"""Outputs of the front end for one donor's waveforms, each ``(frames, channels)``."""


def compute_layer_grams(
    base: EncoderWeights,
    donors: Sequence[StateDict],
    protected_prefixes: Sequence[str],
    waves: Sequence[StateDict],
    params: Mapping[str, Any],
) -> list[dict[str, torch.Tensor]]:
    """Returns X^T X over the number of rows for the weight of each linear layer, one mapping per
    donor, with keys ``layer_gram:<parameter>``.

    ``waves``: one mapping per donor, with keys ``waves:<number>`` and values ``(samples,)``, 16
    kHz. ``params``: those of the merge; lower layers are merged with them at alpha and scale 1.
    Waveforms are normalised as for the base. Raises ``UserError`` for a donor without waveforms.
    """
    require_statistics(METHOD, "waves", waves)
    family = FAMILIES.get(base.family)
    encoder = family.build(base)
    parts = _split(base.state, family.front_end_prefixes, tuple(protected_prefixes))
    grams: list[dict[str, torch.Tensor]] = [{} for _ in donors]
    settings = {name: value for name, value in params.items() if name != "scale"}
    with torch.no_grad():
        # No linear layer comes before the front end's output: it is averaged.
        front_end = parts.pop(None, [])
        _merge_part(encoder.module(), base.state, donors, front_end, grams, settings)
        features = [_encode_front_end(encoder, item) for item in waves]
        for depth in sorted(parts, key=lambda depth: OUTSIDE if depth is None else depth):
            names = parts[depth]
            for donor, inputs, products in zip(donors, features, grams, strict=True):
                _load(encoder.module(), {name: donor[name] for name in names})
                products |= _record(encoder, names, inputs, max(depth or 0, 0))
            _merge_part(encoder.module(), base.state, donors, names, grams, settings)
    return grams


def _split(
    state: StateDict, front_end: tuple[str, ...], protected: tuple[str, ...]
) -> dict[int | None, list[str]]:
    """Returns the names of the parameters to merge by depth: the layer's number, ``OUTSIDE``, or
    ``None`` for the front end."""
    parts: dict[int | None, list[str]] = {}
    for name, tensor in state.items():
        if name.startswith(protected) or not tensor.is_floating_point():
            continue
        layer = layer_of(name, ANY_LAYER)
        outside = None if front_end and name.startswith(front_end) else OUTSIDE
        parts.setdefault(outside if layer is None else layer, []).append(name)
    return parts


def _encode_front_end(encoder: Encoder, waves: StateDict) -> list[torch.Tensor]:
    """Encodes waveforms one by one, so that none depends on the others."""
    ordered = sorted(name for name in waves if name.startswith("waves:"))
    return [encoder.conv_features([waves[name]])[0] for name in ordered]


def _load(module: nn.Module, values: StateDict) -> None:
    """Copies values into a module's parameters, which stay where they are in memory."""
    module.load_state_dict(dict(values), strict=False)


def _record(
    encoder: Encoder, names: Sequence[str], features: Features, last_layer: int
) -> dict[str, torch.Tensor]:
    """Runs the encoder up to a layer, and returns the inner products of the inputs of the linear
    layers among ``names``."""
    module = encoder.module()
    weights = {name: module.get_parameter(name) for name in names}
    recorder = GramRecorder({name: value for name, value in weights.items() if value.dim() == 2})
    with recorder:
        for item in features:
            with _stop_after(module, last_layer):
                encoder.hidden_states_from([item])
    return {f"layer_gram:{name}": value for name, value in recorder.means().items()}


class _ReachedLayer(Exception):
    """Ends a forward pass behind the last layer of interest."""


@contextmanager
def _stop_after(module: nn.Module, layer: int) -> Iterator[None]:
    """Within the block, a forward pass ends behind a layer; one without that layer goes on."""

    def stop(*_: Any) -> None:
        raise _ReachedLayer

    handles = [
        part.register_forward_hook(stop)
        for name, part in module.named_modules()
        if name.endswith(f"layers.{layer}") and layer_of(f"{name}.", ANY_LAYER) == layer
    ]
    try:
        yield
    except _ReachedLayer:
        pass
    finally:
        for handle in handles:
            handle.remove()


def _merge_part(
    module: nn.Module,
    base: StateDict,
    donors: Sequence[StateDict],
    names: Sequence[str],
    grams: Sequence[StateDict],
    params: Mapping[str, Any],
) -> None:
    """Merges the parameters of these names and loads them; a part without linear layers is
    averaged."""
    if not names:
        return
    method, settings = METHOD, dict(params)
    if not all(any(f"layer_gram:{name}" in products for name in names) for products in grams):
        method = "linear"
        settings.pop("off_diagonal", None)
    states = [{name: state[name] for name in names} for state in (base, *donors)]
    _load(module, merge(method, settings, states[0], states[1:], 1.0, statistics=grams))
