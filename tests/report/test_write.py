"""The files of a report: they are complete and self-contained, and every text is escaped."""

from __future__ import annotations

import base64
import csv
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speechft_ray.core.errors import UserError
from speechft_ray.core.metrics import METRICS
from speechft_ray.core.records import Outcome
from speechft_ray.report.published import ALPHA_ABLATION
from speechft_ray.report.write import write_report
from speechft_ray.sweep.protocols import Curve, SweepInfo
from tests.report.report_data import CURVES, EVIL, ROWS, make_report_data, make_row

PAPER_CSV = Path(__file__).parents[2] / "speechft_ray/assets/paper/tables.csv"
FIGURES = ("alpha_curve", "tasks_by_alpha", "learning_curves", "published_comparison")


def test_a_folder_that_cannot_be_written_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"report folder `.*file.*` cannot be written"):
        write_report(tmp_path / "file" / "report", make_report_data())


def test_the_report_is_whole_and_self_contained(tmp_path: Path) -> None:
    page = write_report(tmp_path / "report", make_report_data())
    assert {path.name for path in page.parent.iterdir()} == {
        "index.html",
        "table.csv",
        "table.md",
        *(f"{name}.png" for name in FIGURES),
    }
    text = page.read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert {source.split(",")[0] for source in sources} == {
        "data:image/png;base64",
        "https://arxiv.org/abs/2502.12672",
    }
    inlined = [
        base64.b64decode(source.split(",")[1]) for source in sources if source.startswith("data:")
    ]
    assert sorted(inlined) == sorted((page.parent / f"{name}.png").read_bytes() for name in FIGURES)
    assert "url(" not in text and "@import" not in text and "<script" not in text
    for expected in (
        "877.33",
        "+7.33",
        "not judged",
        "3f9a1c77b2de",
        "mlflow ui",
        "out of memory",
        "874.68",
        "-26.45",
    ):
        assert expected in text, expected


def test_figures_are_pngs_of_a_readable_size(tmp_path: Path) -> None:
    folder = write_report(tmp_path, make_report_data()).parent
    for name in FIGURES:
        content = (folder / f"{name}.png").read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
        assert width == 1440, name
        assert 300 <= height <= 1400, name


def test_everything_foreign_is_escaped(tmp_path: Path) -> None:
    evil_params: dict[str, Any] = {EVIL: EVIL}
    rows = [
        *ROWS,
        make_row(0.25, 0, 800.0, dev=1.0, finetune=EVIL),
        make_row(0.25, 0, 801.0, dev=1.0, **evil_params),
    ]
    curves = [*CURVES, Curve("e", EVIL, {"finetune": EVIL}, [(1, {EVIL: 1.0}), (2, {EVIL: 2.0})])]
    failure = Outcome(stage="merge", fingerprint="e", label=EVIL, error=EVIL, traceback=EVIL)
    sweep = SweepInfo(EVIL, EVIL, {EVIL: EVIL})
    every = make_report_data(
        sweep=sweep,
        rows=rows,
        curves=curves,
        failures=[failure],
        how_to_open=EVIL,
        versions={EVIL: EVIL},
    )
    page = write_report(tmp_path, every).read_text(encoding="utf-8")
    parser = Tags()
    parser.feed(page)
    assert "script" not in parser.names
    assert page.count("&lt;script&gt;") >= 8
    assert "\x1b" not in re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL)


class Tags(HTMLParser):
    """Collects the names of all elements as a browser would see them."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)


def test_a_second_report_replaces_the_first_and_drops_figures_without_data(tmp_path: Path) -> None:
    write_report(tmp_path, make_report_data())
    write_report(tmp_path, make_report_data(rows=ROWS[-1:], curves=(), failures=()))
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "table.csv", "table.md"}
    assert "No merge has a dev score yet" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_an_empty_sweep_still_gives_a_page(tmp_path: Path) -> None:
    page = write_report(tmp_path, make_report_data(rows=(), curves=(), failures=(), references={}))
    assert "alpha ablation" in page.read_text(encoding="utf-8")


def test_more_series_than_colours_are_drawn(tmp_path: Path) -> None:
    rows = [
        ROWS[0],
        *(
            make_row(a, 0, 800 + i + a, dev=i, anchor_penalty=i / 10)
            for i in range(12)
            for a in (0.25, 1.0)
        ),
    ]
    assert (
        write_report(tmp_path, make_report_data(rows=rows)).parent / "alpha_curve.png"
    ).stat().st_size > 10_000


def test_the_published_scores_follow_from_the_published_metrics() -> None:
    for point in ALPHA_ABLATION:
        by_task: dict[str, list[float]] = {}
        for name, value in point.metrics.items():
            metric = METRICS[name]
            assert metric.fbank is not None and metric.sota is not None
            by_task.setdefault(metric.task, []).append(
                (value - metric.fbank) / (metric.sota - metric.fbank)
            )
        assert 1000 * np.mean([np.mean(values) for values in by_task.values()]) == pytest.approx(
            point.score, abs=0.01
        )


def test_the_published_numbers_are_those_of_the_paper() -> None:
    with PAPER_CSV.open(encoding="utf-8") as file:
        published = {
            float(item["alpha"]): item for item in csv.DictReader(file) if item["table"] == "14"
        }
    columns = ("PR_PER", "SID_ACC", "ER_ACC", "SF_F1", "SF_CER")
    assert {point.alpha for point in ALPHA_ABLATION} == set(published)
    for point in ALPHA_ABLATION:
        assert [float(published[point.alpha][column]) for column in columns] == list(
            point.metrics.values()
        )
        assert float(published[point.alpha]["superb_score"]) == point.score
