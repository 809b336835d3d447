"""Writes tests/data/merging_peers: merges of small seeded inputs by mergekit's own command.

Run it with `make peer-references`, which builds the peer's environment first. The tests read the
results, so they do not need the peer.
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
"""Small tensors in the shapes of a HuBERT: a convolution of one channel, weight-normalised factors,
vectors, a square matrix, a rectangular one."""
STEPS = (0.002, 0.01, 0.05)
"""Scales of the task vectors, by tensor in turn: as in fine-tuning, some tensors change far more
than others."""

EQUAL, UNEQUAL = (1.0, 1.0, 1.0), (0.5, 0.3, 0.2)
Case = dict[str, Any]


def make_case(method: str, weights: tuple[float, ...] = EQUAL, **more: Any) -> Case:
    """Returns a case of a method on task vectors: ``more`` are parameters of each donor, ``all_``
    those of the whole merge."""
    shared = more.pop("all_", {})
    by_donor = [{"weight": weight, **more} for weight in weights]
    return {"method": method, "base": True, "donors": by_donor, "all": shared}


CASES: dict[str, Case] = {
    "linear_equal": {
        "method": "linear",
        "base": False,
        "donors": [{"weight": w} for w in EQUAL],
        "all": {},
    },
    "linear_unequal": {
        "method": "linear",
        "base": False,
        "donors": [{"weight": w} for w in UNEQUAL],
        "all": {},
    },
    "task_arithmetic": make_case("task_arithmetic", (0.4, 0.3, -0.2)),
    "task_arithmetic_lambda": make_case(
        "task_arithmetic", UNEQUAL, all_={"lambda": 0.7, "normalize": True}
    ),
    "ties_d02": make_case("ties", density=0.2),
    "ties_d05": make_case("ties", density=0.5),
    "ties_d05_lambda": make_case("ties", density=0.5, all_={"lambda": 0.4}),
    "ties_no_trim": make_case("ties", density=1.0),
    "ties_d05_unequal": make_case("ties", UNEQUAL, density=0.5),
    "ties_d05_sum": make_case("ties", density=0.5, all_={"normalize": False}),
    "dare_linear_d1": make_case("dare_linear", UNEQUAL, density=1.0),
    "dare_ties_d1": make_case("dare_ties", density=1.0),
    "dare_ties_d1_unequal": make_case("dare_ties", UNEQUAL, density=1.0),
    "dare_linear_lone_d05": make_case("dare_linear", (1.0,), density=0.5),
    "dare_linear_lone_d05_no_rescale": make_case(
        "dare_linear", (1.0,), density=0.5, all_={"rescale": False}
    ),
    "della_linear_d1": make_case("della_linear", UNEQUAL, density=1.0),
    "della_d1": make_case("della", density=1.0),
    "della_linear_lone_d05": {
        **make_case("della_linear", (1.0,), density=0.5, epsilon=0.2),
        "inputs": "wide_",
    },
    "breadcrumbs": make_case("breadcrumbs", density=0.5, gamma=0.1),
    "breadcrumbs_unequal": make_case("breadcrumbs", UNEQUAL, density=0.7, gamma=0.05),
    "breadcrumbs_ties": make_case("breadcrumbs_ties", density=0.5, gamma=0.1),
    "slerp_t03": {"method": "slerp", "base": True, "donors": [{}], "all": {"t": 0.3}},
    "slerp_t05_far": {
        "method": "slerp",
        "base": True,
        "donors": [{}],
        "all": {"t": 0.5},
        "inputs": "far_",
    },
    "karcher_two": {
        "method": "karcher",
        "base": False,
        "donors": [{}] * 2,
        "all": {"max_iter": 100, "tol": 1e-7},
    },
    "karcher_three": {
        "method": "karcher",
        "base": False,
        "donors": [{}] * 3,
        "all": {"max_iter": 100, "tol": 1e-7},
    },
    "karcher_three_far": {
        "method": "karcher",
        "base": False,
        "donors": [{}] * 3,
        "all": {"max_iter": 100, "tol": 1e-7},
        "inputs": "far_",
    },
    "model_stock_two": {"method": "model_stock", "base": True, "donors": [{}] * 2, "all": {}},
    "model_stock_three": {"method": "model_stock", "base": True, "donors": [{}] * 3, "all": {}},
    "sce": {"method": "sce", "base": True, "donors": [{}] * 3, "all": {}},
    "sce_topk03": {"method": "sce", "base": True, "donors": [{}] * 3, "all": {"select_topk": 0.3}},
}


def make_inputs(folder: Path) -> None:
    """Writes the base, three donors near it whose task vectors share a component, and three donors
    far from it.

    ``wide_`` files lack the tensors whose second axis has size 1, on which the peer's DELLA fails
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


def make_config(case: Case, inputs: Path) -> dict[str, Any]:
    """Returns mergekit's configuration of a case; a method without base lists the donors alone."""
    prefix = case.get("inputs", "")
    models = [
        {"model": str(inputs / f"{prefix}{name}.safetensors"), "parameters": dict(parameters)}
        for name, parameters in zip("abc", case["donors"], strict=False)
    ]
    configuration: dict[str, Any] = {
        "merge_method": case["method"],
        "models": models,
        "dtype": "float32",
    }
    if case["base"]:
        configuration["base_model"] = str(inputs / f"{prefix.replace('far_', '')}base.safetensors")
    if case["all"]:
        configuration["parameters"] = dict(case["all"])
    return configuration


def run_case(name: str, case: Case) -> dict[str, Any]:
    """Merges one case with the peer's command and returns its line of the manifest."""
    command = Path(sys.executable).parent / "mergekit-pytorch"
    with tempfile.TemporaryDirectory() as folder:
        config_file, merged = Path(folder) / "config.yaml", Path(folder) / "out"
        config_file.write_text(json.dumps(make_config(case, OUT), indent=1), encoding="utf-8")
        arguments = ["--quiet", "--random-seed", str(SEED)]
        # The peer's masks depend on the order of a set of names, and so on the hash seed. A fixed
        # seed makes them reproducible.
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        process = subprocess.run(
            [command, config_file, merged, *arguments],
            capture_output=True,
            text=True,
            env=environment,
        )
        if process.returncode:
            raise SystemExit(
                f"{name}: mergekit-pytorch ended with {process.returncode}:\n"
                f"{process.stderr[-2000:]}"
            )
        state = {
            key: tensor.contiguous()
            for key, tensor in load_file(merged / "model.safetensors").items()
        }
    file = OUT / f"{name}.safetensors"
    save_file({key: state[key] for key in sorted(state)}, file)
    file.chmod(0o644)
    configuration = make_config(case, OUT)
    return {
        "method": case["method"],
        "base": Path(configuration["base_model"]).name if case["base"] else None,
        "inputs": [Path(model["model"]).name for model in configuration["models"]],
        "by_donor": case["donors"],
        "parameters": case["all"],
        "command": f"PYTHONHASHSEED=0 mergekit-pytorch {name}.yaml OUT {' '.join(arguments)}",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }


def main() -> None:
    """Deletes the folder's files and writes all inputs, results and the manifest."""
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
        "cases": {name: run_case(name, case) for name, case in CASES.items()},
    }
    (OUT / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
