"""Reads the weights of a transformers folder, whole or sharded, and only from within the folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechft_ray.core.errors import UserError
from speechft_ray.speech.checkpoints._plain import to_plain_data
from speechft_ray.speech.checkpoints._safetensors import open_safetensors, read_json
from speechft_ray.speech.checkpoints._torch import open_torch_file
from speechft_ray.speech.checkpoints._wrappers import describe_adapters, find_state_dict
from speechft_ray.speech.checkpoints.hub import WEIGHTS

MAX_SHARDS = 256
_SHARD = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,120}\.(safetensors|bin)")


def read_weights(folder: Path) -> dict[str, Any]:
    """Returns the state dict of a folder as it is in its files, not yet checked.

    Raises ``UserError`` for a folder without weights, an index that leads out of it or names a
    parameter's wrong file, and damaged files.
    """
    names = [name for name in WEIGHTS if (folder / name).is_file()]
    if not names and (folder / "adapter_config.json").is_file():
        raise UserError(describe_adapters(folder))
    if not names:
        raise UserError(
            f"{folder} has a config.json and no weights: expected one of {', '.join(WEIGHTS)}."
        )
    if not names[0].endswith(".json"):
        return _read_shard(_check_inside(folder, names[0]))
    index = _read_index(folder / names[0])
    state: dict[str, Any] = {}
    for shard in sorted(set(index.values())):
        tensors = _read_shard(_check_inside(folder, shard))
        misplaced = [name for name in tensors if index.get(name) != shard]
        if misplaced:
            raise UserError(
                f"{folder / shard} holds `{misplaced[0][:80]}`, which {names[0]} does not place "
                "there."
            )
        state |= tensors
    missing = [name for name in index if name not in state]
    if missing:
        raise UserError(
            f"{folder}: {names[0]} promises `{missing[0][:80]}`, which is in none of its files. "
            "Copy the folder again."
        )
    return state


def _read_shard(file: Path) -> dict[str, Any]:
    """Returns the state dict of a file; a training checkpoint under the name of weights has it
    under a key."""
    tensors: Any = (
        open_safetensors(file)[0]
        if file.suffix == ".safetensors"
        else find_state_dict(open_torch_file(file))
    )
    if not isinstance(tensors, Mapping) or not tensors:
        raise UserError(
            f"{file} holds no table of tensors, so these are no weights of transformers. Copy the "
            "folder again from where it came."
        )
    return {str(name): tensor for name, tensor in tensors.items()}


def _read_index(file: Path) -> dict[str, str]:
    content = to_plain_data(read_json(file), str(file))
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise UserError(f"{file} has no `weight_map`, so it is no index of weights.")
    wrong = [
        str(name)
        for name in places.values()
        if not isinstance(name, str) or not _SHARD.fullmatch(name)
    ]
    if wrong or len(set(places.values())) > MAX_SHARDS:
        raise UserError(
            f"{file} names `{(wrong or ['too many files'])[0][:80]}`: allowed are up to "
            f"{MAX_SHARDS} files beside it."
        )
    return places


def _check_inside(folder: Path, name: str) -> Path:
    """Returns a file of the folder. Raises ``UserError`` when it is a link that leads out of the
    folder, unless to the ``blobs`` of the hub's cache that the folder is in."""
    file = folder / name
    if not file.is_file():
        raise UserError(
            f"{file} is missing, though the index of the folder names it. Copy the folder again."
        )
    target, home = file.resolve(), folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":  # CACHE/models--OWNER--NAME/snapshots/COMMIT
        model = home.parent.parent
        allowed += [model / "blobs", model.parent / "blobs"]  # the model's, and those of all models
    if not any(target.is_relative_to(place) for place in allowed):
        raise UserError(
            f"{file} is a link that leaves the folder. Copy the file itself into the folder."
        )
    return file
