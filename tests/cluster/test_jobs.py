"""Sweeps as jobs of a cluster, with a client that stands for Ray's Jobs API."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from speechft_ray.cluster import connect as connecting
from speechft_ray.cluster import environment
from speechft_ray.cluster.authentication import find_token, is_loopback, warn_without_token
from speechft_ray.cluster.jobs import (
    SWEEP,
    explain_errors,
    find_sweep,
    follow_log,
    list_sweeps,
    open_client,
    stop_sweep,
    submit,
)
from speechft_ray.core.errors import UserError


class FakeClient:
    """Keeps jobs as the Jobs API does. A log is read in chunks; ``None`` breaks the connection."""

    def __init__(self, *chunks: str | None) -> None:
        self.jobs: dict[str, Any] = {}
        self.chunks = list(chunks)
        self.text = ""
        self.refusals: list[str] = []

    def add(self, key: str, sweep: str | None, status: str, **fields: Any) -> None:
        self.jobs[key] = SimpleNamespace(
            submission_id=key,
            metadata={SWEEP: sweep} if sweep else {},
            status=status,
            start_time=fields.pop("start_time", len(self.jobs) * 1000 + 1000),
            end_time=None,
            driver_exit_code=fields.pop("driver_exit_code", None),
        )

    def list_jobs(self) -> list[Any]:
        return list(self.jobs.values())

    def get_job_info(self, key: str) -> Any:
        return self.jobs[key]

    def get_job_logs(self, key: str) -> str:
        return self.text

    def submit_job(self, *, submission_id: str, metadata: dict[str, str], **rest: Any) -> str:
        if self.refusals:
            raise RuntimeError(self.refusals.pop(0))
        self.add(submission_id, metadata.get(SWEEP), "PENDING")
        return submission_id

    def stop_job(self, key: str) -> bool:
        self.jobs[key].status = "STOPPED"
        return True

    async def tail_job_logs(self, key: str) -> AsyncIterator[str]:
        if self.text:  # a new connection begins at the beginning
            yield self.text
        while self.chunks:
            await asyncio.sleep(0)
            chunk = self.chunks.pop(0)
            if chunk is None:
                raise RuntimeError("WebSocket connection closed unexpectedly")
            self.text += chunk
            yield chunk
        self.jobs[key].status = "FAILED"
        self.jobs[key].driver_exit_code = 2


def test_jobs_are_named_after_the_sweep_and_numbered() -> None:
    client = FakeClient()
    client.add("alpha", "alpha", "SUCCEEDED")
    client.add("alpha-2", None, "RUNNING")  # somebody else's job
    assert submit(client, "alpha", "run", {}, {SWEEP: "alpha"}) == "alpha-3"
    assert submit(client, "beta", "run", {}, {SWEEP: "beta"}) == "beta"


def test_a_head_that_is_starting_is_asked_again() -> None:
    client, waits = FakeClient(), list[float]()
    client.refusals = ["status code 500: No available agent to submit job"] * 2
    assert submit(client, "alpha", "run", {}, {}, waits.append) == "alpha"
    assert len(waits) == 2
    client.refusals = ["status code 500: No available agent to submit job"] * 100
    with pytest.raises(UserError, match="dashboard agent"), explain_errors("http://head:8265"):
        submit(client, "beta", "run", {}, {}, waits.append)
    client.refusals = ["status code 500: disk full"]
    with pytest.raises(UserError, match="disk full"), explain_errors("http://head:8265"):
        submit(client, "beta", "run", {}, {}, waits.append)


def test_other_jobs_of_the_cluster_are_not_listed() -> None:
    client = FakeClient()
    client.add("alpha", "alpha", "SUCCEEDED")
    client.add("other", None, "RUNNING")
    client.add("failed", "alpha", "FAILED", driver_exit_code=1)
    client.add("killed", "alpha", "FAILED")
    client.add("stopped", "alpha", "STOPPED")
    codes = {job.id: job.exit_code for job in list_sweeps(client)}
    assert codes == {"alpha": 0, "failed": 1, "killed": 1, "stopped": 75}


def test_a_sweep_is_found_by_job_and_by_name() -> None:
    client = FakeClient()
    client.add("alpha", "alpha", "RUNNING")
    client.add("alpha-2", "alpha", "FAILED")
    assert find_sweep(client, "alpha-2").id == "alpha-2"
    client.add("late", "beta", "SUCCEEDED", start_time=9000)
    client.add("early", "beta", "RUNNING", start_time=100)
    assert find_sweep(client, "beta").id == "early", "the one that runs"
    client.add("third", "beta", "RUNNING")
    with pytest.raises(UserError, match=r"several sweeps `beta` run .*`early`.*`third`"):
        find_sweep(client, "beta")
    with pytest.raises(UserError, match=r"no job and no sweep `gamma`.*alpha"):
        find_sweep(client, "gamma")


def test_a_log_is_followed_across_broken_connections_to_the_exit_code() -> None:
    client = FakeClient("one\n", "two\n", None, "three\n", None, "four\n")
    client.add("alpha", "alpha", "RUNNING")
    written: list[str] = []
    job = follow_log(client, "alpha", written.append, lambda seconds: None)
    assert "".join(written) == "one\ntwo\nthree\nfour\n"
    assert job.exit_code == 2


def test_stopping_waits_for_the_driver_and_is_resumable() -> None:
    client = FakeClient()
    client.add("alpha", "alpha", "RUNNING")
    job = stop_sweep(client, find_sweep(client, "alpha"), lambda seconds: None)
    assert (job.state, job.exit_code) == ("STOPPED", 75)


@pytest.mark.parametrize(
    ("cluster", "sentence"),
    [
        ("10.0.0.1:8265", "must be the address of Ray's dashboard"),
        ("ray://10.0.0.1:10001", "must be the address of Ray's dashboard"),
        ("http://", "must be the address of Ray's dashboard"),
        ("http://head:port", "must be the address of Ray's dashboard"),
        ("http://127.0.0.1:1", r"no Ray dashboard answers at `http://127.0.0.1:1` .*ssh -L"),
    ],
)
def test_wrong_addresses_get_one_sentence(cluster: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        open_client(cluster, print)


class _Head(BaseHTTPRequestHandler):
    """Answers as the dashboard of a head does that wants the token ``secret``."""

    def do_GET(self) -> None:
        is_open = self.path == "/api/authentication_mode"
        token = self.headers.get("Authorization")
        status = 200 if is_open or token == "Bearer secret" else 403 if token else 401
        facts = {"ray_version": "2.60.0", "authentication_mode": "disabled"}
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(facts if status == 200 else {}).encode())

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Head) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("token", "sentence"),
    [("", "asks for a token"), ("wrong", "does not know this token"), ("secret", None)],
)
def test_the_token_of_the_environment_is_sent(
    head: str, token: str, sentence: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere")
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")  # Ray's client would take this one
    if sentence is None:
        assert open_client(head, pytest.fail) is not None
    else:
        with pytest.raises(UserError, match=sentence):
            open_client(head, pytest.fail)


def test_a_cluster_without_a_token_gets_a_loud_line(head: str) -> None:
    lines: list[str] = []
    warn_without_token(head, lines.append)
    warn_without_token("http://127.0.0.1:1", lines.append)
    (line,) = lines
    assert line.startswith("WARNING") and "RAY_AUTH_MODE=token" in line


def test_tokens_and_hosts(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    (tmp_path / "token").write_text("abc\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert find_token() == "abc"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert find_token() is None
    assert is_loopback("localhost") and is_loopback("127.1.2.3") and is_loopback("[::1]")
    assert not is_loopback("10.0.0.1") and not is_loopback("head")


def test_a_driver_that_is_a_job_keeps_the_environment_of_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    everything = {**environment.WORKER_ENVIRONMENT, **environment.ALLOCATOR}
    assert environment.select_variables() == everything
    of_job = {"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "4", "OTHER": "1"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(of_job))
    rest = everything.keys() - {"OMP_NUM_THREADS"}
    assert environment.select_variables().keys() == rest
    with pytest.raises(UserError, match="--address auto"):
        connecting.connect("local")


def test_a_local_cluster_has_the_cpus_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 4, 5, 6})
    assert connecting.count_cpus() == 4
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert connecting.count_cpus() is None
