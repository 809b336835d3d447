"""What ``speechft ui`` says to what it cannot show, and to a tracking server of its own."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from speechft_ray.cli import main
from speechft_ray.tracking.addresses import remember_address


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)


class MlflowAnswers(BaseHTTPRequestHandler):
    """Answers like a server of MLflow with these experiments."""

    experiments: list[dict[str, object]]
    posts: list[tuple[str, dict[str, object]]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = self.path.removeprefix("/api/2.0/mlflow/")
        type(self).posts.append((name, body))
        answer = {"experiments/search": {"experiments": self.experiments}}.get(name, {})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    MlflowAnswers.experiments = [{"experiment_id": "7", "name": "alpha", "tags": []}]
    MlflowAnswers.posts = []
    http = HTTPServer(("127.0.0.1", 0), MlflowAnswers)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    thread.join()
    http.server_close()


def test_a_tracking_server_is_only_pointed_at(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remember_address(tmp_path, "alpha", server)
    assert main(["ui", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"alpha: {server}/#/experiments/7/runs?workflowType=machine_learn")
    assert "viewStateShareKey=speechft" in lines[0]
    (view,) = [body for name, body in MlflowAnswers.posts if name.endswith("set-experiment-tag")]
    assert view["experiment_id"] == "7" and view["key"] == "mlflow.sharedViewState.speechft"


def test_of_two_sweeps_or_more_the_last_two_are_compared(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in (("9", "lambda"), ("8", "baselines")):
        item: dict[str, object] = {"experiment_id": number, "name": name, "tags": []}
        MlflowAnswers.experiments.insert(0, item)
    remember_address(tmp_path, "alpha", server)
    assert main(["ui", str(tmp_path)]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    address = line.removeprefix("The last two compared: ")
    path, _, query = address.removeprefix(f"{server}/#/").partition("?")
    assert path == "compare-experiments/s"
    assert json.loads(parse_qs(query)["experiments"][0]) == ["8", "9"]


def test_a_sweep_that_the_server_lacks_is_named(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ui", "alfa", "--storage", str(tmp_path), "--mlflow", server]) == 2
    assert "unknown sweep `alfa`. Did you mean `alpha`?" in capsys.readouterr().err


def test_a_server_that_is_down_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remember_address(tmp_path, "alpha", "http://127.0.0.1:1")
    assert main(["ui", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert "MLflow: http://127.0.0.1:1" in printed.out
    assert "does not answer as MLflow does" in printed.err


def test_what_is_not_there_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ui", str(tmp_path)]) == 2
    assert f"no sweep in {tmp_path} has logged to MLflow yet" in capsys.readouterr().err
    assert main(["ui", "--storage", str(tmp_path / "none")]) == 2
    assert "there is no storage folder" in capsys.readouterr().err
    remember_address(tmp_path, "alpha", None)
    assert main(["ui", "alhpa", "--storage", str(tmp_path)]) == 2
    assert "Did you mean `alpha`?" in capsys.readouterr().err


def test_a_password_is_asked_for_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remember_address(tmp_path, "alpha", "postgresql://me:secret@host/db")
    assert main(["ui", str(tmp_path)]) == 2
    assert "whose password is not stored" in capsys.readouterr().err


def test_a_port_in_use_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mlflow.db").touch()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["ui", str(tmp_path), "--port", str(port)]) == 2
    assert f"port {port} of 127.0.0.1 cannot be used" in capsys.readouterr().err
