"""Encoders and corpora small enough for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speechft_ray.speech.checkpoints.convert import convert
from speechft_ray.speech.checkpoints.load import locate_encoder
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights
from speechft_ray.speech.encoders.hubert import init_weights

FAIRSEQ_FILES = Path(__file__).parents[1] / "data/fairseq"
"""Checkpoints that fairseq wrote, and the features that it computed (tests/data/README.md)."""


def write_tiny_hubert(folder: Path) -> Path:
    """Writes the encoder of the package as an s3prl-converted checkpoint; returns its path."""
    path = folder / "tiny_hubert.s3prl.pt"
    convert(locate_encoder("tiny_hubert"), "s3prl", path)
    return path


def toy_config(**changes: Any) -> dict[str, Any]:
    """Returns the configuration of a HuBERT of two layers and 16 dimensions."""
    model = {
        "label_rate": 50.0,
        "encoder_layers": 2,
        "encoder_embed_dim": 16,
        "encoder_ffn_embed_dim": 32,
        "encoder_attention_heads": 2,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "final_dim": 8,
        "layer_norm_first": True,
        "conv_feature_layers": "[(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8, 2, 2)] * 2",
        "conv_pos": 16,
        "conv_pos_groups": 4,
    }
    return {
        "model_cfg": model | changes,
        "task_cfg": {"sample_rate": 16_000, "normalize": False},
        "dictionaries_symbols": [["a", "b", "c"]],
    }


def toy_hubert(seed: int = 0, **changes: Any) -> EncoderWeights:
    """Returns a HuBERT with random weights."""
    return init_weights(toy_config(**changes), seed)


def toy_encoder(family: str, seed: int = 0, large: bool = False) -> EncoderWeights:
    """Returns a small encoder of any family, like Base or Large, with random weights: two layers of
    16 dimensions."""
    part = FAMILIES.get(family)
    if part.init_weights is None or part.example_config is None:
        return EncoderWeights(family=family, config={}, state={})
    return part.init_weights(part.example_config(2, 16, large), seed)


def add_noise(weights: EncoderWeights, seed: int = 0) -> EncoderWeights:
    """Returns the encoder with noise on every parameter, so that biases are not zero and norms are
    not one."""
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in weights.state.items()
    }
    return EncoderWeights(family=weights.family, config=weights.config, state=state)


def make_wave(samples: int, seed: int = 0) -> torch.Tensor:
    """Returns a wave ``(samples,)`` with most of its energy at low frequencies."""
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(samples, generator=generator).cumsum(0).sin()


def tone_corpus(seconds: Sequence[float] = (1.0, 1.5, 2.0, 0.4), count: int = 24) -> Corpus:
    """Returns a corpus whose utterances are tones of 100 ms at five pitches in random order, with a
    little noise."""
    utterances = [
        Utterance(
            key=f"u{index}",
            split="dev" if index % 6 == 5 else "train",
            samples=int(16_000 * seconds[index % len(seconds)]),
            labels={"speaker": str(index % 3)},
        )
        for index in range(count)
    ]

    def read(utterance: Utterance) -> np.ndarray:
        draw = np.random.default_rng(int(utterance.key[1:]))
        hz = np.array([300.0, 600.0, 1_100.0, 2_000.0, 3_500.0])[
            draw.integers(0, 5, utterance.samples // 1_600 + 1)
        ]
        phase = np.cumsum(np.repeat(hz, 1_600)[: utterance.samples]) / 16_000
        return (
            0.3 * np.sin(2 * np.pi * phase) + 0.003 * draw.standard_normal(utterance.samples)
        ).astype(np.float32)

    return Corpus(
        name="tones",
        fingerprint="tones",
        utterances=utterances,
        read=read,
        columns=frozenset({"speaker"}),
    )
