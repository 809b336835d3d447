"""``speechft corpora prepare``: downloads of lists from a local server."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from speechft_ray.cli import main
from speechft_ray.speech.corpora.base import CORPORA, Resource

LIST = b"1 id10001/a/00001.wav\n" * 50


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Serves the one list of VoxCeleb1; yields the paths of all requests."""
    paths: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(LIST)))
            self.end_headers()
            self.wfile.write(LIST)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    resource = Resource(
        path="lists/iden_split.txt",
        url=f"http://127.0.0.1:{server.server_port}/iden_split.txt",
        what="the split",
    )
    CORPORA.get("voxceleb1")
    monkeypatch.setitem(
        CORPORA._parts, "voxceleb1", replace(CORPORA.get("voxceleb1"), resources=(resource,))
    )
    yield paths
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_list_is_fetched_once(
    requests: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for sentence in ("from http", "was there already"):
        assert main(["corpora", "prepare", "voxceleb1", str(tmp_path)]) == 0
        assert sentence in capsys.readouterr().out
    assert (tmp_path / "lists/iden_split.txt").read_bytes() == LIST
    assert requests == ["/iden_split.txt"]


def test_a_changed_list_is_reported(
    requests: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["corpora", "prepare", "voxceleb1", str(tmp_path)])
    (tmp_path / "lists/iden_split.txt").write_bytes(LIST[:-1])
    assert main(["corpora", "prepare", "voxceleb1", str(tmp_path)]) == 2
    assert "is not the file that was downloaded" in capsys.readouterr().err


def test_bad_input_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corpora", "prepare", "voxceleb1", str(tmp_path / "nowhere")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert main(["corpora", "prepare", "libirspeech", str(tmp_path)]) == 2
    assert "Did you mean `librispeech`?" in capsys.readouterr().err
    assert main(["corpora", "prepare", "snips", str(tmp_path)]) == 0
    assert "nothing but its recordings" in capsys.readouterr().out
