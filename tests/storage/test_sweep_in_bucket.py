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
from speechft_ray.commands.ui import find_target, find_uri
from speechft_ray.storage import mirror
from speechft_ray.storage import open as opening
from speechft_ray.storage.address import parse_url
from speechft_ray.storage.bucket import Bucket
from speechft_ray.sweep.space_file import read_space
from speechft_ray.tracking.addresses import DATABASE, make_database_uri
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


def test_a_report_leaves_plan_and_winner_in_the_bucket(
    bucket: Bucket,
    url: str,
    finished_storage: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after an upgrade: the command that it prints then works on every node."""
    monkeypatch.setattr(commands, "open_trackers", lambda *_: [])
    monkeypatch.setattr(results, "write_report", lambda *_: None)
    monkeypatch.setattr(mirror, "REMOVED_SECONDS", 0.0)  # as if it were 10 minutes later
    home = finished_storage.parent
    records = [item.key for name in ("plans", "sweeps") for item in bucket.list(f"{name}/")]
    bucket.remove(records)
    spec = read_space(SPACE)
    encoder, manifest = home / "start.safetensors", home / "recordings" / "manifest.tsv"
    place = resolve_place(spec, storage=url, encoder=str(encoder), manifest=manifest, cpu=True)
    sweep = commands.open_sweep(spec, place, is_to_run=False)
    commands.write_report_again(sweep, tmp_path / "report", None)
    export = ["export", "small-sweep", "--to", "safetensors", "--storage", url]
    for node in ("node", "other"):
        monkeypatch.setenv("SPEECHFT_CACHE", str(tmp_path / node))
        opening._open_bucket.cache_clear()
        assert main([*export[:2], str(tmp_path / f"{node}.safetensors"), *export[2:]]) == 0


def test_gc_removes_from_a_bucket_what_no_sweep_needs(
    bucket: Bucket, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket.write("merge/notes.txt", b"of a person")
    before = {item.key for item in bucket.list("")}
    facts = json.dumps({"base": "0" * 16, "files": {}}).encode()
    added = {
        f"merge/{'f' * 16}/manifest.json": facts,
        f"merge/{'e' * 16}/encoder.safetensors": b"killed before its manifest was sent",
        f"work/finetune-{'d' * 16}/state/numbers": b"0" * 500,
        f"damaged/merge-{'c' * 16}-12345678/encoder.safetensors": b"0" * 500,
        f"claims/finetune-{'b' * 16}.0": b"{}",
    }
    for key, content in added.items():
        bucket.write(key, content)
    assert main(["gc", "--storage", url]) == 0  # all of it is younger than a day
    printed = capsys.readouterr().out
    assert "would be removed: 0 items" in printed and "younger than 24 h: 5 items" in printed
    assert main(["gc", "--storage", url, "--older-than", "0", "--yes"]) == 0
    assert "removed: 5 items" in capsys.readouterr().out
    left = {item.key for item in bucket.list("")}
    assert before <= left and not left & added.keys()


def test_a_sweep_that_one_node_forgets_is_unknown_to_others(
    bucket: Bucket,
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def change_node(name: str) -> None:
        monkeypatch.setenv("SPEECHFT_CACHE", str(tmp_path / name))
        opening._open_bucket.cache_clear()

    monkeypatch.setattr(mirror, "REMOVED_SECONDS", 0.0)
    change_node("first")
    assert main(["ls", "--storage", url]) == 0
    assert "small-search" in capsys.readouterr().out
    change_node("second")
    merges = len(bucket.list("merge/"))
    arguments = ["gc", "--storage", url, "--sweep", "small-sweep", "--older-than", "0", "--yes"]
    assert main(arguments) == 0
    assert 0 < len(bucket.list("merge/")) < merges
    change_node("first")
    capsys.readouterr()
    assert main(["ls", "--storage", url]) == 0
    text = capsys.readouterr().out
    assert "small-search" in text and "small-sweep" not in text and "unused" not in text
    assert main(["verify", "--storage", url]) == 0


def test_ui_finds_the_database_of_this_node_and_the_server_of_any(bucket: Bucket, url: str) -> None:
    store = opening.open_store(url)
    bucket.write("trackers/small-sweep.json", b'{"mlflow": "http://mlflow.internal:5000"}')
    assert find_uri(find_target("small-sweep", url), None) == "http://mlflow.internal:5000"
    bucket.write("trackers/small-sweep.json", b'{"mlflow": null}')
    (store.root / DATABASE).write_bytes(b"")
    assert find_uri(find_target(url, "runs"), None) == make_database_uri(store.root)
