"""Event files of TensorBoard for one run: reads what earlier processes wrote, appends what is new.

A file is a sequence of records: length (8 bytes), its checksum, an ``Event``, its checksum
(TensorFlow's ``tfrecord`` format). A process that is killed leaves a record that is cut off, behind
which nothing would be read, so each process writes a file of its own.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from speechft_ray.tracking._names import Point


class EventFiles:
    """The event files in the folder of one run."""

    def __init__(self, folder: Path) -> None:
        self.scalars: dict[str, dict[int, float]] = {}
        """Values by name and step."""
        self.texts: dict[str, str] = {}
        """The last text of each tag."""
        self.tags: set[str] = set()
        self._texts = 0
        self._folder = folder
        self._path: Path | None = None
        for path in sorted(folder.glob("*tfevents*")) if folder.is_dir() else []:
            for event in _read_events(path):
                for value in event.summary.value:
                    self._take(value, int(event.step))

    def add_points(self, points: Iterable[Point]) -> None:
        """Appends those scalars whose step is not there; ``(name, value, step)`` each."""
        from tensorboardX.summary import scalar

        new = [
            (scalar(name, value), step)
            for name, value, step in points
            if step not in self.scalars.get(name, ())
        ]
        self._append(new)

    def add_latest(self, values: Iterable[tuple[str, float]]) -> None:
        """Appends the values that differ from the last ones, each at the next step of its name."""
        points = []
        for name, value in values:
            stored = self.scalars.get(name, {})
            last = max(stored, default=-1)
            if not stored or stored[last] != _round(value):
                points.append((name, value, last + 1))
        self.add_points(points)

    def add_text(self, tag: str, text: str) -> None:
        """Appends a text, unless it is the last one of its tag."""
        from tensorboardX.summary import text as make_text

        if self.texts.get(tag) != text:
            self._append([(make_text(tag, text), self._texts)])

    def add_hparams(self, params: dict[str, Any], metrics: dict[str, float]) -> None:
        """Appends the params for the table of HPARAMS, once."""
        from tensorboardX.summary import hparams

        if not any(tag.startswith("_hparams_") for tag in self.tags):
            self._append([(item, 0) for item in hparams(params, metrics)])

    def _take(self, value: Any, step: int) -> None:
        self.tags.add(value.tag)
        if value.HasField("simple_value"):
            self.scalars.setdefault(value.tag, {})[step] = value.simple_value
        elif value.tag.endswith("/text_summary"):
            tag = value.tag.removesuffix("/text_summary")
            self.texts[tag] = value.tensor.string_val[0].decode("utf-8", "replace")
            self._texts = max(self._texts, step + 1)

    def _append(self, summaries: list[tuple[Any, int]]) -> None:
        from tensorboardX.proto.event_pb2 import Event

        if not summaries:
            return
        now = time.time()
        events = [Event(wall_time=now, step=step, summary=item) for item, step in summaries]
        if self._path is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            # No other process, and no other file of this one, has this name.
            name = f"events.out.tfevents.{now:017.6f}.{os.getpid()}"
            self._path = self._folder / name
            events.insert(0, Event(wall_time=now, file_version="brain.Event:2"))
        with self._path.open("ab") as file:
            file.write(b"".join(_pack(event.SerializeToString()) for event in events))
        for item, step in summaries:
            for value in item.value:
                self._take(value, step)


def _pack(data: bytes) -> bytes:
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(data))
    sums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
    return length + next(sums) + data + next(sums)


def _read_events(path: Path) -> Iterator[Any]:
    """Yields the events of a file up to a record that is cut off."""
    from tensorboardX.proto.event_pb2 import Event

    content, place = path.read_bytes(), 0
    while place + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        end = place + 12 + length + 4
        if end > len(content):
            return
        yield Event.FromString(content[place + 12 : end - 4])
        place = end


def _round(value: float) -> float:
    """Returns a value as the files hold it, in float32."""
    (rounded,) = struct.unpack("<f", struct.pack("<f", value))
    return float(rounded)
