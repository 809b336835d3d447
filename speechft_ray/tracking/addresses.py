"""Remembers where each sweep of a storage was logged: ``<storage>/trackers/<sweep>.json``.

``--mlflow`` and ``MLFLOW_TRACKING_URI`` belong to one command; ``speechft ui`` looks here later.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from speechft_ray.core.files import write_json
from speechft_ray.core.passwords import hide_passwords

FOLDER = "trackers"
DATABASE = "mlflow.db"
"""The database in a storage folder that takes what no URI sends elsewhere."""


def remember_address(storage: Path, sweep: str, uri: str | None) -> None:
    """Writes the URI of MLflow that a sweep uses, without its password; ``None`` for the database
    in the storage folder. Never raises ``OSError``: the file is a convenience."""
    path = storage.expanduser() / FOLDER / f"{sweep}.json"
    content = {"mlflow": hide_passwords(uri) if uri else None}
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if _read(path) == content:
            os.utime(path)
        else:
            write_json(path, content)


def read_addresses(storage: Path) -> dict[str, str | None]:
    """Returns the URI of MLflow by the name of the sweep, the last used one first; ``None`` for the
    database in the storage folder."""
    paths = [path for path in _list(storage) if not path.name.startswith(".")]
    paths.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    contents = {path.stem: _read(path) for path in paths}
    return {
        name: content["mlflow"]
        for name, content in contents.items()
        if content is not None and "mlflow" in content and isinstance(content["mlflow"], str | None)
    }


def make_database_uri(storage: Path) -> str:
    """Returns the URI of the database in a storage folder."""
    return f"sqlite:///{storage.expanduser().absolute() / DATABASE}"


def _list(storage: Path) -> list[Path]:
    return list((storage.expanduser() / FOLDER).glob("*.json"))


def _read(path: Path) -> dict[str, str | None] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
