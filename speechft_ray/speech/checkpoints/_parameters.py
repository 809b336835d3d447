"""Computes names and shapes of an encoder's parameters from its configuration, to check or complete
a file without building a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights, Shape

Shapes = dict[str, tuple[int, ...]]

_STANDARD = ("hubert", "wav2vec2", "wavlm", "decoar2")


def compute_shapes(family: str, config: Mapping[str, Any]) -> Shapes | None:
    """Returns the shape of every parameter by name, those of pre-training included; None where only
    building the model can tell.

    Raises ``UserError`` for a configuration that the family refuses.
    """
    shape = FAMILIES.get(family).describe(config)
    model = config.get("model_cfg", config.get("cfg", {}))
    if (
        family not in _STANDARD
        or model.get("pos_conv_depth", 1) != 1
        or model.get("quantizer_depth", 1) != 1
    ):
        return None
    sizes = _transformer(shape, model)
    if family == "decoar2":
        return sizes | _linear("post_extract_proj", model.get("input_feat", 80), shape.dim)
    sizes |= _front_end(shape, model)
    sizes["mask_emb"] = (shape.dim,)
    if family == "wavlm":
        return sizes | _relative_positions(shape, model)
    return sizes | (
        _hubert_heads(shape, config) if family == "hubert" else _wav2vec2_heads(shape, model)
    )


def check_fit(weights: EncoderWeights) -> None:
    """Raises ``UserError`` naming the first five parameters that are missing, unexpected or of a
    wrong shape, or one with values that are not finite. Parameters of pre-training may be
    missing."""
    family = FAMILIES.get(weights.family)
    sizes = compute_shapes(weights.family, weights.config)
    if sizes is None:
        family.build(weights)
    else:
        optional = family.pretraining_only_prefixes
        faults = [
            f"{name} is missing"
            for name in sizes
            if name not in weights.state and not name.startswith(optional)
        ]
        faults += [
            f"{name} is not part of the model" for name in weights.state if name not in sizes
        ]
        faults += [
            f"{name} is {tuple(weights.state[name].shape)}, not {size}"
            for name, size in sizes.items()
            if name in weights.state and tuple(weights.state[name].shape) != size
        ]
        if faults:
            more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
            raise UserError(
                f"the weights do not fit the {family.title} of their own configuration: "
                f"{'; '.join(faults[:5])}{more}. Give the file with the configuration that it was "
                "saved with, or the right family's file."
            )
    for name, tensor in weights.state.items():
        if not is_finite(tensor):
            raise UserError(
                f"`{name}` holds values that are no finite numbers: the training that made this "
                "file has diverged."
            )


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether every value is a finite number, in one pass without a copy: minimum and maximum
    propagate NaN."""
    return tensor.numel() == 0 or all(
        bool(torch.isfinite(end)) for end in torch.aminmax(tensor.detach())
    )


def make_zero_parameters(weights: EncoderWeights) -> dict[str, torch.Tensor]:
    """Returns the parameters of pre-training that the weights lack, as zeros: strict loaders demand
    them, features do not depend on them."""
    optional = FAMILIES.get(weights.family).pretraining_only_prefixes
    sizes = compute_shapes(weights.family, weights.config) or {}
    return {
        name: torch.zeros(size)
        for name, size in sizes.items()
        if name not in weights.state and name.startswith(optional)
    }


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, dim: int) -> Shapes:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def _transformer(shape: Shape, model: Mapping[str, Any]) -> Shapes:
    dim, kernel = shape.dim, model.get("conv_pos", 128)
    position = "encoder.pos_conv.0"
    sizes = {
        f"{position}.bias": (dim,),
        f"{position}.weight_g": (1, 1, kernel),
        f"{position}.weight_v": (dim, dim // model.get("conv_pos_groups", 16), kernel),
        **_norm("encoder.layer_norm", dim),
    }
    for layer in range(shape.layers):
        name = f"encoder.layers.{layer}"
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            sizes |= _linear(f"{name}.self_attn.{part}", dim, dim)
        sizes |= _norm(f"{name}.self_attn_layer_norm", dim) | _norm(f"{name}.final_layer_norm", dim)
        sizes |= _linear(f"{name}.fc1", dim, shape.feed_forward_dim) | _linear(
            f"{name}.fc2", shape.feed_forward_dim, dim
        )
    return sizes


def _front_end(shape: Shape, model: Mapping[str, Any]) -> Shapes:
    sizes: Shapes = {}
    inputs = 1
    for index, (channels, kernel, _) in enumerate(shape.conv_layers):
        name = f"feature_extractor.conv_layers.{index}"
        sizes[f"{name}.0.weight"] = (channels, inputs, kernel)
        if model.get("conv_bias", False):
            sizes[f"{name}.0.bias"] = (channels,)
        if shape.extractor_mode == "layer_norm":
            sizes |= _norm(f"{name}.2.1", channels)
        elif index == 0:
            sizes |= _norm(f"{name}.2", channels)
        inputs = channels
    sizes |= _norm("layer_norm", inputs)
    return sizes | (_linear("post_extract_proj", inputs, shape.dim) if inputs != shape.dim else {})


def _relative_positions(shape: Shape, model: Mapping[str, Any]) -> Shapes:
    sizes: Shapes = {}
    if model.get("relative_position_embedding", False):
        sizes["encoder.layers.0.self_attn.relative_attention_bias.weight"] = (
            model.get("num_buckets", 320),
            shape.heads,
        )
    if model.get("gru_rel_pos", False):
        for layer in range(shape.layers):
            name = f"encoder.layers.{layer}.self_attn"
            sizes |= _linear(f"{name}.grep_linear", shape.dim // shape.heads, 8)
            sizes[f"{name}.grep_a"] = (1, shape.heads, 1, 1)
    return sizes


def _final_dim(shape: Shape, model: Mapping[str, Any]) -> int:
    final = int(model.get("final_dim", 0))
    return final if final > 0 else shape.dim


def _hubert_heads(shape: Shape, config: Mapping[str, Any]) -> Shapes:
    model, words = config["model_cfg"], config["dictionaries_symbols"]
    final = _final_dim(shape, model)
    outputs = final * len(words) if model.get("untie_final_proj", False) else final
    sizes = _linear("final_proj", shape.dim, outputs)
    if all(each is not None for each in words):
        sizes["label_embs_concat"] = (sum(map(len, words)), final)
    return sizes | (
        _linear("target_glu.0", final, 2 * final) if model.get("target_glu", False) else {}
    )


def _wav2vec2_heads(shape: Shape, model: Mapping[str, Any]) -> Shapes:
    final, features = _final_dim(shape, model), shape.conv_layers[-1][0]
    sizes = _linear("final_proj", shape.dim, final)
    if model.get("quantize_targets", False):
        width, groups = model.get("latent_dim", 0), model.get("latent_groups", 2)
        width = width if width > 0 else final
        codes = groups * model.get("latent_vars", 320)
        sizes["quantizer.vars"] = (1, codes, width // groups)
        sizes |= _linear("quantizer.weight_proj", features, codes) | _linear(
            "project_q", width, final
        )
    else:
        sizes |= _linear("project_q", features, final)
    return sizes | (
        _linear("target_glu.0", final, 2 * final) if model.get("target_glu", False) else {}
    )
