"""Records each run of a sweep in ``<storage>/provenance/<plan>/``, one file for each: what was run,
by which versions, where and when.

A record is a fact beside the results, never part of identity. It is written when the run begins and
again when it ends, so that a killed run has one without an end.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pydantic import JsonValue, ValidationError

from speechft_ray.core.files import write_json
from speechft_ray.core.records import Record
from speechft_ray.core.store import Store

FOLDER = "provenance"


class Invocation(Record):
    """One run of a sweep."""

    sweep: str
    """Name in the search space."""
    plan: str
    """Fingerprint of the plan."""
    command: tuple[str, ...]
    """The command line, without passwords."""
    space_file: str | None
    """Path of the search space; ``None`` where it was given as data."""
    space: str | None
    """Text of the search space as it was given."""
    spec: dict[str, JsonValue]
    """The sweep that was read from it: axes expanded, defaults filled in."""
    versions: dict[str, str]
    """Versions of Python and of the packages that compute the results."""
    commit: str | None
    """Git commit of the package's checkout; ``None`` where it was installed without one."""
    dirty: bool
    """Whether files differed from that commit."""
    host: str
    """Name of the machine of the driver."""
    cluster: dict[str, JsonValue]
    """Address, nodes, CPUs and GPUs of the Ray cluster; empty where nothing had to be computed, and
    without Ray."""
    encoder: dict[str, str]
    """Name and fingerprint of the encoder that the sweep starts from."""
    corpora: dict[str, str]
    """Fingerprint of each corpus by what it is for, such as ``evaluate.pr``."""
    started: str
    """UTC, ISO 8601."""
    ended: str | None = None
    """``None`` while it runs, and for ever where it was killed."""
    status: str = "running"
    """``running``, ``finished``, ``failed`` or ``stopped``."""

    def end(self, status: str, cluster: Mapping[str, Any]) -> Invocation:
        """Returns the record of a run that ends now."""
        changes = {"status": status, "ended": utc_now(), "cluster": dict(cluster)}
        return self.model_copy(update=changes)


def write_invocation(store: Store, record: Invocation) -> None:
    """Writes the record of a run of this process; a later one of the same run replaces it."""
    time = re.sub(r"[^0-9T]", "", record.started.partition("+")[0])
    host = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())
    folder = _folder(store, record.plan)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{time}-{host}-{os.getpid()}.json", record.model_dump(mode="json"))


def read_invocations(store: Store, plan: str) -> list[Invocation]:
    """Returns the records of all runs of a plan, the first run first; damaged files are left out.

    Empty for a sweep that only versions before 0.5 ran.
    """
    records = []
    for path in sorted(_folder(store, plan).glob("[!.]*.json")):
        try:
            records.append(Invocation.model_validate(json.loads(path.read_text("utf-8"))))
        except (OSError, ValueError, ValidationError):
            continue
    return sorted(records, key=lambda record: record.started)


def utc_now() -> str:
    """Returns the time as records have it."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def list_facts(record: Invocation) -> dict[str, str]:
    """Returns a record as short texts by name, without the search space and its spec."""
    dirty = " (with changes)" if record.dirty else ""
    facts = {
        "command": " ".join(record.command),
        "search space": record.space_file or "",
        "status": record.status,
        "started": record.started,
        "ended": record.ended or "",
        **record.versions,
        "commit": f"{record.commit}{dirty}" if record.commit else "",
        "host": record.host,
        "cluster": ", ".join(f"{value} {name}" for name, value in record.cluster.items()),
        "encoder": " ".join(record.encoder.values()),
        **{f"corpus {role}": key for role, key in record.corpora.items()},
    }
    return {name: text for name, text in facts.items() if text}


def _folder(store: Store, plan: str) -> Path:
    return store.root / FOLDER / plan
