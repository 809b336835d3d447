"""A server on this machine that stands for the network: files of a folder, and the part of the
Hugging Face hub's API that ``huggingface_hub`` uses to download a file."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from speechft_ray.speech.checkpoints import catalogue

TOKEN = "hf_secret"
_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^/?]+)(\?.*)?")


def commit_of(repo: str, revision: str) -> str:
    """Returns the commit of a revision on this hub."""
    return hashlib.sha1(f"{repo}@{revision}".encode()).hexdigest()


@dataclass
class Network:
    """A served folder, and how the hub in it behaves.

    ``FOLDER/NAME`` is the published file of that name. ``FOLDER/OWNER/NAME/resolve/REVISION/FILE``
    is a file of a model of the hub.
    """

    folder: Path
    url: str = ""
    private: set[str] = field(default_factory=set)
    """Models that exist for ``TOKEN`` only."""
    gated: set[str] = field(default_factory=set)
    """Models whose files are for ``TOKEN`` only."""
    status: int = 200
    """Anything else is the answer to every request."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Sizes that the server states, by file, where they are not those of the files."""
    broken: set[str] = field(default_factory=set)
    """Files whose download always breaks off."""
    requests: list[str] = field(default_factory=list)
    """``METHOD /path`` of every request."""

    def add_model(self, repo: str, *files: str, revision: str = "main") -> Path:
        """Publishes a model whose files hold their own names; returns its folder."""
        folder = self.folder / repo / "resolve" / revision
        folder.mkdir(parents=True)
        for file in files:
            (folder / file).write_text(file)
        return folder


def _make_handler(network: Network) -> type[SimpleHTTPRequestHandler]:
    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(network.folder))  # type: ignore[arg-type]

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            network.requests.append(f"{self.command} {self.path}")
            if network.status != 200:
                self._send(network.status, {})
                return
            match = _RESOLVE.fullmatch(self.path)
            if match is None:
                super().do_GET() if self.command == "GET" else super().do_HEAD()
                return
            self._answer_as_hub(match[1], match[2], match[3])

        def _answer_as_hub(self, repo: str, revision: str, file: str) -> None:
            granted = self.headers["Authorization"] == f"Bearer {TOKEN}"
            folder = network.folder / repo / "resolve"
            if not folder.is_dir() or (repo in network.private and not granted):
                self._send(401, {"X-Error-Code": "RepoNotFound"})
                return
            if repo in network.gated and not granted:
                self._send(401, {"X-Error-Code": "GatedRepo"})
                return
            # A commit is as good as the branch or tag that it belongs to.
            commits = {commit_of(repo, path.name): path.name for path in folder.iterdir()}
            revision = commits.get(revision, revision)
            if not (folder / revision).is_dir():
                self._send(404, {"X-Error-Code": "RevisionNotFound"})
                return
            commit = {"X-Repo-Commit": commit_of(repo, revision)}
            path = folder / revision / file
            if not path.is_file():
                self._send(404, {"X-Error-Code": "EntryNotFound", **commit})
                return
            content = path.read_bytes()
            headers = {**commit, "ETag": f'"{_hash(file, content)}"'}
            self._send(200, headers, content, network.sizes.get(file), file in network.broken)

        def _send(
            self,
            status: int,
            headers: dict[str, str],
            body: bytes = b"",
            size: int | None = None,
            is_broken: bool = False,
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if value:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body) if size is None else size))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: len(body) // 2] if is_broken else body)

    return Handler


def _hash(file: str, content: bytes) -> str:
    """Returns what the hub gives as the ETag: git's SHA-1 of small files, the SHA-256 of others."""
    if file.endswith(".json"):
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return hashlib.sha256(content).hexdigest()


@contextmanager
def serve_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    """Serves a new folder where published encoders and the hub are looked for."""
    folder.mkdir()
    network = Network(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _make_handler(network))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    network.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    _set_endpoint(network.url, monkeypatch)
    monkeypatch.setattr(catalogue, "_CONVERTED", network.url)
    try:
        yield network
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def isolate_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Gives ``huggingface_hub`` a cache of the test's own, no token and an address where nobody
    listens; returns the cache."""
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    _set_endpoint("http://127.0.0.1:9", monkeypatch)
    return folder / "hub"


def _set_endpoint(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``huggingface_hub`` reads the variable once, when it is imported."""
    from huggingface_hub import constants

    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
