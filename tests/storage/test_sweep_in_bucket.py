"""A finished sweep, copied from a folder into a bucket: every verb works on it as on the folder."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from speechft_ray.cli import main
from speechft_ray.commands import results
from speechft_ray.commands import sweep as commands
from speechft_ray.commands.parts import resolve_place
from speechft_ray.storage import open as opening
from speechft_ray.storage.address import parse_url
from speechft_ray.storage.bucket import Bucket
from speechft_ray.sweep.space_file import read_space
from tests.storage.s3_server import S3Server

SPACE = Path(__file__).parents[1] / "identity" / "small_sweep.yaml"
SWEEP = ("encoder", "finetune", "merge", "evaluate", "overlap", "plans", "sweeps", "provenance")


@pytest.fixture
def bucket(s3: S3Server, url: str, finished_storage: Path) -> Bucket:
    """A bucket with a copy of the finished storage."""
    bucket = Bucket(parse_url(url))
    for name in SWEEP:
        for path in (finished_storage / name).rglob("*"):
            if path.is_file():
                bucket.upload(path.relative_to(finished_storage).as_posix(), path)
    return bucket


@pytest.fixture
def run(
    url: str, finished_storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], list[str]]:
    """Runs the sweep in this process from a node of that name; returns the labels of its jobs."""
    home = finished_storage.parent
    monkeypatch.setattr(commands, "open_trackers", lambda *_: [])
    monkeypatch.setattr(results, "write_report", lambda *_: None)  # figures take most of the time
    labels: list[str] = []
    begin = commands.RunObserver.__init__

    def watch(self: commands.RunObserver, *arguments: object) -> None:
        begin(self, *arguments)  # type: ignore[arg-type]
        self.on_job_start = lambda job: labels.append(job.label)

    monkeypatch.setattr(commands.RunObserver, "__init__", watch)

    def run(node: str) -> list[str]:
        labels.clear()
        monkeypatch.setenv("SPEECHFT_CACHE", str(tmp_path / node))
        opening._open_bucket.cache_clear()
        spec = read_space(SPACE)
        place = resolve_place(
            spec,
            storage=url,
            encoder=str(home / "start.safetensors"),
            manifest=home / "recordings" / "manifest.tsv",
            cpu=True,
        )
        sweep = commands.open_sweep(spec, place)
        failed = commands.run(sweep, None, tmp_path / node / "report", None, threading.Event())
        assert failed == []
        return list(labels)

    return run


@pytest.mark.slow
def test_what_is_missing_is_computed_and_equal(
    bucket: Bucket,
    run: Callable[[str], list[str]],
    s3: S3Server,
    finished_storage: Path,
    tmp_path: Path,
) -> None:
    assert run("first") == []
    lost = next(item.key for item in bucket.list("evaluate/") if item.key.endswith("manifest.json"))
    bucket.remove([lost])
    s3.set_faults(0.05)
    (label,) = run("second")
    s3.set_faults(0.0)
    assert label.startswith("evaluate")
    copy = tmp_path / "manifest.json"
    bucket.download(lost, copy)
    again, before = (json.loads(path.read_text()) for path in (copy, finished_storage / lost))
    assert again["scores"] == before["scores"]


def test_the_verbs_read_a_bucket(
    bucket: Bucket, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ls", "--storage", url]) == 0
    assert "small-sweep" in capsys.readouterr().out
    out = tmp_path / "winner.safetensors"
    assert main(["export", "small-sweep", str(out), "--to", "safetensors", "--storage", url]) == 0
    assert out.stat().st_size > 0
    assert main(["verify", "--storage", url]) == 0
    encoder = next(item for item in bucket.list("merge/") if item.key.endswith(".safetensors"))
    bucket.write(encoder.key, b"\0" * encoder.size)
    assert main(["verify", "--storage", url]) == 1
    assert "differs from its sha256" in capsys.readouterr().out
    assert main(["verify", "--repair", "--storage", url]) == 0
    assert main(["verify", "--storage", url]) == 0
    assert len(bucket.list("damaged/")) == 2
