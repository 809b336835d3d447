"""What a sweep prints at its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechft_ray.commands.results import print_results
from speechft_ray.sweep.protocols import Leak
from tests.report.report_data import ROWS, make_report_data


def test_leaks_are_printed_below_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leaks = {ROWS[1].key: [Leak("phones [b]", "er", 3, 400, 5, 10)]}
    storage = tmp_path / "my runs"
    print_results(make_report_data(leaks=leaks), tmp_path, ["MLflow: speechft ui"], str(storage))
    text = capsys.readouterr().out
    assert "† phones [b] was tuned on 3 of the 400 test utterances of er and 5 of its 10" in text
    assert text.index("alpha 0.25") < text.index("† phones") < text.index("Report: ")
    assert "MLflow: speechft ui" in text
    name = "'alpha ablation'"
    assert f"speechft export {name} {name} --to hf --storage '{storage}'" in text
