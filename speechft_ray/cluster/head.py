"""Notices that the head of the cluster is lost.

Ray itself tries for a minute to reach it and then ends the process from C++, with exit code 1 and
without a word (ray 2.60, ``src/ray/gcs_rpc_client/rpc_client.h``), and calls to it block meanwhile.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable

from speechft_ray.core.errors import EXIT_RESUMABLE, HeadLost

LOST_SECONDS = 15.0
"""How long the head may refuse connections: one with a store of its own may start again."""

HANG_SECONDS = 10.0
"""How long after that a driver may hang in a call to Ray, before its process ends."""

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
        self._closed = threading.Event()

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
            self._raise_after(LOST_SECONDS)
            self._sleep(LOOK_SECONDS)

    def watch(self, end: Callable[[HeadLost], object]) -> None:
        """Calls ``end`` from a thread of its own when the head is lost and the driver does not
        notice, since it hangs in a call to Ray; until ``close``."""
        threading.Thread(target=self._watch, args=(end,), name="speechft-head", daemon=True).start()

    def close(self) -> None:
        """Ends ``watch``."""
        self._closed.set()

    def _watch(self, end: Callable[[HeadLost], object]) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            try:
                if not self.answers():
                    self._raise_after(LOST_SECONDS + HANG_SECONDS)
            except HeadLost as error:
                end(error)
                return

    def _raise_after(self, seconds: float) -> None:
        silent = self._clock() - self._seen_at
        if silent >= seconds:
            raise HeadLost(
                f"the head of the Ray cluster at {self._address} has not answered for "
                f"{silent:.0f} s"
            )


def end_process(error: HeadLost) -> None:
    """Ends this process as the command line does, from any thread: what hangs in Ray cannot be
    interrupted, and Ray would end it without a word."""
    print(error.explain(), file=sys.stderr, flush=True)
    os._exit(EXIT_RESUMABLE)


def accepts_connections(address: str) -> bool:
    """Whether something listens at ``HOST:PORT``."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=LOOK_SECONDS).close()
    except OSError:
        return False
    return True
