"""A program of its own: fairseq loads checkpoints with its own code and writes what it hears.

    python fairseq_judge.py WAVES OUT CHECKPOINT...

``WAVES`` is a safetensors file with ``wave`` (samples,); ``OUT`` gets, per checkpoint, every hidden
state under ``INDEX.STATE``, each (frames, dim). Without arguments it only shows that fairseq can be
imported. Run with fairseq's folder on ``PYTHONPATH``.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import Any

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = (
    "1"  # fairseq unpickles its own Dictionary; the files here are our own
)

import numpy as np
import torch
from safetensors.torch import load_file, save_file


def mend_python() -> None:
    """fairseq 0.12.2 wants Python 3.10 and numpy 1.23: configurations as defaults of
    configurations, and ``np.float``."""
    process: Any = dataclasses._process_class  # type: ignore[attr-defined]

    def hashable(*arguments: Any, **options: Any) -> type:
        made: type = process(*arguments, **options)
        if made.__hash__ is None:
            made.__hash__ = object.__hash__  # type: ignore[method-assign]
        return made

    dataclasses._process_class = hashable  # type: ignore[attr-defined]
    for name, kind in {
        "float": float,
        "int": int,
        "bool": bool,
        "object": object,
        "complex": complex,
    }.items():
        if name not in vars(np):
            setattr(np, name, kind)


def states_of(path: str, wave: torch.Tensor) -> list[torch.Tensor]:
    """Returns the input of every layer and the output of the encoder, each (frames, dim)."""
    from fairseq import checkpoint_utils

    models, _, task = checkpoint_utils.load_model_ensemble_and_task([path])
    model = models[0].eval()
    if task.cfg.normalize:
        wave = torch.nn.functional.layer_norm(wave, wave.shape)
    seen: list[torch.Tensor] = []
    for layer in model.encoder.layers:
        layer.register_forward_pre_hook(
            lambda _, arguments: seen.append(arguments[0].transpose(0, 1)[0])
        )
    model.encoder.register_forward_hook(lambda _, arguments, output: seen.append(output[0][0]))
    with torch.inference_mode():
        model.extract_features(
            source=wave[None], padding_mask=torch.zeros(1, len(wave), dtype=torch.bool), mask=False
        )
    frames = min(len(state) for state in seen)
    return [state[:frames].contiguous().clone() for state in seen]


def main(waves: str, out: str, *checkpoints: str) -> None:
    """Writes the hidden states of every checkpoint."""
    wave = load_file(waves)["wave"]
    found = {
        f"{index}.{place}": state
        for index, path in enumerate(checkpoints)
        for place, state in enumerate(states_of(path, wave))
    }
    save_file(found, out)


if __name__ == "__main__":
    mend_python()
    import fairseq

    print(f"fairseq {fairseq.__version__}")
    if sys.argv[1:]:
        main(*sys.argv[1:])
