"""A lease in a bucket: one object, written only over the version that its writer has read."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

from speechft_ray.core import lease
from speechft_ray.core.errors import UserError
from speechft_ray.core.lease import HeldLease, Holder, describe_this_process, is_free
from speechft_ray.storage.bucket import Bucket, Version


class BucketLease:
    """A lease that is kept in an object."""

    def __init__(self, bucket: Bucket, key: str) -> None:
        self._bucket, self._key = bucket, key

    def __str__(self) -> str:
        return f"{self._bucket.address}/{self._key}"

    def read(self) -> Holder | None:
        """Returns who held the lease last. Raises ``UserError``."""
        return self.read_version()[0]

    def read_version(self) -> tuple[Holder | None, Version | None]:
        """Returns the holder, ``None`` of a damaged object, and the version of the object."""
        there = self._bucket.read(self._key)
        if there is None:
            return None, None
        try:
            return Holder(**json.loads(there[0])), there[2]
        except (ValueError, TypeError):
            return None, there[2]

    def write(self, holder: Holder, after: Version | None) -> Version | None:
        """Writes the lease over a version, ``None``: where there is none; returns ``None`` where
        another process was first."""
        content = json.dumps(holder._asdict(), indent=1, sort_keys=True).encode()
        return self._bucket.write(self._key, content, new=after is None, after=after)

    def take(
        self,
        on_loss: Callable[[], object],
        on_doubt: Callable[[Holder], object],
        wait: Callable[[float], object],
    ) -> HeldLease:
        """Returns the lease, as ``core.lease.take_lease`` does. Raises ``UserError`` where the
        bucket fails."""
        me = describe_this_process()
        while True:
            holder, version = self.read_version()
            if holder is not None and not is_free(self.read, holder, on_doubt, wait):
                continue
            written = self.write(me, version)
            if written is not None:
                return _HeldLease(self, me, written, on_loss)


class _HeldLease:
    """Renewed in a thread until ``release``."""

    def __init__(
        self, place: BucketLease, holder: Holder, version: Version, on_loss: Callable[[], object]
    ) -> None:
        self._place, self._holder, self._on_loss = place, holder, on_loss
        self._version: Version | None = version
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="speechft-lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Ends the lease, unless another process has taken it over meanwhile."""
        self._ended.set()
        self._thread.join()
        if self._version is not None:
            try:
                self._place.write(self._holder._replace(released=True), self._version)
            except UserError:  # it becomes stale
                return

    def _renew(self) -> None:
        renewals = 0
        while not self._ended.wait(lease.RENEW_SECONDS):
            renewals += 1
            try:
                self._version = self._renew_once(self._holder._replace(renewals=renewals))
            except UserError:  # a bucket that is away for a while
                continue
            if self._version is None:
                self._on_loss()
                return

    def _renew_once(self, holder: Holder) -> Version | None:
        """Returns the version that this process holds now, ``None`` where it holds none."""
        renewed = self._place.write(holder, self._version)
        if renewed is not None:
            return renewed
        # A renewal whose answer was lost was written all the same.
        there, version = self._place.read_version()
        return version if there and there.token == holder.token else None
