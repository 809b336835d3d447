"""Rows, curves and a failure of a small sweep, as reports are made from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from speechft_ray.core.records import Outcome
from speechft_ray.report.write import ReportData
from speechft_ray.sweep.protocols import Curve, EncoderRow, SweepInfo

REFERENCES = {"pr.per": (82.01, 2.55), "er.accuracy": (35.39, 70.68)}
EVIL = '<script>alert("x")</script> $\\foo | `a` \x1b[31m & "q"'


def make_row(
    alpha: float,
    seed: int,
    score: float,
    *,
    dev: float,
    per: float = 5.0,
    complete: bool = True,
    **params: str | float,
) -> EncoderRow:
    """Returns the row of one merge; an incomplete one has a single test metric."""
    origin: dict[str, str | float | int] = {"method": "none", "finetune": "none"}
    if alpha != 0:
        origin = {"method": "linear", "finetune": "phones", "seed": seed}
    row = EncoderRow(
        key=f"{alpha}-{seed}-{params}",
        title="row",
        params={"alpha": alpha, **origin, **params},
        test={"pr.per": per, "er.accuracy": 65.0 + alpha, "score": score},
        dev={"pr.per": per, "er.accuracy": 66.0, "score": dev},
        spread={"score": 2.5, "pr.per": 0.25},
        complete=True,
    )
    if complete:
        return row
    return replace(row, test={"pr.per": per}, dev={}, spread={}, complete=False)


ROWS = [
    make_row(0.0, 0, 870.0, dev=869.0),
    make_row(0.25, 0, 876.0, dev=878.0, per=4.7),
    make_row(0.25, 1, 879.0, dev=877.0, per=4.9),
    make_row(0.25, 2, 877.0, dev=879.0, per=5.0),
    make_row(0.5, 0, 880.0, dev=860.0),  # best on test, not on dev: not the winner
    make_row(0.5, 1, 882.0, dev=861.0),
    make_row(1.0, 0, 730.0, dev=990.0),  # a control: its dev score does not count
    make_row(1.0, 1, 720.0, dev=990.0),
    make_row(0.75, 0, 0.0, dev=0.0, per=6.5, complete=False),
]
CURVES = [
    Curve(
        f"run{seed}",
        "run",
        {"finetune": "phones", "seed": seed},
        [(step, {"loss": 3.0 / step}) for step in range(1, 20)],
    )
    for seed in (0, 1)
]
FAILURE = Outcome(
    stage="evaluate",
    fingerprint="f",
    label="evaluate er alpha=0.75",
    error="out of\nmemory",
    traceback="Trace <b>",
)


def make_report_data(**changes: Any) -> ReportData:
    """Returns the report of ``ROWS``; ``changes`` replace its fields."""
    fields: dict[str, Any] = {
        "sweep": SweepInfo("3f9a1c77b2de", "alpha ablation", {"encoder": "hubert_base"}),
        "rows": ROWS,
        "curves": CURVES,
        "failures": [FAILURE],
        "references": REFERENCES,
        "how_to_open": "Open it with `mlflow ui`.",
        "versions": {"torch": "2.10.0"},
    }
    return ReportData(**{**fields, **changes})
