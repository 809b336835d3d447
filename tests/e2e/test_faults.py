"""The second half of ``make test-faults`` in small: it is no pytest, and would break unseen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_one_task_is_killed_three_times_and_equal() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.e2e.faults"]
    result = subprocess.run(
        [*command, "--tasks", "sid", "--seconds", "0.5"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "PASS  sid" in result.stdout and "1 of 1 passed" in result.stdout
    assert result.stdout.count("->") == 4  # the heading, and three deaths
