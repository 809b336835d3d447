"""The notebook of examples/ runs from its first cell to its last on a finished storage.

Its cells are executed here, by hand: a kernel would bring twenty packages for the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples").glob("*.ipynb"))


def read_cells(path: Path) -> list[str]:
    content = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in code), "clear the outputs before a commit"
    return ["".join(cell["source"]) for cell in code]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(
    path: Path,
    finished_storage: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plt.switch_backend("agg")
    parameters, *cells = read_cells(path)
    assert parameters == 'STORAGE, SWEEP = "runs", "alpha"'
    names: dict[str, Any] = {"STORAGE": str(finished_storage), "SWEEP": "small-sweep"}
    for number, cell in enumerate(cells, 1):
        exec(compile(cell, f"{path.name}, cell {number}", "exec"), names)
    plt.close("all")
    text = capsys.readouterr().out
    assert "<sweep small-sweep, finished: Best merge" in text and "valid frames: [49, 24]" in text
    assert len(names["sweep"].table()) == 9


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS
