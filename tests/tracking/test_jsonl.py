"""The log file: its lines can be read after a crash, and a full disk is an error of the tracker."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from speechft_ray.sweep.protocols import EncoderRow, SweepInfo, TrackerDown
from speechft_ray.tracking.jsonl import JsonlTracker, read_log

SWEEP = SweepInfo("0123456789abcdef", "a/../b", {"encoder": "tiny"})


def row(value: float) -> EncoderRow:
    return EncoderRow(
        key="merged",
        title="linear",
        params={"alpha": 0.25},
        test={"pr.per": value},
        complete=True,
    )


def open_tracker(folder: Path) -> JsonlTracker:
    tracker = JsonlTracker(folder)
    tracker.start(SWEEP)
    return tracker


def test_lines_are_plain_json_with_a_time(tmp_path: Path) -> None:
    open_tracker(tmp_path).log_encoder(row(7.25))
    (path,) = tmp_path.iterdir()
    assert path.name == "a-..-b-0123456789ab.jsonl"
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["sweep", "encoder"]
    assert lines[1].pop("at").endswith("+00:00")
    assert lines[1] == {
        "kind": "encoder",
        "key": "merged",
        "title": "linear",
        "params": {"alpha": 0.25},
        "metrics": {"pr.per": 7.25},
        "complete": True,
    }


def test_a_line_that_was_cut_off_is_written_again_whole(tmp_path: Path) -> None:
    open_tracker(tmp_path).log_encoder(row(7.25))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-20])  # a crash in the middle of the last line
    assert [line["kind"] for line in read_log(path)] == ["sweep"]
    open_tracker(tmp_path).log_encoder(row(7.25))
    assert [line["kind"] for line in read_log(path)] == ["sweep", "encoder"]


def test_a_value_that_is_no_number_is_not_news_each_time(tmp_path: Path) -> None:
    tracker = open_tracker(tmp_path)
    tracker.log_encoder(row(math.nan))
    tracker.log_encoder(row(math.nan))
    open_tracker(tmp_path).log_encoder(row(math.nan))
    (path,) = tmp_path.iterdir()
    assert len(read_log(path)) == 2


def test_a_log_that_cannot_be_written_is_a_tracker_that_is_down(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file where the folder should be")
    with pytest.raises(TrackerDown, match="cannot be written"):
        open_tracker(tmp_path / "log")
    tracker = open_tracker(tmp_path / "other")
    (path,) = (tmp_path / "other").iterdir()
    path.unlink()
    path.mkdir()
    with pytest.raises(TrackerDown, match="cannot be written"):
        tracker.log_encoder(row(1.0))


def test_where_names_the_file(tmp_path: Path) -> None:
    assert str(tmp_path / "a-..-b-0123456789ab.jsonl") in open_tracker(tmp_path).how_to_open()
