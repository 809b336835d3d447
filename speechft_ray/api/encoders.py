"""Encoders from names and files, and what they compute."""

from __future__ import annotations

from speechft_ray.speech.checkpoints.load import load_encoder
from speechft_ray.speech.encoders.base import FAMILIES, Encoder, EncoderWeights

__all__ = ["build_encoder", "load_encoder"]


def build_encoder(weights: EncoderWeights) -> Encoder:
    """Returns an encoder that computes hidden states, in eval mode on the CPU; ``module()`` is its
    ``torch.nn.Module``. Raises ``UserError`` for weights that are not of their family."""
    return FAMILIES.get(weights.family).build(weights)
