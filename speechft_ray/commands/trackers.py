"""Opens the trackers that ``--track`` names."""

from __future__ import annotations

from importlib.util import find_spec

from speechft_ray.core.errors import UserError
from speechft_ray.core.specs import SweepSpec
from speechft_ray.core.store import Store
from speechft_ray.sweep.protocols import Tracker
from speechft_ray.tracking.base import TRACKERS

DEFAULT_TRACKERS = ("mlflow", "jsonl")
"""Trackers of a sweep without ``--track``, in the order in which their sentences are printed."""


def parse_trackers(text: str | None, mlflow_uri: str | None) -> tuple[str, ...]:
    """Returns the trackers that ``--track`` names, without duplicates; none for ``none``.

    Raises ``UserError`` for an unknown tracker, for one that is not installed, and for an MLflow
    URI (``--mlflow``) without the tracker that it is for.
    """
    if text is None:
        return DEFAULT_TRACKERS
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names or ("none" in names and len(names) > 1):
        raise UserError(
            f"`--track {text}` must be names with commas between them, such as mlflow,tensorboard, "
            f"or none alone. Trackers: {', '.join(TRACKERS.names())}."
        )
    if names == ("none",):
        names = ()
    for name in names:
        kind = TRACKERS.get(name)
        if kind.package is not None and not is_installed(kind.package):
            raise UserError(
                f"the tracker `{name}` needs the Python package `{kind.package}`, which is not "
                f"installed: pip install 'speechft_ray[{name}]', or leave it out of --track."
            )
    if mlflow_uri is not None and "mlflow" not in names:
        raise UserError(
            f"--mlflow says where to log, but `--track {text}` leaves mlflow out: add it to "
            "--track, or leave --mlflow out."
        )
    return names


def is_installed(package: str) -> bool:
    """Whether a package can be imported; a folder of that name, as W&B makes one, is none."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


def open_trackers(
    spec: SweepSpec,
    store: Store,
    mlflow_uri: str | None,
    names: tuple[str, ...] = DEFAULT_TRACKERS,
) -> list[Tracker]:
    """Opens the trackers of a sweep; ``mlflow_uri`` is the value of --mlflow. Raises
    ``UserError``."""
    from speechft_ray.tracking.background import BackgroundTracker

    kinds = [TRACKERS.get(name) for name in names]
    trackers = [kind.open(store.root, spec.name, mlflow_uri) for kind in kinds]
    return [
        BackgroundTracker(tracker) if kind.blocks else tracker
        for kind, tracker in zip(kinds, trackers, strict=True)
    ]
