"""Uploading an exported encoder, against an HTTP server on loopback that stands in for the hub."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from speechft_ray.commands.push import check_push, push_folder
from speechft_ray.core.errors import UserError

TOKEN = "hf_test_token"


class Hub(ThreadingHTTPServer):
    """Takes repositories and commits of small files, as the hub's HTTP API does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.refuses = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.server.refuses:
            self._answer({"error": "you may not write here"}, 403)
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization', 'owner')}/{asked['name']}"
            self.server.repositories[name] = asked
            self._answer({"url": f"{self.server.address}/{name}"})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {"path": item["path"], "uploadMode": "regular", "shouldIgnore": False}
                for item in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[line["value"]["path"]] = content
            url = f"{self.server.address}/owner/name/commit/{'0' * 40}"
            self._answer({"success": True, "commitOid": "0" * 40, "commitUrl": url})
        else:
            self._answer({}, 404)

    def do_GET(self) -> None:
        info = {"id": "owner/name", "sha": "0" * 40, "siblings": [], "private": True}
        self._answer(info if "/api/models/" in self.path else {}, 200)

    def _answer(self, content: object, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    api = huggingface_hub.HfApi
    monkeypatch.setattr(
        huggingface_hub, "HfApi", lambda **options: api(endpoint=server.address, **options)
    )
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "exported"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "hubert"}')
    (path / "README.md").write_text("# card")
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def test_every_file_arrives_in_a_private_repository(hub: Hub, folder: Path) -> None:
    address = push_folder(folder, "owner/name", TOKEN)
    assert address == f"{hub.address}/owner/name"
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    ((name, created),) = hub.repositories.items()
    assert name == "owner/name"
    assert created.get("visibility") == "private" or created.get("private") is True
    assert hub.tokens == {f"Bearer {TOKEN}"}


def test_a_hub_that_refuses_is_one_sentence_without_the_token(hub: Hub, folder: Path) -> None:
    hub.refuses = True
    with pytest.raises(UserError, match="does not take it as owner/name") as caught:
        push_folder(folder, "owner/name", TOKEN)
    assert TOKEN not in str(caught.value) and "\n" not in str(caught.value)
    assert hub.files == {}


def test_what_is_wrong_is_said_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: TOKEN)
    assert check_push("owner/name", "hf") == TOKEN
    for name in ("name", "owner/", "a/b/c", "../x", "owner/na me"):
        with pytest.raises(UserError, match="must be OWNER/NAME"):
            check_push(name, "hf")
    with pytest.raises(UserError, match="`--to s3prl` writes another"):
        check_push("owner/name", "s3prl")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match=r"needs a token of the Hugging Face hub.*Nothing was"):
        check_push("owner/name", "hf")
