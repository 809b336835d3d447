"""Tracker that writes event files of TensorBoard: one folder per learning curve and encoder."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from speechft_ray.sweep.protocols import Curve, EncoderRow, Model, SweepEnd, SweepInfo, TrackerDown
from speechft_ray.tracking._event_files import EventFiles
from speechft_ray.tracking._names import name_metrics, name_params, split_points
from speechft_ray.tracking.base import TRACKERS, TrackerKind


class TensorboardTracker:
    """Writes to ``<folder>/<sweep name>-<start of its fingerprint>/<title>-<start of its key>/``.

    Points have the update as their step, results of an encoder step 0, or the next one where they
    changed. The texts ``key``, ``params``, ``state`` and ``error`` say what a run is.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.expanduser().absolute()
        self._root: Path | None = None
        self._runs: dict[str, EventFiles] = {}
        self._sweep: SweepInfo | None = None

    def start(self, sweep: SweepInfo) -> None:
        """Finds the folder of this sweep."""
        self._root, self._sweep, self._runs = self._folder / _name(sweep.name, sweep.key), sweep, {}
        with self._as_tracker_down():
            self._open_sweep()

    def log_curve(self, curve: Curve) -> None:
        """Appends the points that are missing, and the state."""
        with self._as_tracker_down():
            run = self._open(curve.key, curve.title, name_params(curve.params, curve.fields))
            run.add_points(split_points(curve.points))
            run.add_text("state", curve.state)
            run.add_text("error", curve.error or "")

    def log_encoder(self, row: EncoderRow) -> None:
        """Appends the results that changed, and the points of its probes that are missing."""
        with self._as_tracker_down():
            run = self._open(row.key, row.title, name_params(row.params, row.fields))
            run.add_points(split_points(row.curve))
            metrics = {
                name: value for name, value in name_metrics(row).items() if math.isfinite(value)
            }
            run.add_latest(metrics.items())
            if row.complete:
                run.add_hparams(dict(name_params(row.params, {})), metrics)
                run.add_text("state", "finished")
                run.add_text("error", "")

    def register_model(self, row: EncoderRow, model: Model) -> None:
        """Appends which encoder was selected, and the folder of its files."""
        with self._as_tracker_down():
            self._open_sweep().add_text("champion", f"{row.key} {row.title} {model.folder}")

    def finish(self, end: SweepEnd) -> None:
        """Appends the status of the sweep, and the folder of its report."""
        with self._as_tracker_down():
            self._open_sweep().add_text("state", end.status)
            if end.report is not None:
                self._open_sweep().add_text("report", str(end.report))

    def how_to_open(self) -> str:
        """Returns the command that opens TensorBoard."""
        folder = shlex.quote(str(self._root or self._folder))
        return f"TensorBoard: tensorboard --logdir {folder} --host 127.0.0.1"

    def _open_sweep(self) -> EventFiles:
        if self._sweep is None:
            raise RuntimeError("a tracker was called before `start`")
        return self._open(self._sweep.key, "sweep", self._sweep.params)

    def _open(self, key: str, title: str, params: Mapping[str, object]) -> EventFiles:
        if self._root is None:
            raise RuntimeError("a tracker was called before `start`")
        if key not in self._runs:
            run = self._runs[key] = EventFiles(self._root / _name(title, key))
            run.add_text("key", key)
            lines = [f"| {name} | {value} |" for name, value in params.items()]
            run.add_text("params", "\n".join(["| param | value |", "|---|---|", *lines]))
        return self._runs[key]

    @contextmanager
    def _as_tracker_down(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrackerDown(
                f"The event files of TensorBoard in `{self._folder}` cannot be written "
                f"({error.strerror}): free or mend its disk."
            ) from error


def _name(title: str, key: str) -> str:
    return f"{re.sub(r'[^A-Za-z0-9_.=-]+', '-', title)[:100]}-{key[:12]}"


def _open(storage: Path, sweep: str, mlflow_uri: str | None) -> TensorboardTracker:
    return TensorboardTracker(storage / "tensorboard")


TRACKERS.register("tensorboard", TrackerKind(_open, blocks=True, package="tensorboardX"))
