"""A tracker that is a file: one JSON object per line, only ever added to, readable with any tool
and without any server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from speechft_ray.sweep.protocols import Curve, EncoderRow, SweepInfo, TrackerDown
from speechft_ray.tracking.base import TRACKERS


class JsonlTracker:
    """Writes ``<folder>/<sweep name>-<start of its fingerprint>.jsonl``.

    Each line has ``at`` (UTC), ``kind`` (``sweep``, ``curve``, ``encoder``, ``champion`` or
    ``finish``), ``key`` and the content. A line is added only when it says something new of its
    key, so the last line of a key is the state and a repeated call adds nothing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.expanduser().absolute()
        self._path: Path | None = None
        self._key = ""
        self._known: dict[tuple[str, str], str] = {}

    def start(self, sweep: SweepInfo) -> None:
        """Opens the log of this sweep and reads what is in it."""
        name = re.sub(r"[^A-Za-z0-9_.-]", "-", sweep.name)
        self._path = self._folder / f"{name}-{sweep.key[:12]}.jsonl"
        self._key = sweep.key
        with self._answering():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._known = {
                (line["kind"], line["key"]): _text(line) for line in read_log(self._path)
            }
        self._write("sweep", sweep.key, {"name": sweep.name, "params": dict(sweep.params)})

    def log_curve(self, curve: Curve) -> None:
        """Adds the curve as it is now, unless the last line of this curve says the same."""
        points = [[update, dict(values)] for update, values in curve.points]
        self._write(
            "curve",
            curve.key,
            {"title": curve.title, "params": dict(curve.params), "points": points},
        )

    def log_encoder(self, row: EncoderRow) -> None:
        """Adds the row as it is now, unless the last line of this encoder says the same."""
        content = {
            "params": dict(row.params),
            "metrics": dict(row.metrics),
            "complete": row.complete,
        }
        self._write("encoder", row.key, {"title": row.title, **content})

    def register_model(self, row: EncoderRow, folder: Path) -> None:
        """Adds which encoder was chosen and where its files lie."""
        self._write(
            "champion", self._key, {"encoder": row.key, "title": row.title, "folder": str(folder)}
        )

    def finish(
        self, report: Path | None, score_by_alpha: Sequence[tuple[float, float]], status: str
    ) -> None:
        """Adds how the sweep ended, and where its report lies."""
        points = [list(point) for point in score_by_alpha]
        where = str(report) if report else None
        self._write(
            "finish", self._key, {"status": status, "report": where, "score_by_alpha": points}
        )

    def how_to_open(self) -> str:
        """Names the file."""
        return f"Log: {self._path or self._folder} (one JSON object per line; the last line of a key counts)."

    def _write(self, kind: str, key: str, content: Mapping[str, Any]) -> None:
        if self._path is None:
            raise RuntimeError("a tracker was told results before `start`")
        says = _text(content)
        if self._known.get((kind, key)) == says:
            return
        at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        line = json.dumps({"at": at, "kind": kind, "key": key, **content})
        with self._answering(), self._path.open("a", encoding="utf-8") as file:
            file.write(("" if _ends_with_newline(self._path) else "\n") + line + "\n")
        self._known[kind, key] = says

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrackerDown(
                f"The log `{self._path}` cannot be written ({error.strerror}): free or mend its disk."
            ) from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a log in order. A last line that was cut off by a crash is left out."""
    if not path.is_file():
        return []
    found = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "kind" in line and "key" in line:
            found.append(line)
    return found


def _text(content: Mapping[str, Any]) -> str:
    """What a line says, as text that is the same before it is written and after it is read."""
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


TRACKERS.register("jsonl", lambda root: JsonlTracker(root / "log"))
