"""Translates parameter names between transformers' encoders and those of fairseq and s3prl."""

from __future__ import annotations

import re

_RULES = (
    ("mask_emb", "masked_spec_embed"),
    ("layer_norm.{p}", "feature_projection.layer_norm.{p}"),
    ("post_extract_proj.{p}", "feature_projection.projection.{p}"),
    ("feature_extractor.conv_layers.{n}.0.{p}", "feature_extractor.conv_layers.{n}.conv.{p}"),
    (
        "feature_extractor.conv_layers.{n}.2.1.{p}",
        "feature_extractor.conv_layers.{n}.layer_norm.{p}",
    ),  # layer_norm extractor
    (
        "feature_extractor.conv_layers.{n}.2.{p}",
        "feature_extractor.conv_layers.{n}.layer_norm.{p}",
    ),  # default extractor
    ("encoder.pos_conv.0.bias", "encoder.pos_conv_embed.conv.bias"),
    (
        "encoder.pos_conv.0.weight_g",
        "encoder.pos_conv_embed.conv.parametrizations.weight.original0",
    ),
    (
        "encoder.pos_conv.0.weight_v",
        "encoder.pos_conv_embed.conv.parametrizations.weight.original1",
    ),
    ("encoder.layer_norm.{p}", "encoder.layer_norm.{p}"),
    ("encoder.layers.{n}.self_attn.{a}.{p}", "encoder.layers.{n}.attention.{a}.{p}"),
    ("encoder.layers.{n}.self_attn_layer_norm.{p}", "encoder.layers.{n}.layer_norm.{p}"),
    ("encoder.layers.{n}.fc1.{p}", "encoder.layers.{n}.feed_forward.intermediate_dense.{p}"),
    ("encoder.layers.{n}.fc2.{p}", "encoder.layers.{n}.feed_forward.output_dense.{p}"),
    ("encoder.layers.{n}.final_layer_norm.{p}", "encoder.layers.{n}.final_layer_norm.{p}"),
    (
        "encoder.layers.{n}.self_attn.relative_attention_bias.weight",
        "encoder.layers.{n}.attention.rel_attn_embed.weight",
    ),
    (
        "encoder.layers.{n}.self_attn.grep_linear.{p}",
        "encoder.layers.{n}.attention.gru_rel_pos_linear.{p}",
    ),
    ("encoder.layers.{n}.self_attn.grep_a", "encoder.layers.{n}.attention.gru_rel_pos_const"),
)
"""Base models: our names and those of transformers 5
(``models/{hubert,wav2vec2,wavlm}/modeling_*.py``)."""

_OLDER = (
    ("mask_emb", "mask_time_emb_vector"),
    ("encoder.pos_conv.0.weight_g", "encoder.pos_conv_embed.conv.weight_g"),
    ("encoder.pos_conv.0.weight_v", "encoder.pos_conv_embed.conv.weight_v"),
)
"""Names that transformers wrote before: of the mask embedding in its first releases, of weight norm
until torch 2.1 had parametrisations. Most published files have the latter."""

_PRETRAINING = (
    ("quantizer.vars", "quantizer.codevectors"),
    ("quantizer.weight_proj.{p}", "quantizer.weight_proj.{p}"),
    ("project_q.{p}", "project_q.{p}"),
    ("final_proj.{p}", "project_hid.{p}"),
)
"""Parameters of ``Wav2Vec2ForPreTraining`` beside its base model."""

BASE_PARTS = (
    "feature_extractor",
    "feature_projection",
    "encoder",
    "masked_spec_embed",
    "mask_time_emb_vector",
)
"""First components of the names in a base model."""

_PARTS = {"n": r"(?P<n>\d{1,4})", "p": r"(?P<p>weight|bias)", "a": r"(?P<a>[kvq]_proj|out_proj)"}


def to_hf(name: str) -> str | None:
    """Returns transformers' name of a parameter, or None where its base model has none."""
    return _translate(name, _RULES)


def from_hf(name: str, extractor_mode: str) -> str | None:
    """Returns our name of a parameter of a base model, or None where we have none."""
    other = ".2." if extractor_mode == "layer_norm" else ".2.1."
    rules = [
        (hf_name, our_name)
        for our_name, hf_name in (*_RULES, *_OLDER)
        if not (other + "{p}" in our_name and "conv_layers" in our_name)
    ]
    return _translate(name, rules)


def from_hf_pretraining(name: str) -> str | None:
    """Returns our name of a parameter beside the base model of ``Wav2Vec2ForPreTraining``, or None
    for parts of other heads."""
    return _translate(name, [(hf_name, our_name) for our_name, hf_name in _PRETRAINING])


def _translate(name: str, rules: tuple[tuple[str, str], ...] | list[tuple[str, str]]) -> str | None:
    for source, target in rules:
        pattern = re.escape(source)
        for part, text in _PARTS.items():
            pattern = pattern.replace(re.escape("{" + part + "}"), text)
        match = re.fullmatch(pattern, name)
        if match is not None:
            return target.format(**match.groupdict())
    return None
