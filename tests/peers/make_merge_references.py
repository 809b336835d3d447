"""Makes tests/data/merging_peers: what mergekit's own command computes on small seeded inputs.

Run it with `make peer-references`, which builds the peer's environment first. The tests read the
results, so they need no peer.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

OUT = Path(__file__).parents[1] / "data" / "merging_peers"
SEED = 20260101
SHAPES = {
    "feature_extractor.conv_layers.0.0.weight": (16, 1, 10),
    "feature_extractor.conv_layers.1.0.weight": (16, 16, 3),
    "encoder.pos_conv.0.bias": (16,),
    "encoder.pos_conv.0.weight_g": (1, 1, 8),
    "encoder.pos_conv.0.weight_v": (16, 4, 8),
    "encoder.layers.0.self_attn.k_proj.weight": (16, 16),
    "encoder.layers.0.fc1.weight": (32, 16),
    "encoder.layers.0.fc1.bias": (32,),
    "encoder.layers.0.final_layer_norm.weight": (16,),
}
"""The shapes of a HuBERT, small: a convolution of one channel, weight-normalised factors, vectors,
a square, a rectangle."""
STEPS = (0.002, 0.01, 0.05)
"""Scales of the task vectors, by tensor in turn: the donors move some tensors far more than others,
as fine-tuning does."""

EQUAL, UNEQUAL = (1.0, 1.0, 1.0), (0.5, 0.3, 0.2)
Case = dict[str, Any]


def task(method: str, weights: tuple[float, ...] = EQUAL, **more: Any) -> Case:
    """A case of a method that works on task vectors: the first parameters are by donor, ``all_``
    holds for the whole merge."""
    shared = more.pop("all_", {})
    by_donor = [{"weight": weight, **more} for weight in weights]
    return {"method": method, "base": True, "donors": by_donor, "all": shared}


CASES: dict[str, Case] = {
    "linear_equal": {"method": "linear", "base": False, "donors": [{"weight": w} for w in EQUAL], "all": {}},
    "linear_unequal": {"method": "linear", "base": False, "donors": [{"weight": w} for w in UNEQUAL], "all": {}},
    "task_arithmetic": task("task_arithmetic", (0.4, 0.3, -0.2)),
    "task_arithmetic_lambda": task("task_arithmetic", UNEQUAL, all_={"lambda": 0.7, "normalize": True}),
    "ties_d02": task("ties", density=0.2),
    "ties_d05": task("ties", density=0.5),
    "ties_d05_lambda": task("ties", density=0.5, all_={"lambda": 0.4}),
    "ties_no_trim": task("ties", density=1.0),
    "ties_d05_unequal": task("ties", UNEQUAL, density=0.5),
    "ties_d05_sum": task("ties", density=0.5, all_={"normalize": False}),
    "dare_linear_d1": task("dare_linear", UNEQUAL, density=1.0),
    "dare_ties_d1": task("dare_ties", density=1.0),
    "dare_ties_d1_unequal": task("dare_ties", UNEQUAL, density=1.0),
    "dare_linear_lone_d05": task("dare_linear", (1.0,), density=0.5),
    "dare_linear_lone_d05_no_rescale": task("dare_linear", (1.0,), density=0.5, all_={"rescale": False}),
    "della_linear_d1": task("della_linear", UNEQUAL, density=1.0),
    "della_d1": task("della", density=1.0),
    "della_linear_lone_d05": {**task("della_linear", (1.0,), density=0.5, epsilon=0.2), "inputs": "wide_"},
    "breadcrumbs": task("breadcrumbs", density=0.5, gamma=0.1),
    "breadcrumbs_unequal": task("breadcrumbs", UNEQUAL, density=0.7, gamma=0.05),
    "breadcrumbs_ties": task("breadcrumbs_ties", density=0.5, gamma=0.1),
    "slerp_t03": {"method": "slerp", "base": True, "donors": [{}], "all": {"t": 0.3}},
    "slerp_t05_far": {"method": "slerp", "base": True, "donors": [{}], "all": {"t": 0.5}, "inputs": "far_"},
    "karcher_two": {"method": "karcher", "base": False, "donors": [{}] * 2, "all": {"max_iter": 100, "tol": 1e-7}},
    "karcher_three": {"method": "karcher", "base": False, "donors": [{}] * 3, "all": {"max_iter": 100, "tol": 1e-7}},
    "karcher_three_far": {
        "method": "karcher", "base": False, "donors": [{}] * 3, "all": {"max_iter": 100, "tol": 1e-7}, "inputs": "far_",
    },
    "model_stock_two": {"method": "model_stock", "base": True, "donors": [{}] * 2, "all": {}},
    "model_stock_three": {"method": "model_stock", "base": True, "donors": [{}] * 3, "all": {}},
    "sce": {"method": "sce", "base": True, "donors": [{}] * 3, "all": {}},
    "sce_topk03": {"method": "sce", "base": True, "donors": [{}] * 3, "all": {"select_topk": 0.3}},
}  # fmt: skip


def make_inputs(folder: Path) -> None:
    """Writes the base, three donors that lie near it and share part of their step, and three that
    lie far.

    ``wide_``: without the tensors whose second axis has size 1, on which the peer's DELLA fails
    (Bernoulli of NaN).
    """
    source = torch.Generator().manual_seed(SEED)

    def draw(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=source)

    base = {key: draw(shape) for key, shape in SHAPES.items()}
    save_file(base, folder / "base.safetensors")
    common = {key: draw(shape) for key, shape in SHAPES.items()}
    for name in "abc":
        near, far = {}, {}
        for index, (key, shape) in enumerate(SHAPES.items()):
            step = 0.6 * common[key] + 0.8 * draw(shape)
            near[key] = base[key] + STEPS[index % len(STEPS)] * step
            far[key] = base[key] + 0.7 * step
        save_file(near, folder / f"{name}.safetensors")
        save_file(far, folder / f"far_{name}.safetensors")
        if name == "a":
            for kind, state in (("base", base), (name, near)):
                wide = {
                    key: tensor
                    for key, tensor in state.items()
                    if tensor.dim() < 2 or tensor.shape[1] > 1
                }
                save_file(wide, folder / f"wide_{kind}.safetensors")


def config(case: Case, inputs: Path) -> dict[str, Any]:
    """Returns mergekit's configuration of a case; a method without base lists the donors alone."""
    prefix = case.get("inputs", "")
    models = [
        {"model": str(inputs / f"{prefix}{name}.safetensors"), "parameters": dict(given)}
        for name, given in zip("abc", case["donors"], strict=False)
    ]
    asked: dict[str, Any] = {"merge_method": case["method"], "models": models, "dtype": "float32"}
    if case["base"]:
        asked["base_model"] = str(inputs / f"{prefix.replace('far_', '')}base.safetensors")
    if case["all"]:
        asked["parameters"] = dict(case["all"])
    return asked


def run(name: str, case: Case) -> dict[str, Any]:
    """Merges one case with the peer's command and returns its line of the manifest."""
    command = Path(sys.executable).parent / "mergekit-pytorch"
    with tempfile.TemporaryDirectory() as folder:
        asked, merged = Path(folder) / "config.yaml", Path(folder) / "out"
        asked.write_text(yaml.safe_dump(config(case, OUT)), encoding="utf-8")
        arguments = ["--quiet", "--random-seed", str(SEED)]
        # Its masks depend on the order of a set of names, so on the hash seed; with one fixed they
        # come again.
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        done = subprocess.run(
            [command, asked, merged, *arguments], capture_output=True, text=True, env=environment
        )
        if done.returncode:
            raise SystemExit(
                f"{name}: mergekit-pytorch ended with {done.returncode}:\n{done.stderr[-2000:]}"
            )
        state = {
            key: tensor.contiguous()
            for key, tensor in load_file(merged / "model.safetensors").items()
        }
    file = OUT / f"{name}.safetensors"
    save_file({key: state[key] for key in sorted(state)}, file)
    file.chmod(0o644)
    asked_for = config(case, OUT)
    return {
        "method": case["method"],
        "base": Path(asked_for["base_model"]).name if case["base"] else None,
        "inputs": [Path(model["model"]).name for model in asked_for["models"]],
        "by_donor": case["donors"],
        "parameters": case["all"],
        "command": f"PYTHONHASHSEED=0 mergekit-pytorch {name}.yaml OUT {' '.join(arguments)}",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }


def main() -> None:
    """Makes everything anew."""
    OUT.mkdir(parents=True, exist_ok=True)
    for old in OUT.iterdir():
        old.unlink()
    make_inputs(OUT)
    inputs = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(OUT.glob("*.safetensors"))
    }
    for path in OUT.glob("*.safetensors"):
        path.chmod(0o644)
    manifest = {
        "made_by": "tests/peers/make_merge_references.py",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "python": platform.python_version(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("mergekit", "torch", "safetensors", "numpy")
        },
        "seed": SEED,
        "inputs": inputs,
        "cases": {name: run(name, case) for name, case in CASES.items()},
    }
    (OUT / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
