"""A whole sweep in under a minute: a search space small enough for a test, and ways to run and
compare it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from speechft_ray.core.store import CHECKSUM

REPOSITORY = Path(__file__).parents[2]

PHONES = {"part": "phones", "speakers": 2, "train": 40, "dev": 4, "test": 0}
SMALL: dict[str, Any] = {
    "name": "small",
    "encoder": "tiny_hubert",
    "finetune": [
        {
            "name": "phones",
            "objectives": [
                {
                    "head": "frame",
                    "corpus": {"options": PHONES},
                    "column": "phones",
                    "batch_size": 4,
                },
            ],
            "updates": 12,
            "peak_learning_rate": 1e-3,
            "validate_every_updates": 4,
            "seed": {"grid": [0, 1]},
        }
    ],
    "merge": [{"alpha": {"grid": [0.25]}}],
    "evaluate": [
        {
            "task": "pr",
            "corpus": {"options": {"part": "pr", "speakers": 4, "train": 10, "dev": 4, "test": 6}},
            "updates": 8,
            "learning_rate": 1e-2,
            "batch_size": 4,
            "seeds": 2,
        },
        {
            "task": "sid",
            "corpus": {
                "options": {"part": "sid", "speakers": 4, "train": 24, "dev": 8, "test": 12}
            },
            "updates": 20,
            "learning_rate": 1e-2,
            "batch_size": 8,
            "seeds": 2,
        },
    ],
    "score": {"zero": "measured", "topline": {"pr.per": 0, "sid.accuracy": 100}},
}


def write_space(folder: Path, **changes: Any) -> Path:
    """Writes the small space, with changes, and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "small.yaml"
    path.write_text(json.dumps({**SMALL, **changes}, indent=1))
    return path


def command(script: str, *arguments: str | Path) -> list[str]:
    """The command line that a person would type."""
    return [sys.executable, str(REPOSITORY / "launch" / script), *map(str, arguments)]


def environment(**extra: str) -> dict[str, str]:
    """An environment of this test's own: no running cluster is found by accident."""
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))
    }
    return {**clean, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **extra}


def run(
    script: str, *arguments: str | Path, timeout: float = 3000, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Runs a launch script to its end and returns what it printed; never raises for an exit
    code."""
    return subprocess.run(
        command(script, *arguments),
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(**extra),
        check=False,
    )


def places(home: Path, space: Path | None = None) -> list[str | Path]:
    """Arguments of a sweep that keeps everything below one folder."""
    chosen = space or write_space(home)
    return ["--space", chosen, "--storage", home / "runs", "--report", home / "report"]


def start(script: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """Starts a launch script in the background."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command(script, *arguments),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=pipe,
        text=True,
    )


def complete(storage: Path) -> dict[str, float]:
    """When each complete unit was published, by ``stage/fingerprint``. Hidden folders are units
    that are being published right now."""
    return {
        str(path.parent.relative_to(storage)): path.stat().st_mtime
        for path in storage.glob("*/[!.]*/manifest.json")
    }


def table(report: Path) -> list[str]:
    """The lines of the result table; two runs of one sweep must agree in every digit."""
    return (report / "table.csv").read_text(encoding="utf-8").splitlines()


def manifests(storage: Path) -> dict[str, Any]:
    """Every complete unit's facts without what depends on the clock, by ``stage/fingerprint``."""
    facts_by_unit = {}
    for path in sorted(storage.glob("*/*/manifest.json")):
        stage = path.parent.parent.name
        if stage in ("finetune", "merge", "evaluate"):
            facts = json.loads(path.read_text(encoding="utf-8"))
            facts_by_unit[f"{stage}/{path.parent.name}"] = _timeless(facts)
    return facts_by_unit


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _timeless(item)
            for key, item in value.items()
            if "seconds" not in key and "per_second" not in key and key != CHECKSUM
        }
    return [_timeless(item) for item in value] if isinstance(value, list) else value
