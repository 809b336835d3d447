"""What a process knows of the units in a bucket, so that it asks for each as seldom as possible."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

from speechft_ray.core.store import MANIFEST
from speechft_ray.storage.bucket import Bucket, Item

Unit = tuple[str, str]
"""Stage and fingerprint."""


def make_key(unit: Unit, name: str) -> str:
    """Returns the key of a file of a unit."""
    return f"{unit[0]}/{unit[1]}/{name}"


class UnitIndex:
    """Units that are complete, as far as this process knows."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._complete: dict[Unit, Item | None] = {}
        self._absent: set[Unit] = set()
        """Units that a listing did not have. A listing may be old: a job that is planned for
        nothing finds its unit complete before it begins."""
        self._sizes: dict[Unit, dict[str, int]] = {}
        self.fetched: set[Unit] = set()
        """Units whose manifest on this node is that of the bucket."""

    def is_complete(self, unit: Unit) -> bool:
        """Whether a unit is complete; one request where that is not known."""
        if unit in self._complete:
            return True
        return unit not in self._absent and self.look_again(unit)

    def look_again(self, unit: Unit) -> bool:
        """Whether a unit is complete now; one request."""
        self._absent.discard(unit)
        item = self._bucket.find(make_key(unit, MANIFEST))
        if item is None:
            self.forget(unit)
            return False
        if self._complete.get(unit) != item:
            self.fetched.discard(unit)
        self._complete[unit] = item
        return True

    def find_manifest(self, unit: Unit) -> Item | None:
        """Returns size and time of the manifest of a complete unit."""
        if self.is_complete(unit) and self._complete[unit] is None:
            self.look_again(unit)
        return self._complete.get(unit)

    def list_sizes(self, unit: Unit) -> dict[str, int] | None:
        """Returns the bytes of the files of a unit in the last listing, if it was listed."""
        return self._sizes.get(unit)

    def list_units(self, stage: str = "") -> set[Unit]:
        """Lists a stage, or the bucket; returns the complete units."""
        sizes: dict[Unit, dict[str, int]] = defaultdict(dict)
        manifests: dict[Unit, Item] = {}
        for item in self._bucket.list(f"{stage}/" if stage else ""):
            home, _, rest = item.key.partition("/")
            key, _, name = rest.partition("/")
            sizes[home, key][name] = item.size
            if name == MANIFEST:
                manifests[home, key] = item
        self._sizes |= sizes
        for unit, item in manifests.items():
            if self._complete.get(unit) not in (None, item):
                self.fetched.discard(unit)
            self._complete[unit] = item
        return set(manifests)

    def note_absent(self, units: Iterable[Unit], present: Collection[Unit]) -> None:
        """Notes that a listing has shown ``present`` and none of the other ``units``."""
        self._absent |= set(units) - set(present) - self._complete.keys()
        self._absent -= set(present)

    def note_manifest(self, unit: Unit, item: Item | None) -> None:
        """Notes that this node has the manifest of the bucket; ``None`` for one that it sent."""
        self._absent.discard(unit)
        self._complete[unit] = item
        self.fetched.add(unit)
        if item is None:
            self._sizes.pop(unit, None)

    def forget(self, unit: Unit) -> None:
        """Notes that a unit is not complete."""
        self._complete.pop(unit, None)
        self._sizes.pop(unit, None)
        self.fetched.discard(unit)
