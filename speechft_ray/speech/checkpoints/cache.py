"""From the name of an encoder to its file: from the package, from the cache, or over https into the
cache."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path

from speechft_ray.core.errors import UserError, unknown_name
from speechft_ray.speech.checkpoints.catalogue import (
    PACKAGED,
    PUBLISHED,
    HubName,
    list_names,
    parse_hub_name,
)
from speechft_ray.speech.checkpoints.download import (
    MAX_BYTES,
    NotThere,
    Progress,
    Unreachable,
    fetch,
    verify_sha256,
)

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where a folder of transformers keeps its weights, the safe ones first; an index names the files
of a model in pieces."""

_PIECE = re.compile(r"[A-Za-z0-9_-]{1,80}\.(safetensors|bin)")
_MOST_PIECES = 64


def download_encoder(name: str, progress: Progress | None = None) -> Path:
    """Returns the file or folder of a catalogue name or of ``hf:OWNER/NAME[@REVISION]``,
    downloading what is not there yet.

    Every downloaded file is compared with the sha256 that was recorded when it came. ``progress``
    is told bytes per file. Raises ``UserError`` for an unknown name, for a file that has changed,
    and, where nothing can be downloaded, saying which file to put where.
    """
    if name in PACKAGED:
        return PACKAGED[name]
    if name in PUBLISHED:
        return _have(PUBLISHED[name].url, PUBLISHED[name].path, progress)
    model = parse_hub_name(name)
    if model is None:
        raise UserError(
            unknown_name("encoder", name, list_names())
            + " Or give the path of a checkpoint, or hf:OWNER/NAME."
        )
    try:
        return _have_folder(model, progress)
    except Unreachable as error:
        raise UserError(
            f"{name} is not whole in the cache, and the hub cannot be reached ({error.reason}): put its {CONFIG}, "
            f"{PREPROCESSOR} and {WEIGHTS[0]} (or {WEIGHTS[2]}) into {model.folder}, or run again with a network."
        ) from None


def is_cached(name: str) -> bool:
    """Whether ``download_encoder`` would need no network for this name."""
    if name in PUBLISHED:
        return PUBLISHED[name].path.exists()
    model = parse_hub_name(name)
    return model is None or ((model.folder / CONFIG).exists() and _weights_here(model.folder))


def _have(url: str, path: Path, progress: Progress | None) -> Path:
    return verify_sha256(
        path if path.exists() else fetch(url, path, progress=progress, max_bytes=_most_bytes())
    )


def _have_folder(model: HubName, progress: Progress | None) -> Path:
    """Brings what transformers would read, weights last, so that a folder with weights is whole."""
    folder = model.folder
    here = _weights_here(folder)
    _have(model.url(CONFIG), folder / CONFIG, progress)
    if (folder / PREPROCESSOR).exists() or not here:
        with suppress(NotThere):  # an encoder without one takes the waveform as it is
            _have(model.url(PREPROCESSOR), folder / PREPROCESSOR, progress)
    for file in _weight_names(model, progress):
        _have(model.url(file), folder / file, progress)
    return folder


def _weight_names(model: HubName, progress: Progress | None) -> list[str]:
    """Which files hold the weights: what is here already, else the first kind that the hub has."""
    folder = model.folder
    for kind in sorted(WEIGHTS, key=lambda kind: not (folder / kind).exists()):
        try:
            _have(model.url(kind), folder / kind, progress)
        except NotThere:
            continue
        return _pieces(folder / kind) if kind.endswith(".json") else [kind]
    raise UserError(
        f"hf:{model.owner}/{model.name}@{model.revision} has no weights for PyTorch: put {WEIGHTS[0]} into {folder}, or take "
        "another model."
    )


def _weights_here(folder: Path) -> bool:
    kind = next((kind for kind in WEIGHTS if (folder / kind).exists()), None)
    return kind is not None and all(
        (folder / file).exists() for file in (_pieces(folder / kind) if ".index." in kind else [])
    )


def _pieces(index: Path) -> list[str]:
    """The files that an index names; they become paths, so they must be plain names."""
    try:
        found = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{index} is no index of a model in pieces: remove it to download it again."
        ) from error
    if not 1 <= len(found) <= _MOST_PIECES or not all(
        _PIECE.fullmatch(str(file)) for file in found
    ):
        raise UserError(f"{index} names files that no model in pieces has: take another model.")
    return [str(file) for file in found]


def _most_bytes() -> int:
    text = os.environ.get("SPEECHFT_MAX_DOWNLOAD_BYTES", str(MAX_BYTES))
    if not text.isdecimal():
        raise UserError(
            f"SPEECHFT_MAX_DOWNLOAD_BYTES must be a whole number of bytes, but is `{text}`."
        )
    return int(text)
