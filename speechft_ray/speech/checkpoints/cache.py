"""Resolves the name of an encoder to its file: in the package, in a cache, or downloaded first."""

from __future__ import annotations

import os
from pathlib import Path

from speechft_ray.core.errors import UserError, unknown_name
from speechft_ray.speech.checkpoints import hub
from speechft_ray.speech.checkpoints.catalogue import (
    PACKAGED,
    PUBLISHED,
    cache_folder,
    list_names,
    parse_hub_name,
)
from speechft_ray.speech.checkpoints.download import (
    MAX_BYTES,
    Progress,
    fetch,
    verify_sha256,
)


def download_encoder(name: str, progress: Progress | None = None) -> Path:
    """Returns the file or folder of a catalogue name or of ``hf:OWNER/NAME[@REVISION]``,
    downloading the files that are not in the cache.

    The hash of every downloaded file is compared on every use. ``progress`` receives the bytes of
    each file. Raises ``UserError`` for an unknown name, for a file that has changed, and where
    nothing can be downloaded.
    """
    if name in PACKAGED:
        return PACKAGED[name]
    if name in PUBLISHED:
        item = PUBLISHED[name]
        if not item.path.exists():
            fetch(item.url, item.path, progress=progress, max_bytes=_read_max_bytes())
        return verify_sha256(item.path)
    model = parse_hub_name(name)
    if model is None:
        raise UserError(
            unknown_name("encoder", name, list_names())
            + " Or give the path of a checkpoint, or hf:OWNER/NAME."
        )
    return hub.download_model(model, progress, _read_max_bytes())


def is_cached(name: str) -> bool:
    """Whether ``download_encoder`` needs no network for this name."""
    if name in PUBLISHED:
        return PUBLISHED[name].path.exists()
    model = parse_hub_name(name)
    return model is None or hub.find_cached(model) is not None


def find_cache_folder(name: str) -> Path:
    """Returns the cache that ``download_encoder`` uses for a name."""
    return hub.cache_folder() if parse_hub_name(name) else cache_folder()


def _read_max_bytes() -> int:
    text = os.environ.get("SPEECHFT_MAX_DOWNLOAD_BYTES", str(MAX_BYTES))
    if not text.isdecimal():
        raise UserError(
            f"SPEECHFT_MAX_DOWNLOAD_BYTES must be a whole number of bytes, but is `{text}`."
        )
    return int(text)
