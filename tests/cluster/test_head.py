"""The head of a cluster that is lost, seen from a driver."""

from __future__ import annotations

import queue
import socket

import pytest

from speechft_ray.cluster import head as head_module
from speechft_ray.cluster.head import HANG_SECONDS, LOST_SECONDS, Head
from speechft_ray.core.errors import HeadLost


class Time:
    """A clock that goes on where one sleeps."""

    now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def listen(port: int = 0) -> socket.socket:
    server = socket.create_server(("127.0.0.1", port))
    server.listen(100)
    return server


def test_a_head_that_comes_back_is_waited_for_and_a_lost_one_is_not() -> None:
    server, time = listen(), Time()
    port = server.getsockname()[1]
    head = Head(f"127.0.0.1:{port}", lambda: time.now, time.sleep)
    time.sleep(100.0)
    head.wait()
    assert time.now == 100.0
    server.close()
    head.wait()  # the last look is fresh
    time.sleep(5.0)
    assert not head.answers()
    again = listen(port)
    head.wait()
    assert 105.0 < time.now < 100.0 + LOST_SECONDS
    again.close()
    time.sleep(5.0)
    with pytest.raises(HeadLost, match=f"127.0.0.1:{port} has not answered for") as caught:
        head.wait()
    assert "\n" not in str(caught.value)


def test_a_driver_that_hangs_is_told_of_a_lost_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "LOOK_SECONDS", 0.01)
    server, time = listen(), Time()
    port = server.getsockname()[1]
    head = Head(f"127.0.0.1:{port}", lambda: time.now, time.sleep)
    errors: queue.Queue[HeadLost] = queue.Queue()
    head.watch(errors.put)
    server.close()
    time.sleep(LOST_SECONDS)
    with pytest.raises(queue.Empty):
        errors.get(timeout=0.2)
    time.sleep(HANG_SECONDS + 1.0)
    sentence = errors.get(timeout=60).explain()
    assert f"127.0.0.1:{port} has not answered for 26 s. Everything finished is kept" in sentence


def test_a_driver_that_stopped_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "LOOK_SECONDS", 0.01)
    time = Time()
    errors: list[HeadLost] = []
    head = Head("127.0.0.1:1", lambda: time.now, time.sleep)
    head.close()
    time.sleep(100.0)
    head._watch(errors.append)
    assert errors == []
