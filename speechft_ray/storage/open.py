"""Opens the store of a storage, whether that is a folder or a bucket."""

from __future__ import annotations

import json
import os
import re
import socket
import time
import uuid
from functools import lru_cache
from pathlib import Path

from speechft_ray.core import marker
from speechft_ray.core.errors import StorageDown, UserError
from speechft_ray.core.files import find_cache_root
from speechft_ray.core.marker import MARKER
from speechft_ray.core.records import Place
from speechft_ray.core.store import Store
from speechft_ray.storage.address import is_url, parse_url, resolve_storage
from speechft_ray.storage.bucket import RETRY_SECONDS, Bucket, NoAnswer
from speechft_ray.storage.object_store import ObjectStore

CACHE_GB = 50.0
"""Default of ``SPEECHFT_STORAGE_CACHE_GB``: 10^9 bytes of copies of weights on a node."""

ASK_AGAIN_SECONDS = 2.0
"""Between two tries to open a bucket that does not answer."""


def open_store(storage: str | Path) -> Store:
    """Opens a storage as ``Place.storage`` has it. A bucket is opened once per process.

    Raises ``UserError`` for a folder that cannot be written, and for a bucket that is not there,
    does not answer, or refuses.
    """
    return _open_bucket(str(storage)) if is_url(storage) else Store(Path(storage))


def open_existing(storage: str | Path) -> Store:
    """Opens a storage in order to read it: a folder that is there, or a bucket, with the small
    files of its drivers. Raises ``UserError``."""
    if not is_url(storage) and not Path(storage).expanduser().is_dir():
        raise UserError(f"there is no storage folder {storage}: give that of your sweeps.")
    store = open_store(storage)
    store.pull_records()
    return store


def find_local_root(storage: str | Path) -> Path:
    """Returns the folder in which this node keeps what belongs to a storage: the storage itself, or
    for a bucket a folder of this node, which can be lost."""
    storage = resolve_storage(storage)
    return _open_bucket(storage).root if is_url(storage) else Path(storage)


def mark_storage(store: Store) -> str:
    """Returns the id of a storage, which is drawn when it is first used."""
    return store.identity if isinstance(store, ObjectStore) else marker.mark_storage(store.root)


def explain_other_storage(place: Place) -> str | None:
    """Returns why this node cannot work on a sweep: it sees another storage than the driver, or
    cannot use the bucket. ``None`` where it can. Raises ``StorageDown`` where the object store does
    not answer although it is asked for ``RETRY_SECONDS``."""
    if not is_url(place.storage):
        return marker.explain_other_storage(place)
    host = socket.gethostname()
    try:
        store = _open_patiently(place.storage)
    except StorageDown:
        raise
    except UserError as error:
        return f"node {host} cannot use the storage: {str(error).rstrip('.')}"
    if place.storage_id in (None, store.identity):
        return None
    return (
        f"node {host} sees another bucket than the driver under {place.storage}: set the same "
        "endpoint (AWS_ENDPOINT_URL) on every node"
    )


def _open_patiently(storage: str) -> ObjectStore:
    """Opens a bucket as a driver has it, so that silence is no mistake in its address. Raises
    ``StorageDown``, and ``UserError`` where the object store refuses."""
    ends = time.monotonic() + RETRY_SECONDS
    while True:
        try:
            return _open_bucket(storage)
        except NoAnswer as error:
            if time.monotonic() >= ends:
                raise StorageDown(str(error)) from None
        time.sleep(ASK_AGAIN_SECONDS)


@lru_cache
def _open_bucket(storage: str) -> ObjectStore:
    bucket = Bucket(parse_url(storage))
    identity = _read_identity(bucket)
    slug = re.sub(r"[^A-Za-z0-9.-]+", "-", storage)[:80]
    # Another bucket of that name, or one that was emptied, is another storage.
    root = find_cache_root() / "storages" / f"{slug}-{identity[:12]}"
    return ObjectStore(bucket, root, identity, int(_read_budget_gb() * 1e9))


def _read_identity(bucket: Bucket) -> str:
    content = bucket.check(MARKER)
    if content is None:
        bucket.write(MARKER, json.dumps({"id": uuid.uuid4().hex}).encode(), new=True)
        content = bucket.check(MARKER)
    try:
        identity = str(json.loads(content or b"")["id"])
        if not re.fullmatch(r"[0-9a-f]{12,64}", identity):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{bucket.address}/{MARKER} is not the marker of a storage: give another prefix, or "
            "remove that object if nothing else needs it."
        ) from None
    return identity


def _read_budget_gb() -> float:
    text = os.environ.get("SPEECHFT_STORAGE_CACHE_GB", "")
    try:
        value = float(text or CACHE_GB)
        if not 0 <= value < float("inf"):
            raise ValueError
    except ValueError:
        raise UserError(
            "SPEECHFT_STORAGE_CACHE_GB must be a number of GB that is not negative, but is "
            f"`{text}`."
        ) from None
    return value
