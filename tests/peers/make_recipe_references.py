"""Writes tests/data/merging_recipes: merges by mergekit's YAML files with its own code.

Run it with ``make peer-references``. Each file is read by mergekit's parser; its parameters are
resolved by mergekit for every tensor, with the depth of the layer as in its plan of a model; its
merge method is called. ``mergekit-yaml`` itself cannot load a HuBERT, and ``mergekit-pytorch``
knows neither slices nor gradients.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

import torch
import yaml
from mergekit import merge_methods
from mergekit.config import ConfigReader, MergeConfiguration
from mergekit.merge_methods import merge_tensors
from mergekit.parameter_resolver import resolve_parameters
from safetensors.torch import load_file, save_file

OUT = Path(__file__).parents[1] / "data" / "merging_recipes"
SEED, LAYERS = 20260202, 3
STEPS = (0.002, 0.01, 0.05)


def make_shapes() -> dict[str, tuple[int, ...]]:
    """Returns small shapes with the names of a HuBERT of three layers."""
    shapes: dict[str, tuple[int, ...]] = {
        "feature_extractor.conv_layers.0.0.weight": (8, 1, 5),
        "encoder.pos_conv.0.weight_g": (1, 1, 4),
        "encoder.pos_conv.0.weight_v": (8, 2, 4),
        "encoder.layer_norm.weight": (8,),
    }
    for layer in range(LAYERS):
        place = f"encoder.layers.{layer}."
        shapes |= {
            f"{place}self_attn.q_proj.weight": (8, 8),
            f"{place}self_attn.q_proj.bias": (8,),
            f"{place}fc1.weight": (12, 8),
            f"{place}final_layer_norm.weight": (8,),
        }
    return shapes


def make_inputs() -> None:
    """Writes the base, three donors near it, and one far from it."""
    source = torch.Generator().manual_seed(SEED)

    def draw() -> dict[str, torch.Tensor]:
        return {key: torch.randn(shape, generator=source) for key, shape in make_shapes().items()}

    base, common = draw(), draw()
    save_file(base, OUT / "base.safetensors")
    for name in ("a", "b", "c", "far_a"):
        own = draw()
        save_file(
            {
                key: tensor
                + (0.7 if name == "far_a" else STEPS[index % 3])
                * (0.6 * common[key] + 0.8 * own[key])
                for index, (key, tensor) in enumerate(base.items())
            },
            OUT / f"{name}.safetensors",
        )


def merge_tensor(config: MergeConfiguration, states: dict[str, Any], key: str) -> torch.Tensor:
    """Merges one tensor as mergekit's plan would."""
    layer = re.search(r"encoder\.layers\.(\d+)\.", key)
    reader = ConfigReader(config=config, t=0)
    slices = config.slices or []
    if layer is not None and not slices:
        reader = reader.with_t(int(layer[1]) / (LAYERS - 1))
    if slices:
        number = int(layer[1]) if layer is not None else 0
        part = next(
            each
            for each in slices
            if each.sources[0].layer_range[0] <= number < each.sources[0].layer_range[1]
        )
        first, end = part.sources[0].layer_range
        depth = (number - first) / (end - first - 1) if end - first > 1 else 1
        reader = reader.for_out_slice(part).with_t(depth if layer is not None else 0)
        listed = [source.model for source in part.sources]
        settings: dict[Any, Any] = {}
    else:
        listed = [model.model for model in config.models or []]
        settings = {model.model: model.parameters for model in config.models or []}
    models = list(listed)
    if config.base_model is not None and config.base_model not in models:
        models.append(config.base_model)
    method = merge_methods.get(config.merge_method)

    def sources(model: Any) -> Any:
        if settings.get(model) is not None:
            yield settings[model]
        yield from reader.parameter_sources(model)

    shared, by_model = resolve_parameters(
        method.spec,
        tensor_name=key,
        inputs=dict.fromkeys(models, key),
        sources=sources,
        base_model=config.base_model,
        t=reader.t,
    )
    names = {name for values in by_model.values() for name in values}
    parameters = {
        **shared,
        **{
            name: {
                str(model.model.path): values[name]
                for model, values in by_model.items()
                if name in values
            }
            for name in names
        },
    }
    paths = [str(model.model.path) for model in models]
    merged: torch.Tensor = merge_tensors(
        [states[path][key] for path in paths],
        method,
        parameters=parameters,
        ids=paths,
        base_index=None if config.base_model is None else models.index(config.base_model),
        name=key,
    )
    return merged


def main() -> None:
    """Writes all inputs, results and the manifest."""
    for old in OUT.glob("*.safetensors"):
        old.unlink()
    make_inputs()
    inputs = {path.name: load_file(path) for path in sorted(OUT.glob("*.safetensors"))}
    files = {}
    for file in sorted(OUT.glob("*.yaml")):
        config = MergeConfiguration.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
        # mergekit's own text of the configuration reads as the same configuration.
        assert MergeConfiguration.model_validate(yaml.safe_load(config.to_yaml())) == config
        merged = {
            key: merge_tensor(config, inputs, key).contiguous()
            for key in inputs["base.safetensors"]
        }
        save_file(merged, OUT / f"merged_{file.stem}.safetensors")
        files[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    manifest = {
        "made_by": "tests/peers/make_recipe_references.py",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("mergekit", "torch", "safetensors")
        },
        "seed": SEED,
        "recipes": files,
        "tensors": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(OUT.glob("*.safetensors"))
        },
    }
    (OUT / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
