"""The report: table numbers against numpy, every format read back, and pages that nothing can break
out of."""

from __future__ import annotations

import base64
import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from speechft_ray.core.errors import UserError
from speechft_ray.core.metrics import METRICS
from speechft_ray.core.records import Outcome
from speechft_ray.report.published import ALPHA_ABLATION
from speechft_ray.report.series import make_series
from speechft_ray.report.summary import (
    compare_with_control,
    find_winner,
    group_rows,
    headline,
    metric_names,
)
from speechft_ray.report.table import (
    csv_table,
    failure_lines,
    incomplete_lines,
    markdown_table,
    terminal_table,
)
from speechft_ray.report.write import ReportData, write_report
from speechft_ray.sweep.protocols import Curve, EncoderRow, SweepInfo

PAPER_CSV = Path(__file__).parents[2] / "../shared/data/paper_tables.csv"
REFERENCES = {"pr.per": (82.01, 2.55), "er.accuracy": (35.39, 70.68)}
FIGURES = ("alpha_curve", "tasks_by_alpha", "learning_curves", "published_comparison")
EVIL = '<script>alert("x")</script> $\\foo | `a` \x1b[31m & "q"'


def row(
    alpha: float,
    seed: int,
    score: float,
    *,
    dev: float,
    per: float = 5.0,
    complete: bool = True,
    **params: str | float,
) -> EncoderRow:
    where = (
        {"method": "none", "finetune": "none"}
        if alpha == 0
        else {"method": "linear", "finetune": "phones", "seed": seed}
    )
    metrics = {
        "pr.per": per,
        "er.accuracy": 65.0 + alpha,
        "dev.pr.per": per,
        "dev.er.accuracy": 66.0,
    }
    metrics |= {"score": score, "dev.score": dev, "spread.score": 2.5, "spread.pr.per": 0.25}
    if not complete:
        metrics = {"pr.per": per}
    return EncoderRow(
        f"{alpha}-{seed}-{params}", "row", {"alpha": alpha, **where, **params}, metrics, complete
    )


ROWS = [
    row(0.0, 0, 870.0, dev=869.0),
    row(0.25, 0, 876.0, dev=878.0, per=4.7),
    row(0.25, 1, 879.0, dev=877.0, per=4.9),
    row(0.25, 2, 877.0, dev=879.0, per=5.0),
    row(0.5, 0, 880.0, dev=860.0),  # best on test, not on dev: must not be chosen
    row(0.5, 1, 882.0, dev=861.0),
    row(1.0, 0, 730.0, dev=990.0),  # a control: its dev score must not count
    row(1.0, 1, 720.0, dev=990.0),
    row(0.75, 0, 0.0, dev=0.0, per=6.5, complete=False),
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


def findings(**changes: object) -> ReportData:
    sweep = SweepInfo("3f9a1c77b2de", "alpha ablation", {"encoder": "hubert_base"})
    known = {
        "sweep": sweep,
        "rows": ROWS,
        "curves": CURVES,
        "failures": [FAILURE],
        "references": REFERENCES,
    }
    return ReportData(
        **{
            **known,
            "how_to_open": "Open it with `mlflow ui`.",
            "versions": {"torch": "2.10.0"},
            **changes,
        }
    )


def test_rows_that_differ_in_seed_alone_are_one_line_with_mean_and_sample_deviation() -> None:
    line = next(group for group in group_rows(ROWS) if group.alpha == 0.25)
    scores, rates = [876.0, 879.0, 877.0], [4.7, 4.9, 5.0]
    assert line.count == 3
    assert line.spread_over == "fine-tuning seeds"
    assert line.score == pytest.approx(np.mean(scores))
    assert line.spread["score"] == pytest.approx(np.std(scores, ddof=1))
    assert line.mean["pr.per"] == pytest.approx(np.mean(rates))
    assert line.spread["pr.per"] == pytest.approx(np.std(rates, ddof=1))
    assert "spread.score" not in line.mean


def test_lines_are_ordered_by_test_score_and_the_star_is_chosen_on_dev_among_merges() -> None:
    lines = group_rows(ROWS)
    assert [group.title for group in lines] == [
        "alpha 0.5",
        "alpha 0.25",
        "pre-trained",
        "stable fine-tuning",
        "alpha 0.75",
    ]
    assert [group.title for group in lines if group.chosen] == ["alpha 0.25"]


def test_one_encoder_takes_its_spread_from_probe_seeds() -> None:
    control = next(group for group in group_rows(ROWS) if group.role == "pre-trained")
    assert control.spread == {"score": 2.5, "pr.per": 0.25}
    assert control.spread_over == "probe seeds"


def test_copies_of_the_pretrained_encoder_are_no_fine_tuning_seeds() -> None:
    copies = [
        ROWS[0],
        ROWS[0]._replace(
            key="copy", params={"alpha": 0, "method": "ties", "finetune": "other", "seed": 1}
        ),
    ]
    (line,) = group_rows(copies)
    assert (line.role, line.spread_over, line.spread["score"]) == (
        "pre-trained",
        "probe seeds",
        2.5,
    )


def test_the_same_row_twice_counts_once() -> None:
    assert group_rows([*ROWS, *ROWS]) == group_rows(ROWS)


def test_rows_of_equal_parameters_and_seed_are_never_averaged() -> None:
    twins = [
        ROWS[1],
        ROWS[1]._replace(key="other-encoder", metrics={**ROWS[1].metrics, "score": 500.0}),
    ]
    assert sorted(group.score or 0 for group in group_rows(twins)) == [500.0, 876.0]
    assert len({group.title for group in group_rows(twins)}) == 2


def test_incomplete_encoders_have_no_score_and_say_what_is_missing() -> None:
    line = group_rows(ROWS, expected=REFERENCES)[-1]
    assert (line.count, line.score) == (0, None)
    assert line.missing == ("seed 0: dev PR PER, ER ACC, dev ER ACC",)
    assert incomplete_lines([line]) == [
        "alpha 0.75: seed 0: dev PR PER, ER ACC, dev ER ACC missing"
    ]


def test_an_incomplete_seed_does_not_enter_the_mean() -> None:
    rows = [*ROWS, row(0.25, 3, 0.0, dev=0.0, per=50.0, complete=False)]
    line = next(group for group in group_rows(rows) if group.alpha == 0.25)
    assert line.count == 3
    assert line.mean["pr.per"] == pytest.approx(np.mean([4.7, 4.9, 5.0]))
    assert len(line.missing) == 1


def test_only_parameters_that_vary_are_in_titles() -> None:
    rows = [
        *ROWS,
        row(0.25, 0, 860.0, dev=1.0, anchor_penalty=0.01),
        row(0.25, 0, 861.0, dev=1.0, anchor_penalty=1e-4),
    ]
    titles = {group.title for group in group_rows(rows)}
    assert {
        "alpha 0.25",
        "alpha 0.25, anchor_penalty 0.01",
        "alpha 0.25, anchor_penalty 0.0001",
        "pre-trained",
    } < titles


def test_the_answer_names_difference_and_spread() -> None:
    lines = group_rows(ROWS)
    best, control = find_winner(lines), compare_with_control(lines, "pre-trained")
    assert best is not None and control is not None
    assert control.difference == pytest.approx(np.mean([876.0, 879.0, 877.0]) - 870.0)
    assert control.spread == pytest.approx(np.sqrt(np.var([876.0, 879.0, 877.0], ddof=1) + 2.5**2))
    assert control.verdict == "more than the spread, interval not known"
    assert headline(lines) == (
        "Best merge, chosen on dev: alpha 0.25. It scores 877.33 ± 1.53 on test: "
        "7.33 above pre-trained (more than the spread, interval not known), "
        "and 152.33 above stable fine-tuning (more than the spread, interval not known)."
    )


@pytest.mark.parametrize(
    ("score", "spreads", "verdict"),
    [
        (870.0, True, "within the spread"),
        (900.0, True, "more than the spread, interval not known"),
        (900.0, False, "spread not known: one seed only"),
    ],
)
def test_the_verdict(score: float, spreads: bool, verdict: str) -> None:
    rows = [ROWS[0], row(0.25, 0, score + 1.0, dev=1.0)]
    if not spreads:
        rows = [
            item._replace(
                metrics={k: v for k, v in item.metrics.items() if not k.startswith("spread")}
            )
            for item in rows
        ]
    found = compare_with_control(group_rows(rows), "pre-trained")
    assert found is not None
    assert found.verdict == verdict


def test_the_winner_is_compared_with_its_own_fine_tuning() -> None:
    other = [
        row(1.0, 0, 100.0, dev=2000.0, anchor_penalty=0.5),
        row(0.25, 0, 1.0, dev=1.0, anchor_penalty=0.5),
    ]
    found = compare_with_control(group_rows([*ROWS, *other]), "stable fine-tuning")
    assert found is not None
    assert found.control.score == pytest.approx(725.0)


def test_nothing_to_choose_is_said_in_words() -> None:
    assert (
        headline(group_rows([ROWS[0]])) == "No merge has a dev score yet, so none could be chosen."
    )
    assert group_rows([]) == []


def test_csv_reads_back_unrounded() -> None:
    lines = group_rows(ROWS)
    table = list(csv.DictReader(io.StringIO(csv_table(lines))))
    assert [item["title"] for item in table] == [group.title for group in lines]
    best = next(item for item in table if item["chosen"] == "1")
    assert float(best["score"]) == lines[1].mean["score"]
    assert float(best["pr.per.spread"]) == lines[1].spread["pr.per"]
    assert (best["alpha"], best["method"], best["finetune"], best["seeds"]) == (
        "0.25",
        "linear",
        "phones",
        "3",
    )
    assert table[-1]["score"] == ""
    assert "missing" in table[-1] and "ER ACC" in table[-1]["missing"]


def test_markdown_reads_back_and_names_cannot_leave_their_cell() -> None:
    rows = [*ROWS, row(0.1, 0, 600.0, dev=1.0, finetune=EVIL)]
    lines = group_rows(rows)
    text = markdown_table(EVIL, lines, [FAILURE], REFERENCES)
    table = [
        re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")
    ]
    assert {len(cells) for cells in table} == {5 + len(metric_names(lines))}
    assert len(table) == len(lines) + 2
    scores = [cells[3].strip() for cells in table[2:]]
    assert scores[:2] == ["881.00 ± 1.41", "877.33 ± 1.53"]
    assert "<script" not in text and "\x1b" not in text
    assert "evaluate er alpha=0.75: out of memory" in text


def test_failures_are_one_line_each() -> None:
    assert failure_lines([FAILURE]) == ["evaluate er alpha=0.75: out of memory"]


def test_the_terminal_table_fits_one_hundred_columns_and_loses_no_control() -> None:
    rows = [
        *ROWS,
        *(
            row(0.3 + i / 100, 0, i, dev=1.0, anchor_penalty=0.00123, finetune="a-long-name" * 4)
            for i in range(30)
        ),
    ]
    crowded = [
        item._replace(
            metrics={
                **item.metrics,
                **{name: known.sota or 50.0 for name, known in METRICS.items()},
            }
        )
        for item in rows
    ]
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(terminal_table(group_rows(crowded), most=5))
    text = console.export_text()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 100
    assert "…" not in text
    assert "pre-trained" in text and "stable fine-tuning" in text and "★" in text
    assert re.search(r"In table.csv: \d+ more lines, \d+ more metrics", " ".join(text.split()))


def test_every_series_starts_at_the_pretrained_encoder() -> None:
    (line,) = make_series(group_rows(ROWS), "score")
    assert [alpha for alpha, _ in line.points] == [0.0, 0.25, 0.5, 1.0]
    assert line.control is not None and line.control.score == 870.0


def test_a_later_stage_of_a_chain_does_not_start_at_the_pretrained_encoder() -> None:
    """Its alpha 0 is the merge that it was tuned from."""
    chain = [row(alpha, 0, 800.0, dev=800.0, finetune="phones>speakers") for alpha in (0.25, 1.0)]
    starts = {item.points[0][0] for item in make_series(group_rows([ROWS[0], *chain]), "score")}
    assert starts == {0.25}


def test_the_series_of_the_winner_comes_first_whatever_its_controls_do() -> None:
    other = [
        row(1.0, 0, 700.0, dev=9999.0, anchor_penalty=0.5),
        row(0.25, 0, 890.0, dev=2.0, anchor_penalty=0.5),
    ]
    first = make_series(group_rows([*other, *ROWS]), "score")[0]
    assert any(group.chosen for _, group in first.points)


def test_a_folder_that_cannot_be_written_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"report folder `.*file.*` cannot be written"):
        write_report(tmp_path / "file" / "report", findings())


def test_the_report_is_whole_and_self_contained(tmp_path: Path) -> None:
    page = write_report(tmp_path / "report", findings())
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
        "more than the spread",
        "3f9a1c77b2de",
        "mlflow ui",
        "out of memory",
        "874.68",
        "-26.45",
    ):
        assert expected in text, expected


def test_figures_are_pngs_of_a_readable_size(tmp_path: Path) -> None:
    folder = write_report(tmp_path, findings()).parent
    for name in FIGURES:
        content = (folder / f"{name}.png").read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
        assert width == 1440, name
        assert 300 <= height <= 1400, name


def test_everything_foreign_is_escaped(tmp_path: Path) -> None:
    rows = [
        *ROWS,
        row(0.25, 0, 800.0, dev=1.0, finetune=EVIL),
        row(0.25, 0, 801.0, dev=1.0, **{EVIL: EVIL}),
    ]
    curves = [*CURVES, Curve("e", EVIL, {"finetune": EVIL}, [(1, {EVIL: 1.0}), (2, {EVIL: 2.0})])]
    failure = Outcome(stage="merge", fingerprint="e", label=EVIL, error=EVIL, traceback=EVIL)
    sweep = SweepInfo(EVIL, EVIL, {EVIL: EVIL})
    every = findings(
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
    write_report(tmp_path, findings())
    write_report(tmp_path, findings(rows=ROWS[-1:], curves=(), failures=()))
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "table.csv", "table.md"}
    assert "No merge has a dev score yet" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_an_empty_sweep_still_gives_a_page(tmp_path: Path) -> None:
    page = write_report(tmp_path, findings(rows=(), curves=(), failures=(), references={}))
    assert "alpha ablation" in page.read_text(encoding="utf-8")


def test_more_series_than_colours_are_drawn(tmp_path: Path) -> None:
    rows = [
        ROWS[0],
        *(
            row(a, 0, 800 + i + a, dev=i, anchor_penalty=i / 10)
            for i in range(12)
            for a in (0.25, 1.0)
        ),
    ]
    assert (
        write_report(tmp_path, findings(rows=rows)).parent / "alpha_curve.png"
    ).stat().st_size > 10_000


def test_the_published_scores_follow_from_the_published_metrics() -> None:
    for point in ALPHA_ABLATION:
        by_task: dict[str, list[float]] = {}
        for name, value in point.metrics.items():
            known = METRICS[name]
            assert known.fbank is not None and known.sota is not None
            by_task.setdefault(known.task, []).append(
                (value - known.fbank) / (known.sota - known.fbank)
            )
        assert 1000 * np.mean([np.mean(values) for values in by_task.values()]) == pytest.approx(
            point.score, abs=0.01
        )


@pytest.mark.shared
@pytest.mark.skipif(not PAPER_CSV.is_file(), reason="needs ../shared/data/paper_tables.csv")
def test_the_published_numbers_are_those_of_the_paper() -> None:
    with PAPER_CSV.open(encoding="utf-8") as file:
        found = {
            float(item["alpha"]): item for item in csv.DictReader(file) if item["table"] == "14"
        }
    columns = ("PR_PER", "SID_ACC", "ER_ACC", "SF_F1", "SF_CER")
    assert {point.alpha for point in ALPHA_ABLATION} == set(found)
    for point in ALPHA_ABLATION:
        assert [float(found[point.alpha][column]) for column in columns] == list(
            point.metrics.values()
        )
        assert float(found[point.alpha]["superb_score"]) == point.score
