"""``compare``: two sweeps over the same tasks; others are refused with what differs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from speechft_ray.cli import main
from speechft_ray.commands.compare import _find_twin, compare_sweeps
from speechft_ray.core.errors import UserError
from speechft_ray.core.store import Store
from speechft_ray.report.comparison import compare_lines
from speechft_ray.report.lines import TableLine, group_rows
from speechft_ray.report.winner import read_record
from speechft_ray.sweep.plan import Plan, make_plan
from speechft_ray.sweep.protocols import EncoderRow
from tests.sweep.fakes import inputs, space, sweep


def edit_plan(storage: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    path = storage / "plans" / f"{read_record(Store(storage), name).plan}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def set_score(content: dict[str, Any]) -> None:
    content["spec"]["score"]["topline"]["chars.cer"] = -2


def drop_task(content: dict[str, Any]) -> None:
    content["spec"]["evaluate"].pop()
    content["rows"] = [{**row, "evaluations": row["evaluations"][:-1]} for row in content["rows"]]
    content["baseline"].pop()


def set_updates(content: dict[str, Any]) -> None:
    key = content["rows"][0]["evaluations"][0]
    job = next(job for job in content["jobs"] if job["fingerprint"] == key)
    job["payload"]["spec"]["updates"] = 99


def test_a_sweep_and_a_search_are_compared(
    finished_storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = compare_sweeps("small-sweep", "small-search", finished_storage, None)
    assert pairs[0].title == "best merge"
    best = pairs[0]
    assert best.first.score is not None and best.second.score is not None
    comparison = best.comparison
    assert comparison is not None
    assert comparison.difference == pytest.approx(best.second.score - best.first.score)
    # As many comparisons as are judged hold together: wider than one alone.
    alone = compare_lines(best.second, best.first)
    assert alone is not None and alone.interval is not None and comparison.interval is not None
    low, high = comparison.interval
    assert low <= alone.interval[0] <= alone.interval[1] <= high
    # The pre-trained encoder is the same unit in both, so there is nothing to judge.
    same = next(pair for pair in pairs if pair.title == "pre-trained")
    assert same.comparison is None and same.first.score == same.second.score
    assert main(["compare", "small-sweep", "small-search", "--storage", str(finished_storage)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"{comparison.difference:+.2f}" in text and "the same encoders" in text
    assert "metric of the best merge" in text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (drop_task, "on other tasks, .*: small-sweep alone has chars"),
        (set_updates, "evaluated `label` with other values of updates"),
        (set_score, "have another `score` section"),
    ],
)
def test_sweeps_that_measure_other_things_are_refused(
    storage_copy: Path, change: Callable[[dict[str, Any]], None], sentence: str
) -> None:
    edit_plan(storage_copy, "small-search", change)
    with pytest.raises(UserError, match=sentence):
        compare_sweeps("small-sweep", "small-search", storage_copy, None)


def make_lambda_sweep(penalties: list[float], **merge: Any) -> tuple[Plan, list[TableLine]]:
    """A planned sweep over penalties, with made-up scores: 500 and 10 more for each later row."""
    (run,) = space()["finetune"]
    runs = [{**run, "seed": 0, "anchor_penalty": {"grid": penalties}}]
    plan = make_plan(sweep(finetune=runs, merge=[{"alpha": 0.25, **merge}]), inputs())
    rows = [
        EncoderRow(
            key=row.key,
            title=row.title,
            params=row.params,
            test={"score": 500.0 + 10 * place},
            dev={"score": 500.0},
            complete=True,
        )
        for place, row in enumerate(plan.rows)
    ]
    return plan, group_rows(rows)


def test_a_parameter_that_varies_in_one_sweep_alone_is_read_from_the_others_spec() -> None:
    one, several = make_lambda_sweep([0.1]), make_lambda_sweep([0, 0.1, 0.2])
    plans = (one[0], several[0])
    for line in one[1]:
        twin = _find_twin(line, several[1], plans)
        assert twin is not None and twin.role == line.role
        assert line.role == "pre-trained" or twin.params["anchor_penalty"] == 0.1
    back = [_find_twin(line, one[1], (several[0], one[0])) for line in several[1]]
    paired = [
        line.params.get("anchor_penalty")
        for line, twin in zip(several[1], back, strict=True)
        if twin
    ]
    assert sorted(map(str, paired)) == ["0.1", "0.1", "None"]  # alpha 0.25, alpha 1, alpha 0


def test_a_line_of_an_early_checkpoint_has_no_twin_at_the_best_one() -> None:
    best = make_lambda_sweep([0.1])
    early = make_lambda_sweep([0.1], checkpoint=0.5)
    twins = [_find_twin(line, best[1], (early[0], best[0])) for line in early[1]]
    assert [twin.role for twin in twins if twin] == ["pre-trained"]
