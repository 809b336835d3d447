"""What a sweep prints at its end."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from speechft_ray.commands.results import print_results
from speechft_ray.commands.stored import open_store, read_sweep
from speechft_ray.core.store import Store
from speechft_ray.report.winner import select_winner
from speechft_ray.report.write import write_report
from speechft_ray.sweep.protocols import Leak
from tests.report.report_data import ROWS, make_report_data


def test_leaks_are_printed_below_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leaks = {ROWS[1].key: [Leak("phones [b]", "er", 3, 400, 5, 10)]}
    storage = tmp_path / "my runs"
    print_results(make_report_data(leaks=leaks), tmp_path, ["MLflow: speechft ui"], Store(storage))
    text = capsys.readouterr().out
    assert "† phones [b] was tuned on 3 of the 400 test utterances of er and 5 of its 10" in text
    assert text.index("alpha 0.25") < text.index("† phones") < text.index("Report: ")
    assert "MLflow: speechft ui" in text
    name = "'alpha ablation'"
    assert f"speechft export {name} {name} --to hf --storage '{storage}'" in text


def test_the_printed_export_is_that_of_this_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where another sweep has its name, it is stored under another one."""
    data = make_report_data()
    other = replace(data, sweep=data.sweep._replace(label="alpha-12345678"))
    print_results(other, tmp_path, [], Store(tmp_path))
    assert "speechft export alpha-12345678 alpha-12345678 --to hf" in capsys.readouterr().out


@pytest.mark.parametrize(("family", "form"), [("hubert", "hf"), ("decoar2", "s3prl")])
def test_the_printed_export_has_a_format_of_the_family(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str, form: str
) -> None:
    data, store = make_report_data(), Store(tmp_path)
    winner = select_winner(data.lines)
    assert winner is not None
    with store.publish("merge", winner.merge, {"base": "b" * 16, "donors": []}):
        pass
    with store.publish("encoder", "b" * 16, {"family": family}):
        pass
    print_results(data, tmp_path, [], store)
    assert f" --to {form} --storage" in capsys.readouterr().out


def test_a_storage_of_an_earlier_version_has_a_page(finished_storage: Path, tmp_path: Path) -> None:
    """Its merges lack their distances, its evaluations their curves."""
    sweep = read_sweep(open_store(finished_storage), "small-sweep")
    page = write_report(tmp_path, sweep.data).read_text(encoding="utf-8")
    charts = re.findall(r'<div class="charts" id="(\w+)">', page)
    assert charts == [
        *("alpha_curve", "tasks_by_alpha", "layer_weights", "layer_distances"),
        *("layer_features", "learning_curves"),
    ]
