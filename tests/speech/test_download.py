"""Downloads from a server on this machine: cuts, resumption, limits, redirects, concurrent
processes, changed files."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from speechft_ray.core.errors import UserError
from speechft_ray.speech.checkpoints import download
from speechft_ray.speech.checkpoints.download import fetch, verify_sha256

CONTENT = bytes(range(256)) * 1000


@dataclass
class Server:
    """How the server behaves, and the requests that it received."""

    url: str = ""
    content: bytes = CONTENT
    etag: str | None = '"one"'
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    """Bytes after which each of the next answers is cut."""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    ranges_requested: list[str | None] = field(default_factory=list)
    """The Range header of every request."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(download, "_BLOCK_BYTES", 10_000)
    plan = Server()

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            plan.ranges_requested.append(self.headers["Range"])
            start, status = 0, plan.status
            if plan.ranges and self.headers["Range"] and self.headers["If-Range"] == plan.etag:
                start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
                status = 206 if start < len(plan.content) else 416
            body = plan.content[start:] if status in (200, 206) else b""
            self.send_response(status)
            if status == 206:
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(plan.content) - 1}/{len(plan.content)}"
                )
            for name, value in {
                "ETag": plan.etag,
                "Content-Length": str(len(body)),
                **plan.headers,
            }.items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: plan.cuts.pop(0)] if plan.cuts else body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    plan.url = f"http://127.0.0.1:{listening.server_port}/model.pt"
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield plan
    listening.shutdown()
    thread.join()
    listening.server_close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file_with_progress(server: Server, tmp_path: Path) -> None:
    progress: list[tuple[int, int | None]] = []
    path = fetch(
        server.url,
        tmp_path / "new" / "model.pt",
        progress=lambda done, total: progress.append((done, total)),
    )
    assert path.read_bytes() == CONTENT
    assert progress[-1] == (len(CONTENT), len(CONTENT))
    assert (
        tmp_path / "new" / "model.pt.sha256"
    ).read_text() == f"{hashlib.sha256(CONTENT).hexdigest()}  model.pt\n"
    assert names(tmp_path / "new") == ["model.pt", "model.pt.sha256"]
    fetch(server.url, path)
    assert len(server.ranges_requested) == 1, "an existing file was requested again"


def test_a_cut_download_is_resumed(server: Server, tmp_path: Path) -> None:
    server.cuts = [70_000, 50_000]
    assert fetch(server.url, tmp_path / "model.pt").read_bytes() == CONTENT
    assert server.ranges_requested == [None, "bytes=70000-", "bytes=120000-"]


def test_an_interrupted_download_is_resumed_by_the_next_call(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_BLOCK_BYTES", 100_000)

    def stop(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(server.url, tmp_path / "model.pt", progress=stop)
    assert names(tmp_path) == ["model.pt.part", "model.pt.part.json"]
    assert fetch(server.url, tmp_path / "model.pt").read_bytes() == CONTENT
    assert server.ranges_requested == [None, "bytes=100000-"]
    assert names(tmp_path) == ["model.pt", "model.pt.sha256"]


@pytest.mark.parametrize(
    "change",
    [{"ranges": False}, {"etag": '"two"'}, {"etag": 'W/"one"'}, {"etag": None}],
    ids=["no ranges", "new", "weak", "none"],
)
def test_a_part_that_cannot_be_resumed_is_discarded(
    server: Server, tmp_path: Path, change: dict[str, object]
) -> None:
    (tmp_path / "model.pt.part").write_bytes(b"something else")
    (tmp_path / "model.pt.part.json").write_text(f'{{"etag": "\\"one\\"", "url": "{server.url}"}}')
    for name, value in change.items():
        setattr(server, name, value)
    server.cuts = [50_000]
    assert fetch(server.url, tmp_path / "model.pt").read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_discarded(server: Server, tmp_path: Path) -> None:
    (tmp_path / "model.pt.part").write_bytes(CONTENT + b"more")
    (tmp_path / "model.pt.part.json").write_text(f'{{"etag": "\\"one\\"", "url": "{server.url}"}}')
    assert fetch(server.url, tmp_path / "model.pt").read_bytes() == CONTENT


def test_a_part_of_another_address_is_discarded(server: Server, tmp_path: Path) -> None:
    (tmp_path / "model.pt.part").write_bytes(b"something else")
    (tmp_path / "model.pt.part.json").write_text(
        '{"etag": "\\"one\\"", "url": "https://elsewhere/model.pt"}'
    )
    assert fetch(server.url, tmp_path / "model.pt").read_bytes() == CONTENT
    assert server.ranges_requested == [None]


def test_a_server_that_always_breaks_off_ends_in_an_error(server: Server, tmp_path: Path) -> None:
    server.cuts = [20_000, 0, 0, 0]
    with pytest.raises(
        UserError, match=r"model.pt is not in the cache.*put that file at .*model.pt, or run again"
    ):
        fetch(server.url, tmp_path / "model.pt")
    assert server.ranges_requested == [None, "bytes=20000-"]
    assert "model.pt" not in names(tmp_path)


@pytest.mark.parametrize("length", [None, str(len(CONTENT))], ids=["unannounced", "announced"])
def test_more_than_allowed_is_refused(server: Server, tmp_path: Path, length: str | None) -> None:
    server.headers = {"Content-Length": length or "", "Connection": "close"}
    with pytest.raises(UserError, match="100000 is the most that is downloaded"):
        fetch(server.url, tmp_path / "model.pt", max_bytes=100_000)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.part")) <= 100_000
    assert "model.pt" not in names(tmp_path)


@pytest.mark.parametrize("status", [404, 401, 500])
def test_errors_of_the_server(server: Server, tmp_path: Path, status: int) -> None:
    server.status = status
    with pytest.raises(UserError, match=f"the server answers {status}.*{tmp_path}/model.pt"):
        fetch(server.url, tmp_path / "model.pt")
    assert "model.pt" not in names(tmp_path)


@pytest.mark.parametrize(
    "there", ["http://example.org/model.pt", "file:///etc/passwd", "ftp://127.0.0.1/model.pt"]
)
def test_redirects_to_anything_but_https_are_refused(
    server: Server, tmp_path: Path, there: str
) -> None:
    server.status, server.headers = 302, {"Location": there}
    with pytest.raises(UserError, match="which is not https"):
        fetch(server.url, tmp_path / "model.pt")
    with pytest.raises(UserError, match="which is not https"):
        fetch(there, tmp_path / "model.pt")


def test_endless_redirects_end(server: Server, tmp_path: Path) -> None:
    server.status, server.headers = 302, {"Location": "/model.pt"}
    with pytest.raises(UserError, match="redirected more than 5 times"):
        fetch(server.url, tmp_path / "model.pt")


def test_a_public_address_cannot_lead_to_this_machine(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a redirect could reach services that trust all users of this machine."""
    get = requests.get
    server.status, server.headers = 302, {"Location": server.url}
    monkeypatch.setattr("requests.get", lambda url, **options: get(server.url, **options))
    with pytest.raises(UserError, match="which is not https"):
        fetch("https://example.org/model.pt", tmp_path / "model.pt")


def test_no_server(tmp_path: Path, server: Server) -> None:
    with pytest.raises(
        UserError,
        match=rf"cannot be downloaded \(no connection\): put that file at {tmp_path}/model.pt",
    ):
        fetch("http://127.0.0.1:9/model.pt", tmp_path / "model.pt")


def test_a_stated_sha256_is_compared(server: Server, tmp_path: Path) -> None:
    server.headers = {"X-Linked-ETag": f'"{hashlib.sha256(b"another").hexdigest()}"'}
    with pytest.raises(UserError, match="the server promised"):
        fetch(server.url, tmp_path / "model.pt")
    assert "model.pt" not in names(tmp_path)
    server.headers = {"X-Linked-ETag": f'"{hashlib.sha256(CONTENT).hexdigest()}"'}
    assert fetch(server.url, tmp_path / "model.pt").read_bytes() == CONTENT


def test_a_file_that_changed_is_refused(server: Server, tmp_path: Path) -> None:
    path = verify_sha256(fetch(server.url, tmp_path / "model.pt"))
    path.write_bytes(CONTENT[:-1] + b"\x00")
    with pytest.raises(UserError, match=r"is not the file that was downloaded.*Remove both files"):
        verify_sha256(path)


def test_the_sha256_of_a_file_copied_by_hand_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(CONTENT)
    assert (
        hashlib.sha256(CONTENT).hexdigest()
        in verify_sha256(path).with_name("model.pt.sha256").read_text()
    )
    path.write_bytes(b"other")
    with pytest.raises(UserError, match="is not the file"):
        verify_sha256(path)


def test_concurrent_downloads_wait_for_each_other(server: Server, tmp_path: Path) -> None:
    results: list[bytes] = []

    def get() -> None:
        results.append(fetch(server.url, tmp_path / "model.pt").read_bytes())

    threads = [threading.Thread(target=get) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [CONTENT] * 4
    assert server.ranges_requested == [None]
    assert names(tmp_path) == ["model.pt", "model.pt.sha256"]


def test_a_cache_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(
        UserError, match=r"cannot be kept in .*file/cache \(Not a directory\).*SPEECHFT_CACHE"
    ):
        fetch(server.url, tmp_path / "file" / "cache" / "model.pt")


def test_a_file_larger_than_the_disk_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage(0, 0, 1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(
        UserError, match=f"has {len(CONTENT)} bytes, but the disk of {tmp_path} has 1000 left"
    ):
        fetch(server.url, tmp_path / "model.pt")
    assert names(tmp_path) == []
