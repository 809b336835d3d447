"""Tracker that logs to Weights & Biases: one group per sweep, one run per learning curve and per
merged encoder.

Without a key of its server it works offline, and ``wandb sync`` sends the folders later. Neither a
folder nor a history of that server can be asked cheaply what it has. So a file beside the folders
lists what was handed over, and a driver that is killed sends at most its last batch again.
"""

from __future__ import annotations

import json
import math
import netrc
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from speechft_ray.sweep.protocols import Curve, EncoderRow, Model, SweepEnd, SweepInfo, TrackerDown
from speechft_ray.tracking._names import name_metrics, name_params
from speechft_ray.tracking.base import TRACKERS, TrackerKind

SETTINGS: dict[str, Any] = {
    "console": "off",
    "silent": True,
    "disable_git": True,
    "save_code": False,
    "x_disable_stats": True,
    "x_disable_meta": True,
}
"""Only what is logged here is sent: no output, no code, no measurements of the machine."""


class WandbTracker:
    """Logs to the project of the sweep's name; points have the update as their step (``update``).

    The selected encoder is named in the run of the sweep; its weights stay in the store.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.expanduser().absolute()
        self._sweep: SweepInfo | None = None
        self._runs: dict[str, Any] = {}
        self._sent: dict[str, dict[str, Any]] = {}
        """What was handed over, by run and name: steps of a curve, or the latest value."""

    def start(self, sweep: SweepInfo) -> None:
        """Reads what earlier runs handed over."""
        with self._as_tracker_down():
            self._finish_runs()
            self._sweep, self._sent = sweep, {}
            self._folder.mkdir(parents=True, exist_ok=True)
            for line in self._read_ledger():
                self._take(line["run"], line["sent"])

    def log_curve(self, curve: Curve) -> None:
        """Logs the points that are missing, and the state of the run."""
        with self._as_tracker_down():
            params = name_params(curve.params, curve.fields)
            self._log_points(curve.key, curve.title, params, curve.points)
            state = {"state": curve.state, "error": curve.error or ""}
            if curve.state == "running" or self._has(curve.key, state):
                return
            self._summarise(curve.key, curve.title, params, state)
            self._finish(curve.key, failed=curve.state == "failed")

    def log_encoder(self, row: EncoderRow) -> None:
        """Logs the results that changed, and the points of its probes that are missing."""
        with self._as_tracker_down():
            params = name_params(row.params, row.fields)
            self._log_points(row.key, row.title, params, row.curve)
            metrics: dict[str, Any] = {
                name: value for name, value in name_metrics(row).items() if math.isfinite(value)
            }
            if row.complete:
                metrics |= {"state": "finished", "error": ""}
            self._summarise(row.key, row.title, params, metrics)
            if row.complete:
                self._finish(row.key)

    def register_model(self, row: EncoderRow, model: Model) -> None:
        """Names the selected encoder and the folder of its files."""
        with self._as_tracker_down():
            champion = {"champion": row.key, "champion_folder": str(model.folder)}
            self._summarise_sweep(champion)
            self._finish_runs()

    def finish(self, end: SweepEnd) -> None:
        """Logs the status of the sweep and the folder of its report, and ends every run."""
        with self._as_tracker_down():
            self._summarise_sweep({"state": end.status, "report": str(end.report or "")})
            self._finish_runs()

    def how_to_open(self) -> str:
        """Returns the address of the project, or the command that sends what was logged offline."""
        if _mode() == "offline":
            return f"Weights & Biases (offline): wandb sync {self._folder}/wandb/offline-run-*"
        return "Weights & Biases: https://wandb.ai/home, the project of the sweep's name."

    def _log_points(
        self,
        key: str,
        title: str,
        params: Mapping[str, object],
        points: Sequence[tuple[int, Mapping[str, float]]],
    ) -> None:
        sent = self._sent.get(key, {})
        new = [
            (update, {name: v for name, v in values.items() if update not in sent.get(name, ())})
            for update, values in points
        ]
        new = [(update, values) for update, values in new if values]
        if not new:
            return
        run = self._open(key, title, params)
        for update, values in new:
            run.log({"update": update, **values})
        steps: dict[str, list[int]] = {}
        for update, values in new:
            for name in values:
                steps.setdefault(name, []).append(update)
        self._remember(key, steps)

    def _summarise_sweep(self, values: Mapping[str, Any]) -> None:
        sweep = self._require_sweep()
        self._summarise(sweep.key, sweep.name, sweep.params, values)

    def _summarise(
        self, key: str, title: str, params: Mapping[str, object], values: Mapping[str, Any]
    ) -> None:
        self._require_sweep()
        if not self._has(key, values):
            self._open(key, title, params).summary.update(dict(values))
            self._remember(key, dict(values))

    def _has(self, key: str, values: Mapping[str, Any]) -> bool:
        sent = self._sent.get(key, {})
        return all(name in sent and sent[name] == value for name, value in values.items())

    def _open(self, key: str, title: str, params: Mapping[str, object]) -> Any:
        import wandb

        sweep = self._require_sweep()
        if key not in self._runs:
            run = self._runs[key] = wandb.init(
                project=re.sub(r"[/\\#?%:]", "-", sweep.name),
                group=sweep.key,
                id=f"{sweep.key[:12]}-{key[:24]}",
                name=title,
                config={"key": key, **params},
                dir=str(self._folder),
                mode=_mode(),
                resume="allow",
                reinit="create_new",
                settings=wandb.Settings(**SETTINGS),
            )
            run.define_metric("update", hidden=True)
            for group in ("train", "dev", "distance", "probe"):
                run.define_metric(f"{group}/*", step_metric="update")
        return self._runs[key]

    def _finish(self, key: str, failed: bool = False) -> None:
        run = self._runs.pop(key, None)
        if run is not None:
            run.finish(exit_code=int(failed))

    def _finish_runs(self) -> None:
        for key in list(self._runs):
            self._finish(key)

    def _require_sweep(self) -> SweepInfo:
        if self._sweep is None:
            raise RuntimeError("a tracker was called before `start`")
        return self._sweep

    def _ledger(self) -> Path:
        return self._folder / f"sent-{self._require_sweep().key[:24]}.jsonl"

    def _read_ledger(self) -> Iterator[Any]:
        if not self._ledger().exists():
            return
        for text in self._ledger().read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(text)
            except ValueError:
                continue  # cut off by a crash

    def _remember(self, key: str, sent: Mapping[str, Any]) -> None:
        with self._ledger().open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps({"run": key, "sent": sent}))
        self._take(key, sent)

    def _take(self, key: str, sent: Mapping[str, Any]) -> None:
        of_run = self._sent.setdefault(key, {})
        for name, value in sent.items():
            if isinstance(value, list):
                of_run.setdefault(name, set()).update(value)
            else:
                of_run[name] = value

    @contextmanager
    def _as_tracker_down(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError:
            raise
        except Exception as error:  # of wandb, a network or a disk
            reason = " ".join(str(error).split())[:200]
            raise TrackerDown(
                f"Weights & Biases does not take results ({type(error).__name__}: {reason})."
            ) from error


def _mode() -> Any:
    """Returns ``WANDB_MODE``, or without it ``online`` where there is a key: wandb would ask for
    one otherwise."""
    mode = os.environ.get("WANDB_MODE")
    if mode:
        return mode
    try:
        has_login = netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        has_login = False
    return "online" if has_login or os.environ.get("WANDB_API_KEY") else "offline"


def _open(storage: Path, sweep: str, mlflow_uri: str | None) -> WandbTracker:
    return WandbTracker(storage / "wandb" / sweep)


TRACKERS.register("wandb", TrackerKind(_open, blocks=True, package="wandb"))
