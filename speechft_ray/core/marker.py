"""The marker of a storage folder: a node that sees another one under the path has none of its
results, and whatever it writes there is lost."""

from __future__ import annotations

import json
import socket
import uuid
from pathlib import Path

from speechft_ray.core.files import name_new_file, refresh
from speechft_ray.core.records import Place

MARKER = "storage.json"


def mark_storage(root: Path) -> str:
    """Returns the id of a storage folder, which is drawn when it is first used."""
    identity = _read(root)
    if identity is None:
        temporary = root / f".{uuid.uuid4().hex}-{MARKER}"
        temporary.write_text(json.dumps({"id": uuid.uuid4().hex}), encoding="utf-8")
        name_new_file(temporary, root / MARKER)
        temporary.unlink(missing_ok=True)
        identity = _read(root)
    return identity or ""


def explain_other_storage(place: Place) -> str | None:
    """Returns why this node cannot work on a sweep: it sees another folder under the path of the
    storage. ``None`` where it sees the right one, or the driver marked none."""
    root = Path(place.storage)
    if not place.storage_id:
        return None
    refresh(root)
    identity = _read(root)
    if identity == place.storage_id:
        return None
    what = (
        "another folder than the driver does" if identity else f"no {MARKER} of the driver's folder"
    )
    return (
        f"node {socket.gethostname()} sees {what} under {root}: mount the storage folder there "
        "under the same path"
    )


def _read(root: Path) -> str | None:
    try:
        return str(json.loads((root / MARKER).read_text(encoding="utf-8"))["id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
