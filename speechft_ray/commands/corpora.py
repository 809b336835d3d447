"""Downloads the resources that the recordings of a corpus come without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from speechft_ray.commands.parts import download_progress
from speechft_ray.speech.checkpoints.download import fetch, verify_sha256

if TYPE_CHECKING:  # imports numpy
    from speechft_ray.speech.corpora.base import Resource

MAX_RESOURCE_BYTES = 64 * 2**20
"""The largest resource, VoxCeleb1's identification split, has about 5 MB."""


def fetch_resources(resources: Sequence[Resource], folder: Path) -> Iterator[str]:
    """Downloads resources into the folder of a corpus and yields a sentence for each file.

    The sha256 of each is written beside it and verified by later calls. Raises ``UserError`` as
    ``fetch`` does.
    """
    for resource in resources:
        path = folder / resource.path
        there = path.exists()
        with download_progress(path.name) as progress:
            verify_sha256(
                fetch(resource.url, path, progress=progress, max_bytes=MAX_RESOURCE_BYTES)
            )
        origin = "was there already" if there else f"from {resource.url}"
        yield f"{resource.path}: {origin} ({resource.what})"
