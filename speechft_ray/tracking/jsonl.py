"""Tracker that appends to a log file, one JSON object per line; it needs no server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from speechft_ray.sweep.protocols import Curve, EncoderRow, Model, SweepEnd, SweepInfo, TrackerDown
from speechft_ray.tracking.base import TRACKERS, TrackerKind


class JsonlTracker:
    """Writes ``<folder>/<sweep name>-<start of its fingerprint>.jsonl``.

    Each line has ``at`` (UTC), ``kind`` (``sweep``, ``points``, ``curve``, ``failure``,
    ``encoder``, ``champion`` or ``finish``), ``key`` and the content. A line is appended only when
    it differs from the last one of its kind and key, which is therefore their state, and a repeated
    call appends nothing. Only ``points`` add up: each such line has points of a learning curve that
    no earlier line of its key has.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.expanduser().absolute()
        self._path: Path | None = None
        self._key = ""
        self._last_lines: dict[tuple[str, str], str] = {}
        self._steps: dict[str, set[tuple[str, int]]] = {}
        """Name and update of the points of each key."""

    def start(self, sweep: SweepInfo) -> None:
        """Opens the log of this sweep and reads its last line of each key."""
        name = re.sub(r"[^A-Za-z0-9_.-]", "-", sweep.name)
        self._path = self._folder / f"{name}-{sweep.key[:12]}.jsonl"
        self._key = sweep.key
        with self._as_tracker_down():
            self._folder.mkdir(parents=True, exist_ok=True)
            lines = read_log(self._path)
        self._last_lines = {(line["kind"], line["key"]): _text(line) for line in lines}
        self._steps = {}
        for line in lines:
            if line["kind"] in ("points", "curve"):
                self._take_new(line["key"], line["points"])
        self._write("sweep", sweep.key, {"name": sweep.name, "params": dict(sweep.params)})

    def log_curve(self, curve: Curve) -> None:
        """Appends the points of a run that goes on, and the whole curve of one that has ended,
        unless its last line is equal."""
        content = {"title": curve.title, "params": dict(curve.params)}
        points = [[update, dict(values)] for update, values in curve.points]
        if curve.state == "finished":
            self._write("curve", curve.key, {**content, "points": points})
            self._take_new(curve.key, points)
            return
        if new := self._take_new(curve.key, points):
            self._write("points", curve.key, {**content, "points": new})
        if curve.error is not None:
            ended = {"state": curve.state, "error": curve.error}
            self._write("failure", curve.key, {**content, **ended})

    def log_encoder(self, row: EncoderRow) -> None:
        """Appends the row, unless the last line of this encoder is equal, and new points of its
        probes."""
        points = [[update, dict(values)] for update, values in row.curve]
        if new := self._take_new(row.key, points):
            self._write("points", row.key, {"title": row.title, "points": new})
        content = {
            "params": dict(row.params),
            "metrics": row.flat(),
            "complete": row.complete,
            # Without it, lines of earlier versions stay equal.
            **({"unscored": list(row.unscored)} if row.unscored else {}),
        }
        self._write("encoder", row.key, {"title": row.title, **content})

    def register_model(self, row: EncoderRow, model: Model) -> None:
        """Appends the selected encoder and the folder of its files."""
        self._write(
            "champion",
            self._key,
            {"encoder": row.key, "title": row.title, "folder": str(model.folder)},
        )

    def finish(self, end: SweepEnd) -> None:
        """Appends the status of the sweep, the folder of its report and its winner."""
        content = {
            "status": end.status,
            "report": str(end.report) if end.report else None,
            "score_by_alpha": {
                title: [list(point) for point in points]
                for title, points in end.score_by_alpha.items()
            },
            "winner": end.winner.key if end.winner else None,
        }
        self._write("finish", self._key, content)

    def how_to_open(self) -> str:
        """Returns a sentence with the path of the file."""
        path = self._path or self._folder
        return f"Log: {path} (one JSON object per line; the last line of a key counts)."

    def _take_new(self, key: str, points: Sequence[Any]) -> list[list[Any]]:
        """Returns the points that no line has, and takes them for written."""
        steps = self._steps.setdefault(key, set())
        new = [
            [update, {name: value for name, value in values.items() if (name, update) not in steps}]
            for update, values in points
        ]
        steps.update((name, update) for update, values in points for name in values)
        return [point for point in new if point[1]]

    def _write(self, kind: str, key: str, content: Mapping[str, Any]) -> None:
        if self._path is None:
            raise RuntimeError("a tracker was called before `start`")
        text = _text(content)
        if self._last_lines.get((kind, key)) == text:
            return
        at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        line = json.dumps({"at": at, "kind": kind, "key": key, **content})
        with self._as_tracker_down(), self._path.open("a", encoding="utf-8") as file:
            file.write(("" if _ends_with_newline(self._path) else "\n") + line + "\n")
        self._last_lines[kind, key] = text

    @contextmanager
    def _as_tracker_down(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrackerDown(
                f"The log `{self._path}` cannot be written ({error.strerror}): "
                "free or mend its disk."
            ) from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a log in order, without a last line that a crash cut off."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "kind" in line and "key" in line:
            lines.append(line)
    return lines


def _text(content: Mapping[str, Any]) -> str:
    """Returns the content of a line as text; equal before it is written and after it is read."""
    return json.dumps(
        {name: value for name, value in content.items() if name not in ("at", "kind", "key")},
        sort_keys=True,
    )


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(0, 2)
        if file.tell() == 0:
            return True
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def _open(storage: Path, sweep: str, mlflow_uri: str | None) -> JsonlTracker:
    return JsonlTracker(storage / "log" / sweep)


TRACKERS.register("jsonl", TrackerKind(_open, blocks=False))
