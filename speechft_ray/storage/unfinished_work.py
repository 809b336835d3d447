"""The unfinished work of the jobs of a process, kept in a bucket while they run."""

from __future__ import annotations

import threading
from pathlib import Path

from speechft_ray.storage.bucket import Bucket
from speechft_ray.storage.mirror import Mirror


class UnfinishedWork:
    """A folder of this node for each job that runs, and its copy below the same key."""

    def __init__(self, bucket: Bucket, root: Path) -> None:
        self._bucket, self._root = bucket, root
        self._mirrors: dict[str, Mirror] = {}
        self._lock = threading.Lock()

    def open(self, key: str) -> None:
        """Fetches what an earlier job saved, on whatever node; sends the files from now on."""
        with self._lock:
            if key not in self._mirrors:
                mirror = Mirror(self._bucket, self._root, [key], removes=True)
                mirror.pull()
                mirror.start()
                self._mirrors[key] = mirror

    def end(self, key: str) -> bool:
        """Sends what was saved last. Returns whether the bucket has all of it now; ``False`` for
        what is not open."""
        mirror = self._close(key)
        return mirror is not None and mirror.stop()

    def clear(self, key: str) -> None:
        """Removes what the bucket has, also where other nodes have sent it."""
        mirror = self._close(key)
        if mirror is not None:
            mirror.stop(push=False)
        self._bucket.remove([item.key for item in self._bucket.list(f"{key}/")])

    def _close(self, key: str) -> Mirror | None:
        with self._lock:
            return self._mirrors.pop(key, None)
