"""Says what a path that is no encoder is instead, and how to go on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from speechft_ray.core.errors import unknown_name
from speechft_ray.speech.checkpoints._torch import make_printable
from speechft_ray.speech.checkpoints._wrappers import (
    describe_adapters,
    find_state_dict,
    has_encoder,
)
from speechft_ray.speech.checkpoints.catalogue import list_names
from speechft_ray.speech.checkpoints.hub import CONFIG, WEIGHTS

_HUB_ADDRESS = re.compile(
    r"(?:https?://)?(?:huggingface\.co/|hf\.co/)?"
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?:@(?P<at>[\w.-]+)|/tree/(?P<tree>[\w.-]+))?/?"
)
"""A model of the hub as people write it: its name, or its address."""
_FILE_ENDINGS = (".pt", ".ckpt", ".bin", ".pth", ".th", ".safetensors", ".json")
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


def describe_missing(name: str) -> str:
    """Returns the sentence for a name or path where there is nothing."""
    hub_name = find_hub_name(name)
    if hub_name:
        return (
            f"there is no encoder at {name}: the file does not exist. Give a path that does; the "
            f"model of the Hugging Face hub is {hub_name}."
        )
    if "/" in name or "." in name:
        return (
            f"there is no encoder at {name}: the file does not exist. Give a path or a name: "
            f"{', '.join(list_names())}."
        )
    return unknown_name("encoder", name, list_names()) + " Or give the path of a checkpoint."


def find_hub_name(text: str) -> str | None:
    """Returns the ``hf:`` name of a text that reads like a model or an address of the hub."""
    match = _HUB_ADDRESS.fullmatch(text)
    if match is None or match["repo"].lower().endswith(_FILE_ENDINGS):
        return None
    revision = match["at"] or match["tree"]
    return f"hf:{match['repo']}" + (f"@{revision}" if revision else "")


def describe_unknown_folder(folder: Path, own_file: str) -> str:
    """Returns the sentence for a folder of no format; ``own_file`` is what a folder of ours has."""
    if any((folder / name).is_file() for name in _ADAPTERS):
        return describe_adapters(folder)
    here = f"{folder} is a folder with neither {CONFIG} (transformers) nor {own_file} (ours)"
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        return f"{folder} cannot be read: {error.strerror}."
    weights = [entry.name for entry in entries if entry.name in WEIGHTS]
    if weights:
        return (
            f"{here}: its {weights[0]} says nothing about the network. Put the {CONFIG} of the "
            "model beside it."
        )
    inside = _find_inside(entries)
    if inside:
        return f"{here}, but it has {', '.join(map(make_printable, inside[:3]))}: give one of them."
    return f"{here}. Give the folder or file of an encoder."


def describe_unknown_file(path: Path, content: Any, titles: Iterable[str]) -> str:
    """Returns the sentence for a file of ``torch.save`` with content of no format."""
    if path.name in WEIGHTS and (path.parent / CONFIG).is_file():
        return f"{path} belongs to the folder {path.parent} of transformers: give the folder."
    state = find_state_dict(content)
    if has_encoder(state):
        return _describe_bare_state(path, content, state)
    return f"{path} holds no encoder in a format that is known. Allowed: {', '.join(titles)}."


def _describe_bare_state(path: Path, content: Any, state: Mapping[str, Any]) -> str:
    is_lightning = isinstance(content, Mapping) and "pytorch-lightning_version" in content
    kind = "is a checkpoint of Lightning, which" if is_lightning else "holds the parameters of an"
    kind += " holds the parameters of an encoder" if is_lightning else " encoder"
    is_hf = any(".attention.k_proj." in name for name in state)
    remedy = (
        f"Copy it as {WEIGHTS[2]} into a folder with the {CONFIG} of the model that it was trained "
        "from, and give the folder."
        if is_hf
        else "Put its parameters in the place of those in the checkpoint that it was trained from "
        "(under `model_weight` in one of s3prl, `model` in one of fairseq), and save that."
    )
    names = "transformers" if is_hf else "fairseq and s3prl"
    return (
        f"{path} {kind} (names of {names}) and no configuration, so its network is not known. "
        f"{remedy}"
    )


def _find_inside(entries: Iterable[Path]) -> list[str]:
    """Returns the encoders that a folder seems to have: checkpoint files, folders of transformers,
    snapshots of the hub's cache."""
    names = []
    for entry in entries:
        if entry.is_file() and entry.suffix in (".pt", ".ckpt", ".safetensors"):
            names.append(entry.name)
        elif entry.is_dir():
            folders = sorted(entry.iterdir()) if entry.name == "snapshots" else [entry]
            names += [
                str(folder.relative_to(entry.parent))
                for folder in folders
                if (folder / CONFIG).is_file()
            ]
    return names
