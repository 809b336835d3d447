"""A folder on this machine that stands for the whole network."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from speechft_ray.speech.checkpoints import catalogue


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Serves a new folder where published encoders and the hub are looked for; yields it."""
    folder.mkdir()
    listening = ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    )
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    here = f"http://127.0.0.1:{listening.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", here)
    monkeypatch.setattr(catalogue, "_CONVERTED", here)
    try:
        yield folder
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()
