"""SIGKILL at random moments, three times: the same trials, values and winner as undisturbed, and
nothing evaluated twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def start(storage: Path, out: Path, rungs: Sequence[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.search.driver", str(storage), str(out), *rungs]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment)


def read_finished_jobs(storage: Path) -> list[str]:
    path = storage / "done.txt"
    return path.read_text().split() if path.exists() else []


@pytest.mark.parametrize(
    "rungs",
    [
        (),
        pytest.param(("0.2", "0.6", "1"), marks=pytest.mark.slow),
        pytest.param(("0", "0.6", "1"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_killed_at_random_three_times(tmp_path: Path, rungs: Sequence[str]) -> None:
    whole = start(tmp_path / "whole", tmp_path / "whole.json", rungs)
    source = random.Random(0)
    for _ in range(3):
        before = len(read_finished_jobs(tmp_path / "killed"))
        driver = start(tmp_path / "killed", tmp_path / "killed.json", rungs)
        target = before + source.randint(3, 12)
        while len(read_finished_jobs(tmp_path / "killed")) < target:
            assert driver.poll() is None, "it ended before it could be killed"
            time.sleep(0.002)
        time.sleep(source.random() * 0.02)
        driver.send_signal(signal.SIGKILL)
        assert driver.wait() == -signal.SIGKILL
    last = start(tmp_path / "killed", tmp_path / "killed.json", rungs)
    assert last.wait(timeout=900) == 0
    assert whole.wait(timeout=900) == 0
    undisturbed, killed = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "killed")
    )
    assert killed == undisturbed
    assert len(killed["trials"]) == 30 and {"COMPLETE", "PRUNED"} <= set(killed["study"])
    jobs = read_finished_jobs(tmp_path / "killed")
    # A job that was published and not yet recorded when the driver died is not done again; none is
    # there twice.
    assert len(set(jobs)) == len(jobs)
    assert sorted(set(jobs) | set(read_finished_jobs(tmp_path / "whole"))) == sorted(
        read_finished_jobs(tmp_path / "whole")
    )
