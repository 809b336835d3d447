"""Output that nobody reads any more does not end the work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

WORKS = """
import sys
from pathlib import Path
from rich.console import Console
from speechft_ray.core.closed_output import survive_closed_output

def note():
    print("goes on in silence", file=sys.stderr)

with survive_closed_output(note):
    console = Console()
    for number in range(1000):
        console.print("line", number)
    Path(sys.argv[1]).write_text("finished")
"""


def test_a_reader_that_ends_early_ends_nothing_else(tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", WORKS, str(tmp_path / "result")]
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "line 0\n"
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait() == 0
    assert (tmp_path / "result").read_text() == "finished"
    assert errors == "goes on in silence\n"
