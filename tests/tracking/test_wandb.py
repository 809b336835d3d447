"""Weights & Biases offline: its files are read without its code. Skipped where it is not installed.

The format is that of LevelDB's log: blocks of 32 KiB with records of 7 bytes of header.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from speechft_ray.sweep.protocols import SweepEnd
from speechft_ray.tracking.wandb import WandbTracker
from tests.tracking.records import CURVE, METRICS, POINTS, PROBES, ROW, SWEEP

pytest.importorskip("wandb", exc_type=ImportError)


def read_records(path: Path) -> list[Any]:
    """Returns the records of a ``.wandb`` file."""
    from wandb.proto import wandb_internal_pb2

    content, place, part, records = path.read_bytes(), 7, b"", []
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        part += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            records.append(wandb_internal_pb2.Record.FromString(part))
            part = b""
    return records


def read_view(folder: Path) -> dict[str, tuple[dict[str, dict[int, float]], dict[str, Any]]]:
    """Returns the points and the summary of each run, by its id."""
    view: dict[str, tuple[dict[str, dict[int, float]], dict[str, Any]]] = {}
    for path in sorted(folder.rglob("*.wandb")):
        points, summary = view.setdefault(path.stem.removeprefix("run-"), ({}, {}))
        for record in read_records(path):
            history = {
                item.key or item.nested_key[0]: json.loads(item.value_json)
                for item in record.history.item
            }
            for name, value in history.items():
                if name.startswith(("train/", "dev/", "probe/")):
                    of_name = points.setdefault(name, {})
                    assert history["update"] not in of_name, "a point is there twice"
                    of_name[history["update"]] = value
            for item in record.summary.update:
                summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return view


def test_everything_is_there_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for _ in range(2):  # the second driver finds all of it
        tracker = WandbTracker(tmp_path)
        tracker.start(SWEEP)
        tracker.log_curve(CURVE._replace(points=POINTS[:1], state="running"))
        tracker.log_curve(PROBES)
        tracker.log_curve(CURVE)
        tracker.log_encoder(ROW)
        tracker.finish(SweepEnd("finished"))
    view = read_view(tmp_path)
    assert set(view) == {f"sweep-key-{key}" for key in ("sweep-key", "tuned-key", "merged-key")}
    points, summary = view["sweep-key-tuned-key"]
    assert points == {
        "train/loss": {10: 2.0, 20: 1.0},
        "dev/accuracy": {10: 40.0, 20: 30.5},
    }
    assert summary["state"] == "finished"
    points, summary = view["sweep-key-merged-key"]
    assert points == {"probe/loss_pr": {5: 3.0, 10: 2.5}, "probe/dev_pr.per": {10: 30.0}}
    assert set(METRICS.values()) <= set(summary.values())
    assert view["sweep-key-sweep-key"][1]["state"] == "finished"
    assert "wandb sync" in tracker.how_to_open()
