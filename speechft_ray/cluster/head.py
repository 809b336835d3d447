"""Notices that the head of the cluster is lost.

Ray itself tries for a minute to reach it and then ends the process from C++, with exit code 1 and
without a word (ray 2.60, ``src/ray/gcs_rpc_client/rpc_client.h``), and calls to it block meanwhile.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from speechft_ray.core.errors import HeadLost

LOST_SECONDS = 15.0
"""How long the head may refuse connections: one with a store of its own may start again."""

LOOK_SECONDS = 2.0
"""Between two looks, and the longest time of one."""


class Head:
    """The head at an address."""

    def __init__(
        self,
        address: str,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """``address``: its ``HOST:PORT``. ``clock`` returns seconds from any fixed moment."""
        self._address, self._clock, self._sleep = address, clock, sleep
        self._seen_at = self._looked_at = clock()
        self._answers = True

    def answers(self) -> bool:
        """Whether it answered the last look; looks again when that is old."""
        now = self._clock()
        if now - self._looked_at >= LOOK_SECONDS:
            self._answers = accepts_connections(self._address)
            self._looked_at = now
            if self._answers:
                self._seen_at = now
        return self._answers

    def wait(self) -> None:
        """Returns at once where it answered the last look, else when it answers again. Raises
        ``HeadLost`` when it has not for ``LOST_SECONDS``."""
        while not self.answers():
            seconds = self._clock() - self._seen_at
            if seconds >= LOST_SECONDS:
                raise HeadLost(
                    f"the head of the Ray cluster at {self._address} has not answered for "
                    f"{seconds:.0f} s"
                )
            self._sleep(LOOK_SECONDS)


def accepts_connections(address: str) -> bool:
    """Whether something listens at ``HOST:PORT``."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=LOOK_SECONDS).close()
    except OSError:
        return False
    return True
