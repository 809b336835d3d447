"""One server for all tests of buckets; each test has a prefix of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from speechft_ray.storage import open as opening
from tests.storage.s3_server import BUCKET, S3Server, run_server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A running server of the S3 protocol."""
    pytest.importorskip("moto")
    pytest.importorskip("obstore")
    with run_server() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server, for a process that may use it and has a cache folder of its own."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SPEECHFT_CACHE", str(tmp_path / "node"))
    opening._open_bucket.cache_clear()
    s3_server.take_requests()
    yield s3_server
    s3_server.set_faults(0.0)
    opening._open_bucket.cache_clear()


@pytest.fixture
def url(s3: S3Server, tmp_path: Path) -> str:
    """A storage in the bucket that no other test uses."""
    return f"s3://{BUCKET}/{tmp_path.parent.name}-{tmp_path.name}/runs"
