"""Recipes for the comparison with mergekit: ten kinds and more in its format, and merges of ours
that are written in it.

``python -m tests.merging.recipe_cases`` writes the YAML files; tests/peers/
make_recipe_references.py then merges them with mergekit's own code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[1] / "data" / "merging_recipes"
BASE = "base.safetensors"
DONORS = ["a.safetensors", "b.safetensors", "c.safetensors"]

EXPORTS: dict[str, tuple[str, dict[str, Any], int, float]] = {
    "export_linear": ("linear", {"weights": [3, 2, 1]}, 3, 0.25),
    "export_task_arithmetic": ("task_arithmetic", {"scale": 0.4}, 3, 1.0),
    "export_ties": ("ties", {"like": "mergekit", "density": [0.2, 0.5, 1.0]}, 3, 0.5),
    "export_breadcrumbs": ("breadcrumbs", {"density": 0.6, "gamma": 0.1, "rescale": "l1"}, 3, 1.0),
    "export_dare_ties": ("dare_ties", {"like": "mergekit", "density": 1.0}, 3, 1.0),
    "export_slerp": ("slerp", {"t": 0.3, "lerp_above": 1.0}, 2, 1.0),
    "export_slerp_rows": ("slerp", {"lerp_above": 1.0, "along": "first", "on": "weights"}, 2, 1.0),
    "export_slerp_weights": ("slerp", {"on": "weights", "t": 0.7}, 2, 1.0),
    "export_multislerp": ("multislerp", {"weights": [1, 2, 3]}, 3, 1.0),
    "export_karcher": ("karcher", {"on": "weights", "steps": 50, "tolerance": 1e-7}, 3, 1.0),
    "export_model_stock": ("model_stock", {}, 3, 1.0),
    "export_sce": ("sce", {"density": 0.5, "equal_below": 1e-6}, 3, 1.0),
    "export_ram": ("ram", {}, 3, 1.0),
    "export_ramplus": ("ram", {"epsilon": 0.004, "gain": 0.1}, 3, 1.0),
    "export_nearswap": ("nearswap", {"t": 0.003}, 1, 1.0),
}
"""Merges of ours: method, parameters, number of donors, alpha."""

GRADIENT_SLERP = """\
slices:
  - sources:
      - model: a.safetensors
        layer_range: [0, 3]
      - model: b.safetensors
        layer_range: [0, 3]
merge_method: slerp
base_model: a.safetensors
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3]
    - filter: fc1
      value: [1, 0.5, 0.7]
    - value: 0.5
dtype: float32
"""
TIES_GRADIENT = """\
models:
  - model: base.safetensors
  - model: a.safetensors
    parameters:
      density: [1, 0.7, 0.1]   # a gradient over the layers
      weight: 1.0
  - model: b.safetensors
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1]
  - model: c.safetensors
    parameters:
      density: 0.33
      weight:
        - filter: fc1
          value: 0.5
        - value: 0
merge_method: ties
base_model: base.safetensors
parameters:
  normalize: true
  int8_mask: true
dtype: float32
"""
PASSTHROUGH = """\
slices:
  - sources:
      - model: b.safetensors
        layer_range: [0, 3]
merge_method: passthrough
dtype: float32
"""
PER_SLICE = """\
slices:
  - sources:
      - model: a.safetensors
        layer_range: [0, 2]
        parameters: {weight: 0.2}
      - model: b.safetensors
        layer_range: [0, 2]
        parameters: {weight: 0.8}
  - sources:
      - model: a.safetensors
        layer_range: [2, 3]
        parameters: {weight: 0.9}
      - model: b.safetensors
        layer_range: [2, 3]
    parameters: {weight: 0.1}
merge_method: linear
dtype: float32
"""


def list_models(*weights: float, **more: Any) -> list[dict[str, Any]]:
    """Returns the donors with a weight each, and other parameters of all."""
    return [
        {"model": donor, "parameters": {"weight": weight, **more}}
        for donor, weight in zip(DONORS, weights, strict=False)
    ]


def write(method: str, models: list[Any], base: str | None = BASE, **shared: Any) -> str:
    """Returns a recipe without slices as YAML."""
    return yaml.safe_dump(
        {
            "models": models,
            "merge_method": method,
            **({"base_model": base} if base else {}),
            **({"parameters": shared} if shared else {}),
            "dtype": "float32",
        },
        sort_keys=False,
    )


BARE = [{"model": donor} for donor in DONORS]
RECIPES: dict[str, str] = {
    "linear": write("linear", list_models(0.7, 0.2, 0.1), None),
    "linear_per_slice": PER_SLICE,
    "task_arithmetic_filters": write(
        "task_arithmetic",
        [
            {
                "model": donor,
                "parameters": {"weight": [{"filter": "self_attn", "value": at}, {"value": 0.1}]},
            }
            for donor, at in zip(DONORS, (0.5, 0.3, 0.4), strict=True)
        ],
        BASE,
        **{"lambda": 0.8},
    ),
    "ties_gradients": TIES_GRADIENT,
    "ties_rescale": write("ties", list_models(1, 1, 0.5, density=0.4), rescale=True),
    "slerp_slices": GRADIENT_SLERP,
    "nuslerp": write("nuslerp", list_models(1.0, 3.0)),
    "nuslerp_slices_of_a_tensor": write(
        "nuslerp", list_models(0.6, 0.4), None, nuslerp_flatten=False
    ),
    "nuslerp_row_wise": write(
        "nuslerp", list_models(0.6, 0.4), nuslerp_flatten=False, nuslerp_row_wise=True
    ),
    "multislerp": write("multislerp", list_models(0.5, 0.3, 0.2)),
    "multislerp_weights": write("multislerp", list_models(1, 1, 1), None),
    "karcher": write("karcher", BARE, None, max_iter=100, tol=1e-7),
    "model_stock": write("model_stock", [{"model": BASE}, *BARE]),
    "breadcrumbs_ties": write(
        "breadcrumbs_ties", list_models(1, 0.7, 0.4, density=0.9, gamma=0.05), rescale=True
    ),
    "dare_ties": write("dare_ties", [{"model": BASE}, *list_models(0.6, 0.2, 0.3, density=1)]),
    "dare_linear": write("dare_linear", list_models(0.5, 0.5, density=1.0), normalize=True),
    "della_linear": write("della_linear", list_models(0.5, 0.4, 0.3, density=1.0, epsilon=0.1)),
    "sce": write("sce", BARE, select_topk=0.4),
    "ram": write("ram", BARE),
    "ramplus_tl": write("ramplus_tl", BARE, epsilon=0.01, r=0.3, alpha=0.5),
    "nearswap": write("nearswap", BARE[:1], t=[0.001, 0.01]),
    "arcee_fusion": write("arcee_fusion", [{"model": "far_a.safetensors"}]),
    "passthrough": PASSTHROUGH,
}

KINDS: dict[str, str] = {
    "linear": "weighted average without a base",
    "linear_per_slice": "weights by range of layers",
    "task_arithmetic_filters": "weights by part of the layer, and lambda",
    "ties_gradients": "density and weight that change over the layers",
    "ties_rescale": "TIES that restores norms",
    "slerp_slices": "SLERP with gradients for attention and feed-forward parts",
    "nuslerp": "weighted SLERP of task vectors",
    "nuslerp_slices_of_a_tensor": "SLERP by column",
    "nuslerp_row_wise": "SLERP by row",
    "multislerp": "SLERP of several task vectors",
    "multislerp_weights": "SLERP of several models without a base",
    "karcher": "mean on the sphere",
    "model_stock": "models alone, no parameter",
    "breadcrumbs_ties": "band of magnitudes with an election",
    "dare_ties": "base among the models, every position kept",
    "dare_linear": "normalised sum",
    "della_linear": "sum with epsilon, every position kept",
    "sce": "selection by variance",
    "ram": "changes of one donor and of several",
    "ramplus_tl": "amplified changes of one donor",
    "nearswap": "two models and a gradient of t",
    "arcee_fusion": "important changes of one donor",
    "passthrough": "copy of one model",
}
"""What kind of recipe each one is."""


def main() -> None:
    """Writes all files."""
    from speechft_ray.merging._mergekit_out import format_recipe

    FOLDER.mkdir(parents=True, exist_ok=True)
    exported = {
        name: yaml.safe_dump(
            format_recipe(method, params, BASE, DONORS[:count], alpha), sort_keys=False
        )
        for name, (method, params, count, alpha) in EXPORTS.items()
    }
    for name, text in {**RECIPES, **exported}.items():
        (FOLDER / f"{name}.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
