"""A storage in Azure Blob Storage: what a missing container says, and against Microsoft's emulator
Azurite (``npm install --global azurite``), where it is installed, what the store asks for."""

from __future__ import annotations

import base64
import hashlib
import hmac
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from speechft_ray.cli import main
from speechft_ray.core.errors import UserError
from speechft_ray.storage import open as opening
from speechft_ray.storage.address import parse_url
from speechft_ray.storage.bucket import Bucket
from speechft_ray.storage.open import open_store

pytest.importorskip("obstore")

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Of every emulator (Microsoft, "Use the Azurite emulator for local Azure Storage development")."""
VERSION = "2021-12-02"


class NoContainer(BaseHTTPRequestHandler):
    """Answers as Azure does where the container is missing."""

    def do_GET(self) -> None:
        body = b"<Error><Code>ContainerNotFound</Code><Message>None.</Message></Error>"
        self.send_response(404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        return


def use_emulator(monkeypatch: pytest.MonkeyPatch, port: int, cache: Path) -> None:
    for name, value in {
        "AZURE_STORAGE_USE_EMULATOR": "true",
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": KEY,
        "AZURE_ALLOW_HTTP": "true",
        "AZURITE_BLOB_STORAGE_URL": f"http://127.0.0.1:{port}",
        "SPEECHFT_CACHE": str(cache),
    }.items():
        monkeypatch.setenv(name, value)
    opening._open_bucket.cache_clear()


def test_a_container_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), NoContainer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        use_emulator(monkeypatch, server.server_port, tmp_path)
        bucket = Bucket(parse_url("az://nowhere/a"))
        sentence = r"az://nowhere/a: there is no bucket `nowhere` there"
        with pytest.raises(UserError, match=sentence):
            bucket.check("storage.json")
        with pytest.raises(UserError, match=sentence):
            bucket.write("x", b"1")
        server.shutdown()


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A running Azurite with the container ``speech``; its port."""
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("Azurite is not installed: npm install --global azurite")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    folder = tmp_path_factory.mktemp("azurite")
    places = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder)]
    options = ["--silent", "--disableTelemetry", "--skipApiVersionCheck"]
    with subprocess.Popen([program, *places, *options], stdout=subprocess.DEVNULL) as process:
        try:
            make_container(port, "speech")
            yield port
        finally:
            process.terminate()


def make_container(port: int, name: str) -> None:
    """Creates a container, with the signature of "Authorize with Shared Key"."""
    date = formatdate(usegmt=True)
    headers = f"x-ms-date:{date}\nx-ms-version:{VERSION}\n"
    resource = f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    text = "PUT" + "\n" * 12 + headers + resource
    digest = hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/{ACCOUNT}/{name}?restype=container",
        method="PUT",
        headers={
            "x-ms-date": date,
            "x-ms-version": VERSION,
            "Content-Length": "0",
            "Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}",
        },
    )
    for _ in range(300):
        try:
            urllib.request.urlopen(request).close()
            return
        except urllib.error.HTTPError:
            raise
        except OSError:  # it is starting
            time.sleep(0.1)
    raise AssertionError("Azurite does not answer")


@pytest.fixture
def url(emulator: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A storage in the container that no other test uses."""
    use_emulator(monkeypatch, emulator, tmp_path / "node")
    yield f"az://speech/{tmp_path.name}/runs"
    opening._open_bucket.cache_clear()


def test_conditional_writes(url: str) -> None:
    bucket = Bucket(parse_url(url))
    first = bucket.write("lease", b"one", new=True)
    assert first is not None and bucket.write("lease", b"two", new=True) is None
    second = bucket.write("lease", b"three", after=first)
    assert second is not None and bucket.write("lease", b"four", after=first) is None
    read = bucket.read("lease")
    assert read is not None and read[0] == b"three" and read[2] == second
    assert bucket.read("none") is None and bucket.find("none") is None


def test_a_unit_of_one_node_is_read_and_removed_on_another(
    url: str,
    emulator: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = b"0123456789" * 2_000_000  # sent in parts
    with open_store(url).publish("merge", "f" * 16, {"base": "0" * 16}) as folder:
        (folder / "encoder.safetensors").write_bytes(content)
    use_emulator(monkeypatch, emulator, tmp_path / "other")
    store = open_store(url)
    assert store.fingerprints("merge") == ["f" * 16]
    assert (store.folder("merge", "f" * 16) / "encoder.safetensors").read_bytes() == content
    assert main(["verify", "--storage", url]) == 0
    assert main(["gc", "--storage", url, "--older-than", "0", "--yes"]) == 0
    assert "removed: 1 item, 20 MB" in capsys.readouterr().out
    assert not store.look_again("merge", "f" * 16)
    assert [item.key for item in Bucket(parse_url(url)).list("merge/")] == []


def test_a_wrong_key_is_refused_in_one_sentence(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", base64.b64encode(b"wrong").decode())
    with pytest.raises(UserError, match=r"Azure refuses `storage.json` to these credentials"):
        open_store(url)
