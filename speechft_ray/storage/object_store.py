"""A store in a bucket. Each node works in a folder of its own, and sends and fetches whole units.

An object has the path that the file has in a folder: ``<stage>/<fingerprint>/<file>``. A unit is
complete when its manifest is there, which is written last and only where there is none.
"""

from __future__ import annotations

import json
import os
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from speechft_ray.core.errors import UserError
from speechft_ray.core.lease import LeasePlace
from speechft_ray.core.store import DAMAGED, LOCKS, MANIFEST, WORK, Entry, Store
from speechft_ray.storage.bucket import Bucket, Item
from speechft_ray.storage.lease import BucketLease
from speechft_ray.storage.local_copies import LocalCopies, has_size, read_content
from speechft_ray.storage.mirror import Mirror, download_file
from speechft_ray.storage.unfinished_work import UnfinishedWork
from speechft_ray.storage.unit_index import Unit, UnitIndex, make_key

RECORDS = ("plans", "provenance", "status", "sweeps", "trackers")
"""Folders with the small files of drivers."""

REPORTS = "report"
"""Folder with the pages of reports, which only the next driver reads."""

SMALL_STAGES = ("evaluate", "overlap", "stopped")
"""Stages whose units are small and read as a whole by drivers."""

THREADS = 32
"""Requests at once where many units are asked for: each waits for tens of milliseconds."""

_LEASE = "lease.json"


class ObjectStore(Store):
    """Units in a bucket. ``root`` is a folder of this node with copies, which can be lost."""

    def __init__(self, bucket: Bucket, root: Path, identity: str, budget_bytes: int) -> None:
        """``identity``: the id in the marker of the bucket. Raises ``UserError`` where ``root``
        cannot be written."""
        try:
            super().__init__(root)
        except UserError as error:
            raise UserError(
                f"{error.args[0].partition(': give')[0]}: it is the cache of this node for "
                f"{bucket.address}; set SPEECHFT_CACHE to a folder of this node that can be "
                "written."
            ) from None
        self.bucket, self.identity = bucket, identity
        self._copies = LocalCopies(root, budget_bytes)
        self._index = UnitIndex(bucket)
        self._unfinished = UnfinishedWork(bucket, root)

    @property
    def address(self) -> str:
        """The URL."""
        return str(self.bucket.address)

    @property
    def checks_when_reading(self) -> bool:
        """Files are compared with their sha256 when they are fetched."""
        return True

    # Questions

    def is_complete(self, stage: str, fingerprint: str) -> bool:
        """Whether the unit is complete; one request where that is not known."""
        return self._index.is_complete((stage, fingerprint))

    def look_again(self, stage: str, fingerprint: str) -> bool:
        """Asks the bucket."""
        return self._index.look_again((stage, fingerprint))

    def find_time(self, stage: str, fingerprint: str) -> float | None:
        """Returns when the manifest was written, by the clock of the object store."""
        item = self._index.find_manifest((stage, fingerprint))
        return None if item is None else item.modified

    def manifest(self, stage: str, fingerprint: str) -> dict[str, Any]:
        """Returns the facts of a complete unit, as ``Store`` does; fetches its manifest once."""
        unit = (stage, fingerprint)
        if unit not in self._index.fetched:
            self._fetch_manifest(unit)
        return super().manifest(stage, fingerprint)

    def fingerprints(self, stage: str) -> list[str]:
        """Returns the fingerprints of all complete units of a stage, sorted; lists the stage."""
        return sorted(key for _, key in self._index.list_units(stage))

    def list_units(self) -> list[Unit]:
        """Returns all complete units; lists the bucket."""
        skipped = (DAMAGED, WORK, REPORTS, *RECORDS)
        return sorted(unit for unit in self._index.list_units() if unit[0] not in skipped)

    def prefetch(self, units: Iterable[Unit]) -> None:
        """Lists the stages of these units once, and fetches the manifests that this node lacks, of
        small units all files; many at once."""
        asked = list(dict.fromkeys(units))
        present: set[Unit] = set()
        for stage in sorted({stage for stage, _ in asked}):
            present |= self._index.list_units(stage)
        self._index.note_absent(asked, present)
        self._fetch_many(unit for unit in asked if unit in present)

    def prefetch_stage(self, stage: str) -> None:
        """Does so for all units of a stage; those that are not there are not remembered so."""
        self._fetch_many(self._index.list_units(stage))

    # Files

    def folder(self, stage: str, fingerprint: str) -> Path:
        """Returns the folder of this node with all files of a complete unit; fetches what it lacks.

        Raises ``UserError`` where a file differs from its sha256: the unit was set aside then.
        """
        unit = (stage, fingerprint)
        local = self._path(*unit)
        if not self.is_complete(*unit):
            return local
        files: dict[str, Any] = self.manifest(*unit).get("files", {})
        self._copies.note_use(local)
        missing = {
            name: facts
            for name, facts in files.items()
            if not has_size(local / name, facts["bytes"])
        }
        if missing:
            self._copies.make_room(sum(facts["bytes"] for facts in missing.values()))
            for name, facts in missing.items():
                self._fetch_file(unit, name, facts["sha256"])
        return local

    @contextmanager
    def publish(self, stage: str, fingerprint: str, facts: Mapping[str, Any]) -> Iterator[Path]:
        """Sends the files of the folder and at last the manifest, and keeps the folder as the copy
        of this node. Where another worker was first, its unit counts."""
        with super().publish(stage, fingerprint, facts) as folder:
            yield folder

    def _rename(self, temporary: Path, final: Path) -> None:
        """Sends from the folder that no other worker has: others of this node may replace or read
        the copy meanwhile. One that is there is older, unless it was fetched since it was sent."""
        unit = (final.parent.name, final.name)
        if not self._send(unit, temporary):
            return
        content = read_content(temporary / MANIFEST)
        if read_content(final / MANIFEST) != content:
            self._discard_copy(unit)
            with suppress(OSError):  # another process of this node fetches it just now
                super()._rename(temporary, final)
        if read_content(final / MANIFEST) == content:
            self._index.note_manifest(unit, None)

    def work_folder(self, stage: str, fingerprint: str) -> Path:
        """Returns a folder with what an earlier try saved, on whatever node; from now on its files
        are sent while the job runs."""
        folder = super().work_folder(stage, fingerprint)
        self._unfinished.open(_work_key((stage, fingerprint)))
        return folder

    def clear_work(self, stage: str, fingerprint: str) -> None:
        """Removes the unfinished work of a unit, here and in the bucket."""
        self._unfinished.clear(_work_key((stage, fingerprint)))
        super().clear_work(stage, fingerprint)

    def end_work(self, stage: str, fingerprint: str) -> None:
        """Sends what was saved last. The copy of this node goes then: the next job fetches it anew,
        and whoever clears it may be on another node."""
        if self._unfinished.end(_work_key((stage, fingerprint))):
            super().clear_work(stage, fingerprint)

    # Damage

    def find_damaged_files(self, stage: str, fingerprint: str) -> list[str]:
        """Returns the files whose objects are missing or differ from their sha256."""
        files = self.manifest(stage, fingerprint).get("files", {})
        return [
            name
            for name, facts in files.items()
            if self.bucket.download(make_key((stage, fingerprint), name), None)
            != (facts["sha256"], facts["bytes"])
        ]

    def explain_damage(self, stage: str, fingerprint: str, contents: bool) -> str | None:
        """Returns what is wrong with a complete unit in the bucket; sizes come from the last
        listing, where there is one."""
        unit = (stage, fingerprint)
        try:
            files = self.manifest(*unit).get("files", {})
        except UserError as error:
            return str(error).partition(": `speechft")[0]
        sizes = self._index.list_sizes(unit)
        for name, facts in files.items():
            item = None if sizes is not None else self.bucket.find(make_key(unit, name))
            size = sizes.get(name) if sizes is not None else item.size if item else None
            where = f"{self.address}/{make_key(unit, name)}"
            if size is None:
                return f"{where} is missing"
            if size != facts["bytes"]:
                return f"{where} has {size} bytes, and had {facts['bytes']} when it was written"
        if contents and (damaged := self.find_damaged_files(*unit)):
            return f"{self.address}/{make_key(unit, damaged[0])} differs from its sha256"
        return None

    def set_aside(self, stage: str, fingerprint: str) -> Path:
        """Copies a damaged unit and removes it, the manifest first; returns the key of the copy."""
        unit = (stage, fingerprint)
        kept = f"{DAMAGED}/{stage}-{fingerprint}-{uuid.uuid4().hex[:8]}"
        prefix = make_key(unit, "")
        for item in self.bucket.list(prefix):
            self.bucket.copy(item.key, f"{kept}/{item.key.removeprefix(prefix)}")
        self.discard(stage, fingerprint)
        return Path(kept)

    def discard(self, stage: str, fingerprint: str) -> None:
        """Removes a unit from the bucket and from this node."""
        unit = (stage, fingerprint)
        manifest = make_key(unit, MANIFEST)
        keys = [item.key for item in self.bucket.list(make_key(unit, "")) if item.key != manifest]
        self.bucket.remove([manifest, *keys])
        self._discard_copy(unit)
        self._index.forget(unit)

    # Drivers

    def pull_records(self) -> None:
        """Fetches the small files of drivers; copies of those that were removed go."""
        self._pull(*RECORDS)

    def keep_records(self) -> AbstractContextManager[object]:
        """Fetches the small files of drivers, and sends those of this one while the context lasts
        and at its end."""
        return self._keep_records()

    @contextmanager
    def _keep_records(self) -> Iterator[None]:
        mirror = self._pull(*RECORDS, REPORTS)
        mirror.start()
        try:
            yield
        finally:
            mirror.stop()

    def _pull(self, *folders: str) -> Mirror:
        mirror = Mirror(self.bucket, self.root, folders)
        mirror.pull()
        mirror.drop_removed()
        return mirror

    def create_file(self, name: str, content: str) -> bool:
        """Writes a small object where there is none."""
        return self.bucket.write(name, content.encode("utf-8"), new=True) is not None

    def read_file(self, name: str) -> str | None:
        """Returns a small object as text."""
        there = self.bucket.read(name)
        return None if there is None else there[0].decode("utf-8")

    def remove_file(self, name: str) -> None:
        """Removes an object."""
        self.bucket.remove([name])

    def list_entries(self, folder: str) -> list[Entry]:
        """Returns what lies directly below a prefix; lists it."""
        return [_measure(name, items) for name, items in self._group(folder).items()]

    def list_left_over(self, stage: str) -> list[Entry]:
        """Returns units whose manifest was not sent, or not yet; lists the stage."""
        return [
            _measure(name, items)
            for name, items in self._group(stage).items()
            if items[0].key != f"{stage}/{name}"  # an object of somebody else
            and all(item.key != make_key((stage, name), MANIFEST) for item in items)
        ]

    def _group(self, folder: str) -> dict[str, list[Item]]:
        """Returns the objects below a prefix by the next part of their keys, sorted."""
        groups: dict[str, list[Item]] = defaultdict(list)
        for item in self.bucket.list(f"{folder}/"):
            groups[item.key.removeprefix(f"{folder}/").partition("/")[0]].append(item)
        return dict(sorted(groups.items()))

    def remove_entry(self, folder: str, name: str) -> None:
        """Removes an object, or those below a prefix, and the copy on this node."""
        key = f"{folder}/{name}"
        self.bucket.remove([key, *(item.key for item in self.bucket.list(f"{key}/"))])
        super().remove_entry(folder, name)

    def lease(self, name: str) -> LeasePlace:
        """Returns where the lease of a sweep is kept."""
        return BucketLease(self.bucket, f"{LOCKS}/{name}/{_LEASE}")

    def list_leases(self) -> list[str]:
        """Returns the names of all leases that were ever taken."""
        return sorted({item.key.split("/")[1] for item in self.bucket.list(f"{LOCKS}/")})

    # Parts

    def _send(self, unit: Unit, folder: Path) -> bool:
        """Sends a unit; returns whether it counts: no other worker was first."""
        if not self.look_again(*unit):
            content = (folder / MANIFEST).read_bytes()
            for name in json.loads(content)["files"]:
                self.bucket.upload(make_key(unit, name), folder / name)
            if self.bucket.write(make_key(unit, MANIFEST), content, new=True) is not None:
                return True
            self.look_again(*unit)
        self._index.fetched.discard(unit)  # the copy of this node may be an older one
        return False

    def _fetch_manifest(self, unit: Unit) -> None:
        """Fetches a manifest; files of an earlier unit with other content are removed."""
        local = self._path(*unit)
        there = self.bucket.read(make_key(unit, MANIFEST))
        if there is None:
            self._index.forget(unit)
            return  # reading it says so
        path = local / MANIFEST
        before = read_content(path)
        if before != there[0]:
            if before is not None:
                self._discard_copy(unit)
            local.mkdir(parents=True, exist_ok=True)
            temporary = local / f".{uuid.uuid4().hex[:8]}"
            temporary.write_bytes(there[0])
            temporary.replace(path)
        os.utime(path, (there[1].modified, there[1].modified))
        self._index.note_manifest(unit, there[1])

    def _fetch_file(self, unit: Unit, name: str, sha256: str) -> None:
        """Fetches a file, twice if need be. Raises ``UserError`` where it is damaged or gone."""
        path = self._path(*unit) / name
        if not path.resolve().is_relative_to(self._path(*unit).resolve()):
            raise UserError(
                f"{self.address}/{make_key(unit, MANIFEST)} names a file outside its unit."
            )
        item = Item(make_key(unit, name), 0, 0.0)
        for _ in range(2):
            if download_file(self.bucket, item, path) == sha256:
                return
            path.unlink(missing_ok=True)
        kept = self.set_aside(*unit)
        raise UserError(
            f"{self.address}/{make_key(unit, name)} is missing or differs from its sha256; its "
            f"unit is kept as {self.address}/{kept}. Run the same command again to compute it anew."
        )

    def _is_prefetched(self, unit: Unit) -> bool:
        """Whether this node has the manifest of the last listing, and of a small unit all files."""
        item, path = self._index.find_manifest(unit), self._path(*unit) / MANIFEST
        if unit in self._index.fetched:
            return unit[0] not in SMALL_STAGES
        if item is None or not has_size(path, item.size):
            return False
        if abs(path.stat().st_mtime - item.modified) > 1e-3:
            return False
        self._index.fetched.add(unit)
        return unit[0] not in SMALL_STAGES

    def _fetch_many(self, units: Iterable[Unit]) -> None:
        missing = [unit for unit in units if not self._is_prefetched(unit)]
        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(self._prefetch_unit, missing))

    def _prefetch_unit(self, unit: Unit) -> None:
        try:
            if unit[0] in SMALL_STAGES:
                self.folder(*unit)
            elif unit not in self._index.fetched:
                self._fetch_manifest(unit)
        except UserError:  # a damaged unit is found by whoever reads it
            return

    def _discard_copy(self, unit: Unit) -> None:
        super().discard(*unit)
        self._index.fetched.discard(unit)


def _measure(name: str, items: Sequence[Item]) -> Entry:
    return Entry(name, sum(item.size for item in items), max(item.modified for item in items))


def _work_key(unit: Unit) -> str:
    return f"{WORK}/{unit[0]}-{unit[1]}"
