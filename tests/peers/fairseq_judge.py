"""Computes the hidden states of checkpoints with fairseq's own code, as a program of its own.

    python fairseq_judge.py WAVES OUT CHECKPOINT...

``WAVES`` is a safetensors file with ``wave`` (samples,). ``OUT`` gets every hidden state of every
checkpoint under ``INDEX.STATE``, each (frames, dim). Without arguments the program only imports
fairseq and prints its version. Run it with fairseq's folder on ``PYTHONPATH``.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import Any, cast

# fairseq unpickles its own Dictionary. Only files that the tests wrote are loaded.
os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"

import numpy as np
import torch
from safetensors.torch import load_file, save_file


def patch_python_and_numpy() -> None:
    """Restores what fairseq 0.12.2 needs of Python 3.10 and numpy 1.23: mutable dataclasses as
    defaults of fields, and ``np.float``."""
    process: Any = vars(dataclasses)["_process_class"]

    def process_hashable(*arguments: Any, **options: Any) -> type:
        cls: Any = process(*arguments, **options)
        if cls.__hash__ is None:
            cls.__hash__ = object.__hash__
        return cast(type, cls)

    setattr(dataclasses, "_process_class", process_hashable)  # noqa: B010  # private to mypy
    for name, kind in {
        "float": float,
        "int": int,
        "bool": bool,
        "object": object,
        "complex": complex,
    }.items():
        if name not in vars(np):
            setattr(np, name, kind)


def compute_states(path: str, wave: torch.Tensor) -> list[torch.Tensor]:
    """Returns the input of every layer and the output of the encoder, each (frames, dim)."""
    from fairseq import checkpoint_utils  # type: ignore[import-not-found,unused-ignore]

    models, _, task = checkpoint_utils.load_model_ensemble_and_task([path])
    model = models[0].eval()
    if task.cfg.normalize:
        wave = torch.nn.functional.layer_norm(wave, wave.shape)
    states: list[torch.Tensor] = []
    for layer in model.encoder.layers:
        layer.register_forward_pre_hook(
            lambda _, arguments: states.append(arguments[0].transpose(0, 1)[0])
        )
    model.encoder.register_forward_hook(lambda _, arguments, output: states.append(output[0][0]))
    with torch.inference_mode():
        model.extract_features(
            source=wave[None], padding_mask=torch.zeros(1, len(wave), dtype=torch.bool), mask=False
        )
    frames = min(len(state) for state in states)
    return [state[:frames].contiguous().clone() for state in states]


def main(waves: str, out: str, *checkpoints: str) -> None:
    """Writes the hidden states of every checkpoint."""
    wave = load_file(waves)["wave"]
    states = {
        f"{index}.{place}": state
        for index, path in enumerate(checkpoints)
        for place, state in enumerate(compute_states(path, wave))
    }
    save_file(states, out)


if __name__ == "__main__":
    patch_python_and_numpy()
    import fairseq

    print(f"fairseq {fairseq.__version__}")
    if sys.argv[1:]:
        main(*sys.argv[1:])
