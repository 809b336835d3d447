"""A server of the S3 protocol (moto) on the loopback, which can fail now and then.

Run as a module it prints its address. Below ``/_test`` it answers questions of the tests.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BUCKET = "speech"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class FaultyApp:
    """Counts requests, and answers a share of them badly: with 503 before or 500 after they were
    done, or with half of the answer."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._random = random.Random(0)
        self._faults = 0.0
        self._requests: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if path == "/_test":
            return self._answer(environ, start)
        with self._lock:
            is_list = method == "GET" and "list-type" in environ.get("QUERY_STRING", "")
            self._requests.append(f"{'LIST' if is_list else method} {path}")
            fault = self._random.random() < self._faults
            kind = self._random.choice(["before", "after", "cut"]) if fault else "none"
            kind = "before" if self._faults >= 1 else kind
        if kind == "before":
            return fail(start, "503 Slow Down", "SlowDown")
        if method == "PUT":
            environ["wsgi.input"] = Body(environ)
        # moto looks and writes in two steps, which object stores do in one.
        with (
            self._lock if "HTTP_IF_NONE_MATCH" in environ or "HTTP_IF_MATCH" in environ else none()
        ):
            answer = Answer()
            body = b"".join(self._app(environ, answer))
        if kind == "after":
            return fail(start, "500 Internal Server Error", "InternalError")
        start(answer.status, answer.headers)
        return [body[: len(body) // 2]] if kind == "cut" else [body]

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        query = environ.get("QUERY_STRING", "")
        with self._lock:
            if query.startswith("faults="):
                self._faults = float(query.removeprefix("faults="))
            requests, self._requests = self._requests, []
        start("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(requests).encode()]


class Answer:
    def __call__(self, status: str, headers: list[tuple[str, str]], *_: Any) -> Any:
        self.status, self.headers = status, headers


class Body:
    """The body of a request, read at once: what is left of it would be taken for the next."""

    def __init__(self, environ: dict[str, Any]) -> None:
        import io

        size = int(environ.get("CONTENT_LENGTH") or 0)
        self.read = io.BytesIO(environ["wsgi.input"].read(size)).read


@contextmanager
def none() -> Iterator[None]:
    yield


def fail(start: Callable[..., Any], status: str, code: str) -> Iterable[bytes]:
    start(status, [("Content-Type", "application/xml")])
    return [f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()]


def serve() -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    app = FaultyApp(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


class S3Server:
    """A server in a process of its own."""

    def __init__(self, address: str) -> None:
        self.address = address

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs."""
        return {**KEYS, "AWS_ENDPOINT_URL": self.address}

    def make_bucket(self, name: str = BUCKET) -> None:
        request = urllib.request.Request(f"{self.address}/{name}", method="PUT")
        request.add_header(
            "Authorization",
            "AWS4-HMAC-SHA256 Credential=test/20200101/us-east-1/s3/aws4_request, "
            "SignedHeaders=host, Signature=0",
        )
        urllib.request.urlopen(request).close()

    def take_requests(self) -> list[str]:
        """Returns method and path of the requests since the last call."""
        return self._ask("")

    def set_faults(self, share: float) -> None:
        """Makes this share of all requests fail."""
        self._ask(f"faults={share}")

    def _ask(self, query: str) -> list[str]:
        with urllib.request.urlopen(f"{self.address}/_test?{query}") as answer:
            requests: list[str] = json.load(answer)
        return requests


@contextmanager
def run_server() -> Iterator[S3Server]:
    """Starts a server with one bucket; it ends with the context."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.storage.s3_server"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        try:
            assert process.stdout is not None
            server = S3Server(process.stdout.readline().strip())
            server.make_bucket()
            yield server
        finally:
            process.kill()


if __name__ == "__main__":
    serve()
