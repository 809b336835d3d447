"""Model and options of the tiny HuBERT, which can be pre-trained on one laptop core.

The input are crops of clean synthetic speech with reverberation and noise (``reverberation.py``).
The targets at masked frames are clusters of the clean speech: first of its MFCC, then of a middle
layer of the encoder itself.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from speechft_ray.core.units import FRAME_FIELD_SAMPLES, FRAME_STRIDE_SAMPLES, SAMPLE_RATE_HZ

TINY_MODEL: dict[str, Any] = {
    "label_rate": 50.0,
    "extractor_mode": "default",
    "encoder_layers": 6,
    "encoder_embed_dim": 192,
    "encoder_ffn_embed_dim": 512,
    "encoder_attention_heads": 4,
    "activation_fn": "gelu",
    "layer_type": "transformer",
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "dropout_input": 0.0,
    "dropout_features": 0.0,
    "final_dim": 64,
    "untie_final_proj": False,
    "target_glu": False,
    "layer_norm_first": True,
    "conv_feature_layers": "[(64, 10, 5)] + [(64, 3, 2)] * 2"
    " + [(128, 3, 2)] * 2 + [(128, 2, 2)] * 2",
    "conv_bias": False,
    "logit_temp": 0.1,
    "conv_pos": 32,
    "conv_pos_groups": 16,
    "required_seq_len_multiple": 1,
}
"""HuBERT Base scaled down to 2.36M parameters.

Differences from Base: pre-norm layers, without which so few updates stay on the plateau of
predicting the commonest label; no dropout, since a model this small underfits; a positional
convolution over 0.64 s instead of 2.56 s, since crops last 2 s. The GroupNorm extractor is that of
Base: with a norm after every convolution an update took 1.7 times as long."""


class PretrainOptions(BaseModel):
    """Options of pre-training. The defaults are those of the encoder in the package."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=0, ge=0)
    """Seed of initial weights, clusters, crops and masks."""
    updates: tuple[int, ...] = Field(default=(2500, 4500), min_length=1)
    """Updates of each round. Round 1 predicts clusters of MFCC, every later round those of
    ``target_layer`` of the round before."""
    clusters: tuple[int, ...] = Field(default=(100, 200), min_length=1)
    """Labels of each round. 100, then more for finer targets, as HuBERT (100, then 500 at forty
    times the parameters)."""
    target_layer: int = Field(default=4, ge=0)
    """Hidden state that later rounds cluster; 4 of 6, as HuBERT uses 6 or 9 of 12: the last states
    are closer to the labels of the round before."""
    batch_crops: int = Field(default=16, ge=1)
    """Crops per update."""
    crop_frames: int = Field(default=100, ge=10)
    """Length of a crop; 100 frames are 2.005 s."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate of AdamW; it falls linearly to 0."""
    warmup_fraction: float = Field(default=0.06, gt=0, lt=1)
    """Share of a round in which the learning rate rises from 0."""
    mask_length: int = Field(default=5, ge=1)
    """Frames per masked span. HuBERT masks 10; a small model learns nothing from spans that long in
    the first minutes."""
    mask_fraction: float = Field(default=0.5, gt=0, lt=1)
    """Share of frames masked on average."""
    unmasked_weight: float = Field(default=0.5, ge=0)
    """Weight of the loss at unmasked frames."""
    bfloat16: bool = True
    """Matrix products in bfloat16 (autocast): 1.4 times as fast on CPUs with AVX-512 BF16, and 8
    times as slow on one with AVX2 alone (``has_fast_bfloat16``). Held-out scores always use
    float32."""
    score_every: int = Field(default=250, ge=1)
    """Updates between two held-out scores."""

    def model_post_init(self, _: Any) -> None:
        if len(self.updates) != len(self.clusters):
            raise ValueError(
                f"`updates` has {len(self.updates)} rounds but `clusters` has {len(self.clusters)}"
            )

    @property
    def crop_samples(self) -> int:
        """Length of a crop in samples."""
        return FRAME_STRIDE_SAMPLES * (self.crop_frames - 1) + FRAME_FIELD_SAMPLES


def has_fast_bfloat16() -> bool:
    """Whether this processor has instructions for products in bfloat16."""
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def tiny_config(clusters: int) -> dict[str, Any]:
    """Returns the configuration of the tiny HuBERT with ``clusters`` labels, in the s3prl-converted
    layout."""
    return {
        "model_cfg": dict(TINY_MODEL),
        "task_cfg": {"sample_rate": SAMPLE_RATE_HZ, "normalize": False},
        "dictionaries_symbols": [[str(label) for label in range(clusters)]],
    }
