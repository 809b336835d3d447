"""Translates ``config.json`` of transformers' HuBERT, wav2vec 2.0 and WavLM to our configurations
and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechft_ray.core.errors import UserError
from speechft_ray.core.units import SAMPLE_RATE_HZ
from speechft_ray.speech.checkpoints._plain import to_plain_data
from speechft_ray.speech.checkpoints._safetensors import read_json
from speechft_ray.speech.encoders.base import FAMILIES

ARCHITECTURES = {"hubert": "HubertModel", "wav2vec2": "Wav2Vec2Model", "wavlm": "WavLMModel"}

_SHARED: dict[str, tuple[str, Any]] = {
    "hidden_size": ("encoder_embed_dim", 768),
    "num_hidden_layers": ("encoder_layers", 12),
    "num_attention_heads": ("encoder_attention_heads", 12),
    "intermediate_size": ("encoder_ffn_embed_dim", 3072),
    "hidden_act": ("activation_fn", "gelu"),
    "hidden_dropout": ("dropout", 0.1),
    "activation_dropout": ("activation_dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.1),
    "feat_proj_dropout": ("dropout_input", 0.0),
    "layerdrop": ("encoder_layerdrop", 0.1),
    "conv_bias": ("conv_bias", False),
    "num_conv_pos_embeddings": ("conv_pos", 128),
    "num_conv_pos_embedding_groups": ("conv_pos_groups", 16),
    "do_stable_layer_norm": ("layer_norm_first", False),
}
_OWN: dict[str, dict[str, tuple[str, Any]]] = {
    "hubert": {},
    "wav2vec2": {
        "num_codevectors_per_group": ("latent_vars", 320),
        "num_codevector_groups": ("latent_groups", 2),
        "codevector_dim": ("latent_dim", 256),
        "proj_codevector_dim": ("final_dim", 256),
        "contrastive_logits_temperature": ("logit_temp", 0.1),
    },
    "wavlm": {"num_buckets": ("num_buckets", 320), "max_bucket_distance": ("max_distance", 800)},
}
"""Key of transformers: our key, and the default of transformers 5
(``models/*/configuration_*.py``)."""

_OUR_DEFAULTS = {
    "dropout": 0.1,
    "activation_dropout": 0.0,
    "dropout_input": 0.0,
    "encoder_layerdrop": 0.0,
    "max_distance": 1280,
    "latent_dim": 0,
    "final_dim": 0,
}
"""Defaults of our families for absent keys, where they are not those of transformers."""

_ACTIVATIONS = ("gelu", "relu", "tanh", "linear")
"""Activations with the same name and meaning in transformers, fairseq and s3prl."""

_EXTRACTORS = {"group": "default", "layer": "layer_norm"}
_REQUIRED: dict[str, tuple[Any, str]] = {
    "feat_extract_activation": ("gelu", "the convolutions here have no other activation"),
    "layer_norm_eps": (1e-5, "the normalisations here have no other epsilon"),
    "feat_proj_layer_norm": (
        True,
        (
            "an encoder without the layer norm before its feature projection, as DistilHuBERT is, "
            "is not supported; HuBERT, wav2vec 2.0 and WavLM have it"
        ),
    ),
    "conv_pos_batch_norm": (
        False,
        (
            "an encoder with batch norm in its positional convolution, as mHuBERT at 25 Hz is, is "
            "not supported; the positional convolution here has weight norm"
        ),
    ),
    "add_adapter": (
        False,
        (
            "the adapter behind the layers, which shortens the output, is not supported; give the "
            "encoder that it was added to"
        ),
    ),
    "adapter_attn_dim": (
        None,
        (
            "adapters inside the layers, as those of MMS for each language, are not supported; "
            "give the pre-trained encoder without them (of MMS, hf:facebook/mms-300m or "
            "hf:facebook/mms-1b)"
        ),
    ),
}
"""Keys that change the network: the only value that is supported, and what the others are
(``models/*/configuration_*.py`` of transformers)."""

_GEOMETRY = {
    "conv_dim": [512] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
}


def read_hf_config(file: Path) -> dict[str, Any]:
    """Returns the keys of a ``config.json`` that describe an encoder.

    Others are not looked at: the names of a classifier's labels (``id2label``) may be any text.
    Raises ``UserError`` for a file that is no JSON object, and for keys with values that are not
    plain data.
    """
    content = read_json(file)
    if not isinstance(content, dict):
        raise UserError(
            f"{file} is no configuration of transformers: it holds a {type(content).__name__}, "
            "not an object with `model_type`."
        )
    names = {
        "model_type",
        "feat_extract_norm",
        *_SHARED,
        *(key for own in _OWN.values() for key in own),
        *_REQUIRED,
        *_GEOMETRY,
    }
    config: dict[str, Any] = to_plain_data(
        {key: value for key, value in content.items() if key in names}, str(file)
    )
    return config


def family_of(where: str, config: Any) -> str:
    """Returns the family of a ``config.json``. Raises ``UserError`` for another model."""
    family = config.get("model_type") if isinstance(config, Mapping) else None
    if not isinstance(family, str) or family not in ARCHITECTURES:
        raise UserError(
            f"{where} describes a `{str(family)[:60]}`. Allowed as `model_type`: "
            f"{', '.join(ARCHITECTURES)}."
        )
    return family


def from_hf_config(where: str, config: Mapping[str, Any], normalize: bool) -> dict[str, Any]:
    """Returns our configuration for one of transformers. Raises ``UserError`` naming the key that
    has no counterpart or a wrong type."""
    family = family_of(where, config)
    for key, (needed, reason) in _REQUIRED.items():
        if config.get(key, needed) != needed:
            raise UserError(
                f"{where}: `{key}` must be {json.dumps(needed)}, but is "
                f"{json.dumps(config[key])[:60]}: {reason}."
            )
    model = {
        our_key: config.get(hf_key, default)
        for hf_key, (our_key, default) in (_SHARED | _OWN[family]).items()
    }
    extractor = config.get("feat_extract_norm", "group")
    if not isinstance(extractor, str) or extractor not in _EXTRACTORS:
        raise UserError(
            f"{where}: `feat_extract_norm` must be one of {', '.join(_EXTRACTORS)}, but is "
            f"{str(extractor)[:60]!r}."
        )
    model |= {
        "extractor_mode": _EXTRACTORS[extractor],
        "conv_feature_layers": _format_convolutions(where, config),
    }
    if family == "wavlm":
        return {
            "cfg": {
                **model,
                "relative_position_embedding": True,
                "gru_rel_pos": True,
                "normalize": normalize,
            }
        }
    task = {"sample_rate": SAMPLE_RATE_HZ, "normalize": normalize}
    if family == "wav2vec2":
        return {"model_cfg": {"_name": family, **model, "quantize_targets": True}, "task_cfg": task}
    return {
        "model_cfg": {"_name": family, "label_rate": 50.0, **model},
        "task_cfg": task,
        "dictionaries_symbols": [],
    }


def to_hf_config(family: str, config: Mapping[str, Any], masks: bool) -> dict[str, Any]:
    """Returns the configuration of transformers for one of ours; ``masks``: whether there is an
    embedding for masked frames.

    Masking probabilities are transformers' own, 0.05: they are for fine-tuning there. Raises
    ``UserError`` for an encoder that transformers does not have.
    """
    check_hf_config(family, config)
    shape = FAMILIES.get(family).describe(config)
    model = config["cfg" if family == "wavlm" else "model_cfg"]
    extractors = {our_key: hf_key for hf_key, our_key in _EXTRACTORS.items()}
    translated = {
        hf_key: model.get(our_key, _OUR_DEFAULTS.get(our_key, default))
        for hf_key, (our_key, default) in (_SHARED | _OWN[family]).items()
    }
    if family == "wav2vec2":
        # 0 or less means the default of fairseq: the width of the layers.
        final, codes = translated["proj_codevector_dim"], translated["codevector_dim"]
        translated["proj_codevector_dim"] = final if final > 0 else shape.dim
        translated["codevector_dim"] = codes if codes > 0 else translated["proj_codevector_dim"]
    return {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "dtype": "float32",
        **translated,
        "feat_extract_norm": extractors[shape.extractor_mode or "default"],
        "feat_extract_activation": "gelu",
        "layer_norm_eps": 1e-5,
        **{
            key: [layer[index] for layer in shape.conv_layers]
            for index, key in enumerate(_GEOMETRY)
        },
        "num_feat_extract_layers": len(shape.conv_layers),
        "mask_time_prob": 0.05 if masks else 0.0,
        "mask_feature_prob": 0.0,
    }


def check_hf_config(family: str, config: Mapping[str, Any]) -> None:
    """Raises ``UserError`` for an encoder that transformers does not have."""
    model = config["cfg" if family == "wavlm" else "model_cfg"]
    if model.get("pos_conv_depth", 1) != 1:
        raise UserError(
            "`model_cfg.pos_conv_depth` is not 1, and transformers has no such encoder. Convert to "
            "s3prl or fairseq."
        )
    if model.get("activation_fn", "gelu") not in _ACTIVATIONS:
        raise UserError(
            f"`activation_fn` is {model['activation_fn']}, and transformers has no such layer. "
            "Convert to s3prl."
        )
    if family == "wavlm" and not (
        model.get("relative_position_embedding") is True and model.get("gru_rel_pos") is True
    ):
        raise UserError(
            "this WavLM has no gated relative positions, and transformers has only those. Convert "
            "to s3prl."
        )


def _format_convolutions(where: str, config: Mapping[str, Any]) -> str:
    """Returns fairseq's text for these convolutions, repeats folded as in the published files."""
    columns = [config.get(key, default) for key, default in _GEOMETRY.items()]
    is_valid = all(
        isinstance(column, list) and all(type(each) is int for each in column) for column in columns
    )
    if (
        not is_valid
        or len({len(column) for column in columns}) != 1
        or not 1 <= len(columns[0]) <= 32
    ):
        raise UserError(
            f"{where}: `conv_dim`, `conv_kernel` and `conv_stride` must be lists of whole numbers, "
            "equally long."
        )
    terms: list[list[Any]] = []
    for layer in zip(*columns, strict=True):
        if terms and terms[-1][0] == layer:
            terms[-1][1] += 1
        else:
            terms.append([layer, 1])
    return " + ".join(
        f"[({','.join(map(str, layer))})]" + (f" * {count}" if count > 1 else "")
        for layer, count in terms
    )
