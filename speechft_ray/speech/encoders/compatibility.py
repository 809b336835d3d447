"""Whether encoders are one network, so that their weights may be merged or compared; and which of
their parameters a merge leaves alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.speech.encoders.base import FAMILIES, MASK_EMBEDDING, EncoderWeights

_WITHOUT_EFFECT = frozenset(
    {
        # Dropout is off when features are computed.
        *("dropout", "attention_dropout", "activation_dropout"),
        *("dropout_input", "dropout_features"),
        # Heads of pre-training; a merge keeps the base's.
        *("final_dim", "untie_final_proj", "target_glu", "logit_temp"),
        *("quantize_targets", "quantizer_depth", "quantizer_factor"),
        *("latent_vars", "latent_groups", "latent_dim"),
        # Padding that is cut off again.
        *("required_seq_len_multiple", "crop_seq_to_multiple"),
    }
)
"""Options that do not change the hidden states of an utterance. All others do."""

_SIZES = (
    *("encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim"),
    *("conv_pos", "conv_pos_groups", "num_buckets", "input_feat"),
    *("conv_feature_layers (channels)", "conv_feature_layers (kernels)"),
)
"""Options that names and shapes of the weights show: there the weights themselves are compared."""

_SAME = {"gelu_fast": "gelu_accurate"}
"""Activations with two names (s3prl ``upstream/wav2vec2/wav2vec2_model.py``,
``get_activation_fn``)."""


def check_same_network(
    base: EncoderWeights, others: Mapping[str, EncoderWeights], title: str = "the base"
) -> list[str]:
    """Returns a note for each encoder that differs from the base in the normalisation of waveforms
    alone.

    ``others`` are encoders by what a message calls them, ``title`` is that of the base. Names and
    shapes of the weights are not compared, nor anything where the sizes differ. Raises
    ``UserError`` for another family, and for configurations that make another network of the same
    weights.
    """
    families = [
        f"{name} ({other.family})" for name, other in others.items() if other.family != base.family
    ]
    if families:
        raise UserError(
            f"{title} is of the family {base.family}, but not {', '.join(families)}: "
            "merge models of one family."
        )
    expected = _list_options(base)
    waveform = _describe_waveform(base)
    notes = []
    for name, other in others.items():
        options = _list_options(other)
        differ = {key: value for key, value in options.items() if value != expected[key]}
        if not differ.keys().isdisjoint(_SIZES):
            continue
        if differ:
            faults = [
                f"`{key}` is {_format(value)}, not {_format(expected[key])}"
                for key, value in differ.items()
            ]
            raise UserError(
                f"{name} is another network than {title}: its {', its '.join(faults)}. The same "
                "weights give other features there: take only models that were tuned from one "
                "encoder."
            )
        if _describe_waveform(other) != waveform:
            notes.append(f"{name} {_describe_waveform(other)}, {title} {waveform}")
    return notes


def find_protected_prefixes(
    base: EncoderWeights, donors: Sequence[Mapping[str, torch.Tensor]]
) -> tuple[str, ...]:
    """Returns the prefixes of parameters that a merge takes from the base: those that only
    pre-training uses.

    A mask embedding that a donor's tuning changed (continued pre-training) is merged with all else
    that was trained. Where none did, it is left alone, so that it does not count in thresholds and
    norms of the whole model.
    """
    prefixes = FAMILIES.get(base.family).pretraining_only_prefixes
    start = base.state.get(MASK_EMBEDDING)
    others = [donor.get(MASK_EMBEDDING) for donor in donors]
    is_trained = (
        start is not None
        and all(other is not None and other.shape == start.shape for other in others)
        and any(other is not None and not torch.equal(start, other) for other in others)
    )
    return tuple(prefix for prefix in prefixes if not (is_trained and prefix == MASK_EMBEDDING))


def _list_options(weights: EncoderWeights) -> dict[str, Any]:
    """Returns every option that changes hidden states, with its default where it is absent."""
    family = FAMILIES.get(weights.family)
    options = {
        key: _SAME.get(value, value) if isinstance(value, str) else value
        for key, value in family.read_options(weights.config).items()
        if key not in _WITHOUT_EFFECT and key != "conv_feature_layers"
    }
    layers = family.describe(weights.config).conv_layers
    for index, title in enumerate(("channels", "kernels", "strides")):
        options[f"conv_feature_layers ({title})"] = [layer[index] for layer in layers]
    return options


def _format(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _describe_waveform(weights: EncoderWeights) -> str:
    return (
        "brings waveforms to zero mean and unit variance"
        if FAMILIES.get(weights.family).describe(weights.config).normalizes_waveform
        else "takes waveforms as they are"
    )
