"""Layer numbers in parameter names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from speechft_ray.core.layers import ANY_LAYER, ENCODER_LAYER, layer_of


@pytest.mark.parametrize(
    ("name", "in_encoder", "anywhere"),
    [
        ("encoder.layers.0.fc1.weight", 0, 0),
        ("encoder.layers.11.self_attn.k_proj.bias", 11, 11),
        ("hubert.encoder.layers.3.attention.k_proj.weight", 3, 3),
        ("layers.2.weight", None, 2),
        ("decoder.layers.4.weight", None, 4),
        ("feature_extractor.conv_layers.3.0.weight", None, None),
        ("encoder.layers.x.weight", None, None),
        ("encoder.layer_norm.weight", None, None),
        ("mask_emb", None, None),
    ],
)
def test_layer_of(name: str, in_encoder: int | None, anywhere: int | None) -> None:
    assert layer_of(name) == layer_of(name, ENCODER_LAYER) == in_encoder
    assert layer_of(name, ANY_LAYER) == anywhere


def test_other_modules_have_no_pattern_of_their_own() -> None:
    package = Path(__file__).parents[2] / "speechft_ray"
    pattern = re.compile(r"layers\\+\.\(")
    modules = {path.name for path in package.rglob("*.py") if pattern.search(path.read_text())}
    assert modules == {"layers.py"}
