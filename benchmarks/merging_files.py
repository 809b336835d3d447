"""Files for benchmarks/merging.py: a base and three donors in the shapes of HuBERT Base."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

DIM, INNER, LAYERS, CHANNELS = 768, 3072, 12, 512
STEP = 0.002
"""Standard deviation of the task vectors; that of the weights is 0.05."""


def make_shapes() -> dict[str, tuple[int, ...]]:
    """Returns the shapes of HuBERT Base's tensors by their names in fairseq."""
    shapes: dict[str, tuple[int, ...]] = {
        "mask_emb": (DIM,),
        "post_extract_proj.weight": (DIM, CHANNELS),
    }
    for index, width in enumerate((10, 3, 3, 3, 3, 2, 2)):
        shapes[f"feature_extractor.conv_layers.{index}.0.weight"] = (
            CHANNELS,
            CHANNELS if index else 1,
            width,
        )
    for name in (
        "feature_extractor.conv_layers.0.2.weight",
        "feature_extractor.conv_layers.0.2.bias",
    ):
        shapes[name] = (CHANNELS,)
    shapes |= {
        "layer_norm.weight": (CHANNELS,),
        "layer_norm.bias": (CHANNELS,),
        "post_extract_proj.bias": (DIM,),
    }
    shapes |= {
        "encoder.pos_conv.0.weight_v": (DIM, DIM // 16, 128),
        "encoder.pos_conv.0.weight_g": (1, 1, 128),
    }
    for name in ("encoder.pos_conv.0.bias", "encoder.layer_norm.weight", "encoder.layer_norm.bias"):
        shapes[name] = (DIM,)
    for layer in range(LAYERS):
        place = f"encoder.layers.{layer}."
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shapes |= {
                f"{place}self_attn.{part}.weight": (DIM, DIM),
                f"{place}self_attn.{part}.bias": (DIM,),
            }
        for part in ("self_attn_layer_norm", "final_layer_norm"):
            shapes |= {f"{place}{part}.weight": (DIM,), f"{place}{part}.bias": (DIM,)}
        shapes |= {f"{place}fc1.weight": (INNER, DIM), f"{place}fc1.bias": (INNER,)}
        shapes |= {f"{place}fc2.weight": (DIM, INNER), f"{place}fc2.bias": (DIM,)}
    return shapes


def make_files(folder: Path) -> list[Path]:
    """Writes a base and three donors near it."""
    source = torch.Generator().manual_seed(0)
    base = {
        key: 0.05 * torch.randn(shape, generator=source) for key, shape in make_shapes().items()
    }
    paths = [folder / f"{name}.safetensors" for name in ("base", "a", "b", "c")]
    save_file(base, paths[0])
    for path in paths[1:]:
        save_file(
            {
                key: tensor + STEP * torch.randn(tensor.shape, generator=source)
                for key, tensor in base.items()
            },
            path,
        )
    return paths
