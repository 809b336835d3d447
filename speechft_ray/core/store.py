"""The store: a folder ``<root>/<stage>/<fingerprint>/`` for each unit, published by one rename.

A unit is complete when its manifest exists. Every view (the table, MLflow, the dashboard) is made
from the store and can be made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from speechft_ray.core.errors import UserError
from speechft_ray.core.files import refresh, sync_folder, try_writing, write_json
from speechft_ray.core.fingerprint import file_sha256
from speechft_ray.core.lease import FolderLease, LeasePlace
from speechft_ray.core.provenance import code_version

MANIFEST = "manifest.json"
MADE_WITH = "made_with"
"""Key of the package version and git commit in a manifest; older manifests lack it."""
CHECKSUM = "manifest_sha256"
"""Key of the sha256 of all else in a manifest; older manifests lack it and are not checked."""
LOCKS = "locks"
"""Folder of the store with leases."""
DAMAGED = "damaged"
"""Folder of the store with units that were set aside."""
CACHE = "cache"
"""Folder of a storage that is a store of its own: features that evaluations share."""
FEATURES = "features"
"""The stage of all units in it."""
WORK = "work"
"""Folder of the store with unfinished work, ``<stage>-<fingerprint>`` for each unit."""

DISCARDED = ".discarded-"
"""How the name of a folder begins whose files are being removed."""

MANIFESTS_IN_MEMORY = 64
"""A row of a table is read in several places, one after the other: its evaluations, its merge."""


class Entry(NamedTuple):
    """A file or folder that lies directly in a folder of the store."""

    name: str
    bytes: int
    modified: float
    """When it, or anything in it, was changed last, in seconds since 1970."""


class Store:
    """Content-addressed folders below one root, which may be shared by many nodes."""

    def __init__(self, root: Path) -> None:
        """Opens the store, making the root where there is none. Raises ``UserError`` when it cannot
        be made. A root that can be read alone is enough for what only reads."""
        self.root = root.expanduser().absolute()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._explain(error) from None

    def check_writable(self) -> None:
        """Raises ``UserError`` where nothing can be stored."""
        try:
            try_writing(self.root)
        except OSError as error:
            raise self._explain(error) from None

    def is_writable(self) -> bool:
        """Whether anything can be stored."""
        try:
            self.check_writable()
        except UserError:
            return False
        return True

    def _explain(self, error: OSError) -> UserError:
        return UserError(
            f"the storage folder `{self.root}` cannot be written ({error.strerror}): give "
            "another with --storage, one that every node of the cluster can write."
        )

    @property
    def address(self) -> str:
        """What a person calls this storage."""
        return str(self.root)

    @property
    def checks_when_reading(self) -> bool:
        """Whether files are compared with their sha256 before anybody reads them here."""
        return False

    def folder(self, stage: str, fingerprint: str) -> Path:
        """Returns the folder of a unit once it is complete."""
        return self._path(stage, fingerprint)

    def _path(self, stage: str, fingerprint: str) -> Path:
        return self.root / stage / fingerprint

    def find_time(self, stage: str, fingerprint: str) -> float | None:
        """Returns when a complete unit was published, in seconds since 1970."""
        try:
            return os.stat(self._manifest_path(stage, fingerprint)).st_mtime  # noqa: PTH116
        except OSError:
            return None

    def look_again(self, stage: str, fingerprint: str) -> bool:
        """Whether a unit is complete now, whatever was remembered of it before."""
        if not self.is_complete(stage, fingerprint):
            refresh(self._path(stage, fingerprint).parent)
        return self.is_complete(stage, fingerprint)

    def prefetch(self, units: Iterable[tuple[str, str]]) -> None:
        """Prepares questions about many units, where each would take a request."""

    def prefetch_stage(self, stage: str) -> None:
        """Does so for all units of a stage."""

    def pull_records(self) -> None:
        """Brings the small files of drivers (plans, results, status) up to date."""

    def keep_records(self) -> AbstractContextManager[object]:
        """Returns a context in which the small files of this driver are kept in the storage."""
        return nullcontext()

    def create_file(self, name: str, content: str) -> bool:
        """Writes a small file where there is none, in one step; returns whether there was none.
        Raises ``OSError``."""
        path = self.root / name
        path.parent.mkdir(exist_ok=True)
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(file, "w", encoding="utf-8") as opened:
            opened.write(content)
        return True

    def read_file(self, name: str) -> str | None:
        """Returns a small file; ``None`` where there is none. Raises ``OSError``, and
        ``ValueError`` for what is no text."""
        try:
            return (self.root / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def remove_file(self, name: str) -> None:
        """Removes a small file, if it is there. Raises ``OSError``."""
        (self.root / name).unlink(missing_ok=True)

    def list_entries(self, folder: str) -> list[Entry]:
        """Returns what lies directly in a folder of the store, sorted by name; nothing where there
        is no such folder."""
        return [_measure_entry(path) for path in sorted((self.root / folder).glob("*"))]

    def list_left_over(self, stage: str) -> list[Entry]:
        """Returns what is being published in a stage right now, and what publications left that
        were killed."""
        return [_measure_entry(path) for path in sorted((self.root / stage).glob(".*"))]

    def remove_entry(self, folder: str, name: str) -> None:
        """Removes a file or folder of ``list_entries``, if it is there."""
        path = self.root / folder / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        if path.parent.is_dir():
            sync_folder(path.parent)

    def lease(self, name: str) -> LeasePlace:
        """Returns where the lease of a sweep is kept."""
        return FolderLease(self.root / LOCKS / name)

    def list_leases(self) -> list[str]:
        """Returns the names of all leases that were ever taken."""
        return sorted(path.name for path in (self.root / LOCKS).glob("[!.]*") if path.is_dir())

    def work_folder(self, stage: str, fingerprint: str) -> Path:
        """Returns a folder for unfinished work, which a later try resumes."""
        path = self.root / WORK / f"{stage}-{fingerprint}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def is_complete(self, stage: str, fingerprint: str) -> bool:
        """Whether the unit is complete."""
        return os.path.isfile(self._manifest_path(stage, fingerprint))  # noqa: PTH113

    def manifest(self, stage: str, fingerprint: str) -> dict[str, Any]:
        """Returns the facts of a complete unit. Raises ``UserError`` for a manifest that is
        unreadable or was changed after it was written."""
        try:
            return self.read_manifest(stage, fingerprint)
        except (OSError, ValueError) as error:
            path = self._manifest_path(stage, fingerprint)
            raise UserError(
                f"`{path}` cannot be read ({error}): `speechft run` sets this unit aside and "
                "computes it again, and so does `speechft verify --repair` for a whole storage."
            ) from None

    def read_manifest(self, stage: str, fingerprint: str) -> dict[str, Any]:
        """Returns the facts of a unit in the folder. Raises ``OSError`` where they cannot be
        read, and ``ValueError`` where they are not what was written."""
        path = self._manifest_path(stage, fingerprint)
        status = os.stat(path)  # noqa: PTH116
        version = (status.st_ctime_ns, status.st_size, status.st_ino)
        return dict(_read_manifest(path, version))

    def _manifest_path(self, stage: str, fingerprint: str) -> str:
        # Asked for several times for each of ten thousand units: a `Path` would take most time.
        return f"{self.root}/{stage}/{fingerprint}/{MANIFEST}"

    def fingerprints(self, stage: str) -> list[str]:
        """Returns the fingerprints of all complete units of a stage, sorted."""
        folder = self.root / stage
        if not folder.is_dir():
            return []
        # A leading dot marks what is being published or discarded right now; `glob` would list it.
        return sorted(
            path.parent.name
            for path in folder.glob(f"*/{MANIFEST}")
            if not path.parent.name.startswith(".")
        )

    @contextmanager
    def publish(self, stage: str, fingerprint: str, facts: Mapping[str, Any]) -> Iterator[Path]:
        """Yields an empty folder to fill, then adds the manifest and renames the folder.

        The manifest has ``facts``, the sha256 of each file and the version of the code. ``facts``
        is read at the end, so the body may add to it. When two workers finish one unit, the first
        rename counts and the other result is removed: both are equal by construction. Nothing is
        left when the body raises.
        """
        final = self._path(stage, fingerprint)
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = (
            final.parent
            / f".{fingerprint}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        )
        temporary.mkdir()
        try:
            yield temporary
            files = {
                str(path.relative_to(temporary)): {
                    "sha256": file_sha256(path),
                    "bytes": path.stat().st_size,
                }
                for path in sorted(temporary.rglob("*"))
                if path.is_file()
            }
            manifest = {MADE_WITH: code_version(), **facts, "files": files}
            write_json(temporary / MANIFEST, add_checksum(manifest))
            self._rename(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def find_damaged_files(self, stage: str, fingerprint: str) -> list[str]:
        """Returns the files of a complete unit that are missing or differ from their sha256."""
        folder = self.folder(stage, fingerprint)
        files = self.manifest(stage, fingerprint).get("files", {})
        return [
            name
            for name, expected in files.items()
            if not (folder / name).is_file() or file_sha256(folder / name) != expected["sha256"]
        ]

    def explain_damage(self, stage: str, fingerprint: str, contents: bool) -> str | None:
        """Returns what is wrong with a complete unit, ``None`` where nothing is.

        Sizes of files are checked; with ``contents``, also their sha256, which reads them.
        """
        try:
            files = self.manifest(stage, fingerprint).get("files", {})
        except UserError as error:
            return str(error).partition(": `speechft")[0]
        for name, expected in files.items():
            path = self.folder(stage, fingerprint) / name
            try:
                size = path.stat().st_size
                changed = contents and file_sha256(path) != expected["sha256"]
            except FileNotFoundError:
                return f"{path} is missing"
            except OSError as error:
                return f"{path} cannot be read ({error.strerror})"
            if size != expected["bytes"]:
                return f"{path} has {size} bytes, and had {expected['bytes']} when it was written"
            if changed:
                return f"{path} differs from its sha256"
        return None

    def end_work(self, stage: str, fingerprint: str) -> None:
        """Is called when a job ends that had a work folder, whether its unit is complete or not."""

    def set_aside(self, stage: str, fingerprint: str) -> Path:
        """Moves a damaged unit away, so that it is computed again; returns where it is kept."""
        kept = self.root / DAMAGED / f"{stage}-{fingerprint}-{uuid.uuid4().hex[:8]}"
        kept.parent.mkdir(exist_ok=True)
        self._path(stage, fingerprint).rename(kept)
        return kept

    def list_units(self) -> list[tuple[str, str]]:
        """Returns stage and fingerprint of all complete units, sorted."""
        units = (path.parent for path in self.root.glob(f"*/*/{MANIFEST}"))
        return sorted(
            (unit.parent.name, unit.name)
            for unit in units
            if unit.parent.name not in (DAMAGED, WORK) and not unit.name.startswith(".")
        )

    def discard(self, stage: str, fingerprint: str) -> None:
        """Removes a unit from the store, if it is there, so that it is computed again."""
        folder = self._path(stage, fingerprint)
        # Readers must not see a part of the unit while its files are removed.
        hidden = folder.with_name(f"{DISCARDED}{folder.name}-{uuid.uuid4().hex[:8]}")
        with suppress(FileNotFoundError):  # another process may have removed it meanwhile
            folder.rename(hidden)
            shutil.rmtree(hidden, ignore_errors=True)

    def clear_work(self, stage: str, fingerprint: str) -> None:
        """Removes the unfinished work of a unit that is complete."""
        shutil.rmtree(self.root / WORK / f"{stage}-{fingerprint}", ignore_errors=True)

    def _rename(self, temporary: Path, final: Path) -> None:
        if final.exists() and not (final / MANIFEST).is_file():
            shutil.rmtree(final, ignore_errors=True)  # without a manifest it was never complete
        try:
            temporary.rename(final)
        except OSError:
            if not (final / MANIFEST).is_file():
                raise
            return
        sync_folder(final.parent)


def measure_folder(path: Path) -> int:
    """Returns the bytes of the files in a folder, or of a file; 0 where there is none."""
    return _measure_entry(path).bytes


def _measure_entry(path: Path) -> Entry:
    """Measures a file or folder; what goes meanwhile is left out."""
    total, modified = 0, 0.0
    inner = [
        Path(folder) / name
        for folder, folders, names in os.walk(path)
        for name in (*folders, *names)
    ]
    for one in (path, *inner):
        with suppress(OSError):
            state = one.stat()
            total += state.st_size if stat.S_ISREG(state.st_mode) else 0
            modified = max(modified, state.st_mtime)
    return Entry(path.name, total, modified)


def add_checksum(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the facts of a unit with their checksum, as a manifest has them."""
    read = json.loads(json.dumps(facts, allow_nan=False))  # keys that are no texts become texts
    return {**facts, CHECKSUM: _compute_checksum(read)}


@lru_cache(maxsize=MANIFESTS_IN_MEMORY)
def _read_manifest(path: str, version: tuple[int, int, int]) -> dict[str, Any]:
    """Returns the facts of a manifest; those that were read last are kept. ``version``: size and
    inode of the file, and when that changed (a copy of an object has the times of the object).
    Raises ``OSError`` and ``ValueError``."""
    with open(path, encoding="utf-8") as file:  # noqa: PTH123
        facts = json.load(file)
    if not isinstance(facts, dict):
        raise ValueError("it is not a JSON object")
    checksum = facts.pop(CHECKSUM, None)
    if checksum is not None and checksum != _compute_checksum(facts):
        raise ValueError("it is not what was written: its checksum differs")
    return facts


def _compute_checksum(read: Mapping[str, Any]) -> str:
    """Returns the sha256 of facts as they were read from JSON."""
    text = json.dumps(read, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
