"""Builds configurations like the published ones, of any size."""

from __future__ import annotations

from typing import Any

from speechft_ray.speech.encoders._conv_layers import PUBLISHED

PUBLISHED_DIM = 768
"""Width of Base. In narrower models, which are for tests, the other widths shrink with it."""


def example_transformer(layers: int, dim: int, large: bool) -> dict[str, Any]:
    """Returns the options of a transformer of that size. Base has 12 x 768 and Large 24 x 1024,
    with 64 dimensions per head.

    Base layers normalise their output, Large layers their input, in wav2vec 2.0, HuBERT and WavLM
    alike. Large has no dropout.
    """
    dropout = 0.0 if large else 0.1
    return {
        "encoder_layers": layers,
        "encoder_embed_dim": dim,
        "encoder_ffn_embed_dim": 4 * dim,
        "encoder_attention_heads": max(2, dim // 64),
        "activation_fn": "gelu",
        "dropout": dropout,
        "attention_dropout": dropout,
        "activation_dropout": 0.0,
        "dropout_input": dropout,
        "layer_norm_first": large,
        "conv_pos": 128,
        "conv_pos_groups": 16,
    }


def example_convolutions(dim: int, large: bool) -> dict[str, Any]:
    """Returns the options of the convolutional front end: 512 channels, or half the width of an
    encoder narrower than Base."""
    channels = dim // 2
    narrow = f"[({channels},10,5)] + [({channels},3,2)] * 4 + [({channels},2,2)] * 2"
    return {
        "extractor_mode": "layer_norm" if large else "default",
        "conv_feature_layers": PUBLISHED if dim >= PUBLISHED_DIM else narrow,
        "conv_bias": False,
        "dropout_features": 0.0 if large else 0.1,
    }


def example_final_dim(dim: int, large: bool) -> int:
    """Returns the width of the pre-training projection: 256 in Base, 768 in Large."""
    return dim // 2 if dim < PUBLISHED_DIM else 768 if large else 256
