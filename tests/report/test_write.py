"""The files of a report: they are complete and self-contained, and every text is escaped."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speechft_ray.core.errors import UserError
from speechft_ray.core.metrics import METRICS
from speechft_ray.core.records import Outcome
from speechft_ray.report.published import ALPHA_ABLATION, is_paper_recipe
from speechft_ray.report.write import write_report
from speechft_ray.sweep.protocols import Curve, SweepInfo
from speechft_ray.sweep.space_file import read_space
from tests.report.report_data import CURVES, EVIL, ROWS, make_report_data, make_row

PACKAGE = Path(__file__).parents[2] / "speechft_ray"
PAPER_CSV = PACKAGE / "assets/paper/tables.csv"
SPACES = PACKAGE / "search_spaces"
FIGURES = ("alpha_curve", "tasks_by_alpha", "learning_curves", "published_comparison")
PAPER: dict[str, Any] = {"is_paper_recipe": True}


def test_a_folder_that_cannot_be_written_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"report folder `.*file.*` cannot be written"):
        write_report(tmp_path / "file" / "report", make_report_data())


def test_the_report_is_whole_and_self_contained(tmp_path: Path) -> None:
    page = write_report(tmp_path / "report", make_report_data(**PAPER))
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
    assert "url(" not in text and "@import" not in text
    list_charts(text)
    assert len(text.encode()) < 2_000_000
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
    folder = write_report(tmp_path, make_report_data(**PAPER)).parent
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
    labels = [trace["label"] for chart in list_charts(page) for trace in chart["traces"]]
    assert sum("<script>alert" in label for label in labels) >= 2
    assert page.count("&lt;script&gt;") >= 6
    assert "\x1b" not in re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL)
    assert "\x1b" not in "".join(labels)


def list_charts(page: str) -> list[dict[str, Any]]:
    """Returns the data of all charts, as a browser reads them; every script that would run must be
    one that the policy of the page names."""
    parser = Scripts()
    parser.feed(page)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; ") and "unsafe-eval" not in policy[1]
    (allowed,) = re.findall(r"script-src (.*)$", html.unescape(policy[1]))
    run = [text for kind, text in parser.scripts if kind is None]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in run]
    assert len(run) == 2
    assert allowed == " ".join(f"'sha256-{digest}'" for digest in digests)
    data = [json.loads(text) for kind, text in parser.scripts if kind == "application/json"]
    assert len(data) + len(run) == len(parser.scripts)
    return [chart for group in data for chart in group]


class Scripts(HTMLParser):
    """Collects the type and text of every script as a browser would see them."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[tuple[str | None, str]] = []
        self._is_inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            assert set(dict(attrs)) <= {"type"}
            self.scripts.append((dict(attrs).get("type"), ""))
            self._is_inside = True

    def handle_data(self, data: str) -> None:
        if self._is_inside:
            kind, text = self.scripts[-1]
            self.scripts[-1] = kind, text + data

    def handle_endtag(self, tag: str) -> None:
        self._is_inside = self._is_inside and tag != "script"


def test_a_second_report_replaces_the_first_and_drops_figures_without_data(tmp_path: Path) -> None:
    write_report(tmp_path, make_report_data(**PAPER))
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


def test_published_numbers_are_shown_only_beside_the_recipe_of_the_paper(tmp_path: Path) -> None:
    page = write_report(tmp_path, make_report_data()).read_text(encoding="utf-8")
    assert "874.68" not in page and "arxiv.org" not in page
    assert not (tmp_path / "published_comparison.png").exists()
    paper = read_space(SPACES / "paper" / "table09.yaml")
    assert is_paper_recipe(paper)
    assert not is_paper_recipe(read_space(SPACES / "alpha.yaml"))
    shorter = [run.model_copy(update={"updates": 3000}) for run in paper.finetune]
    assert not is_paper_recipe(paper.model_copy(update={"finetune": shorter}))
    assert not is_paper_recipe(paper.model_copy(update={"evaluate": paper.evaluate[:3]}))
    assert not is_paper_recipe(paper.model_copy(update={"encoder": "wavlm_base"}))


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
