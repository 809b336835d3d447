"""The paper's tables as data: every row has its search space, its line and its claims."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from speechft_ray.commands.checks import check_names
from speechft_ray.commands.paper import embed, parse_tables
from speechft_ray.commands.parts import SEARCH_SPACES
from speechft_ray.core.errors import UserError
from speechft_ray.core.fingerprint import canonical_json
from speechft_ray.core.records import Job
from speechft_ray.core.score import paper_references, superb_score
from speechft_ray.report.lines import TableLine, group_rows
from speechft_ray.report.paper_claims import FAILS, HOLDS, OPEN, judge_claims, list_claims
from speechft_ray.report.paper_page import make_table, render_paper_markdown, render_paper_page
from speechft_ray.report.paper_tables import (
    LATER,
    SPACES,
    PublishedRow,
    compute_sampling_error,
    find_line,
    list_rows,
    name_table,
    read_published_rows,
)
from speechft_ray.sweep.inputs import Inputs
from speechft_ray.sweep.plan import Plan, make_plan
from speechft_ray.sweep.protocols import EncoderRow
from speechft_ray.sweep.space_file import read_space

PAPER = SEARCH_SPACES / "paper"
MODELS = {"table06_wav2vec2_base": "wav2vec 2.0 Base", "table06_decoar2": "DeCoAR 2.0"}


def plan_space(name: str) -> Plan:
    """Plans a space on corpora that are known by their specs alone."""
    spec = read_space(PAPER / f"{name}.yaml")
    inputs = Inputs(encoder=spec.encoder, corpus=lambda item: (canonical_json(item), False))
    return make_plan(spec, inputs)


@pytest.fixture(scope="module")
def plans() -> dict[str, Plan]:
    return {path.stem: plan_space(path.stem) for path in sorted(PAPER.glob("*.yaml"))}


def make_lines(plan: Plan, table: int, model: str = "") -> list[TableLine]:
    """Returns the lines of a finished sweep whose scores are the published ones."""
    rows = []
    for planned in plan.rows:
        row = EncoderRow(
            key=planned.key,
            title=planned.title,
            params=planned.params,
            test={"score": 1.0},
            dev={"score": 1.0},
            complete=True,
        )
        rows.append(row)
    return group_rows(rows)


def test_all_tables_together_are_what_the_paper_trained_and_evaluated(
    plans: dict[str, Plan],
) -> None:
    """25 trainings and 48 encoders on four tasks; Chinese ASR for three of them, and the six other
    tasks of SUPERB for three: counted from the rows of the tables. The later version's table adds
    three trainings (LoRA, DoRA, and one that keeps a checkpoint) and what they leave."""
    (later,) = SPACES[LATER]
    jobs: dict[str, Job] = {}
    for name, plan in plans.items():
        jobs |= plan.jobs if name != later else {}
    more = Counter(job.stage for key, job in plans[later].jobs.items() if key not in jobs)
    assert more == {"finetune": 3, "merge": 3, "evaluate": 12}
    stages = Counter(job.stage for job in jobs.values())
    assert stages["finetune"] == 25 and stages["merge"] == 48
    specs = [job.payload["spec"] for job in jobs.values() if job.stage == "evaluate"]
    tasks = Counter(spec["task"] for spec in specs)  # type: ignore[index, call-overload]
    assert tasks.pop("asr_zh") == 3
    assert {tasks.pop(task) for task in ("pr", "sid", "er", "sf")} == {48}
    assert tasks == dict.fromkeys(("asr", "ks", "qbe", "asv", "sd", "ic"), 3)


def test_every_row_of_every_table_is_a_line_of_its_search_space(plans: dict[str, Plan]) -> None:
    assert set(SPACES) == {row.table for row in read_published_rows()} == set(range(1, 18))
    for row in read_published_rows():
        if row.table == 15:  # references of the score
            continue
        spaces = [name for name in SPACES[row.table] if MODELS.get(name, row.model) == row.model]
        (space,) = spaces
        line = find_line(row, make_lines(plans[space], row.table))
        assert line is not None, row
        assert line.params["alpha"] == row.alpha


def test_different_rows_of_a_table_are_different_lines(plans: dict[str, Plan]) -> None:
    for table, spaces in SPACES.items():
        for space in spaces:
            rows = [row for row in list_rows(table) if MODELS.get(space, row.model) == row.model]
            lines = [find_line(row, make_lines(plans[space], table)) for row in rows]
            assert len({id(line) for line in lines}) == len(rows), (table, space)


def test_the_sampling_error_of_a_published_score() -> None:
    """By hand for the pre-trained row: SID 81.86 % of 8,251 is one of 2.63 points a percent, ER
    64.99 % of 5,531 of 7.08 points."""
    (row,) = [row for row in list_rows(1) if row.method == "Pre-trained"]
    sid = 2.627 * 100 * (0.8186 * 0.1814 / 8251) ** 0.5
    er = 7.084 * 100 * (0.6499 * 0.3501 / 5531) ** 0.5
    error = compute_sampling_error(row)
    assert error == pytest.approx((sid**2 + er**2) ** 0.5, rel=1e-3)
    assert error == pytest.approx(4.68, abs=0.01)
    assert compute_sampling_error(list_rows(16)[0]) is None


def test_what_the_noise_of_the_published_numbers_leaves_of_table_1() -> None:
    claims = [item for item in judge_claims(1, []) if "pre-trained" in item.claim.sentence]
    assert len(claims) == 8 and {item.verdict for item in claims} == {OPEN}
    certain = {item.claim.first.task for item in claims if item.published_verdict == HOLDS}
    assert certain == {"ASR on TED-LIUM", "PR on LibriSpeech", "ER on IEMOCAP"}
    assert all(item.published > 0 for item in claims)


def test_claims_without_results_are_open_and_no_table_is_forgotten() -> None:
    by_table = {table: list_claims(table) for table in SPACES}
    assert {table for table, claims in by_table.items() if claims} == {
        *(1, 3, 4, 6, 7, 8, 9, 10, 16),
        LATER,
    }
    verdicts = [item for table in SPACES for item in judge_claims(table, [])]
    assert {item.verdict for item in verdicts} == {OPEN}
    assert FAILS not in {item.published_verdict for item in verdicts}


def score_of(row: PublishedRow) -> float:
    return row.values["score"]


def test_published_scores_follow_from_the_metrics() -> None:
    row = next(row for row in list_rows(4) if row.strategy == "Sequential")
    values = {name: value for name, value in row.values.items() if name != "score"}

    assert superb_score(values, paper_references(values)) == pytest.approx(score_of(row), abs=0.01)


@pytest.mark.parametrize("path", sorted(PAPER.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_embedded_scale_keeps_what_makes_a_table(path: Path) -> None:
    spec = read_space(path)
    embedded, notes = embed(spec)
    check_names(embedded)
    assert embedded.merge == spec.merge
    pairs = zip(spec.finetune, embedded.finetune, strict=True)
    for run, own in pairs:
        assert (run.name, run.after, run.anchor_penalty, run.head_only_fraction) == (
            own.name,
            own.after,
            own.anchor_penalty,
            own.head_only_fraction,
        )
        assert [item.head for item in run.objectives] == [item.head for item in own.objectives]
        assert {item.corpus.name for item in own.objectives} == {"synthetic"}
    assert [item.task for item in embedded.evaluate] == [item.task for item in spec.evaluate]
    assert {item.corpus.name for item in embedded.evaluate} == {"synthetic"}
    assert bool(notes) == path.stem.startswith("table06")  # of two models, one is there


def test_the_page_has_every_number_of_the_tables(plans: dict[str, Plan]) -> None:
    tables = []
    for table, spaces in SPACES.items():
        lines = {
            MODELS.get(name, "") if len(spaces) > 1 else "": make_lines(plans[name], table)
            for name in spaces
        }
        tables.append(make_table(table, lines, ["Without <qbe>."]))
    for text in (render_paper_page(tables, "Ours."), render_paper_markdown(tables, "Ours.")):
        for row in read_published_rows():
            for name, value in row.values.items():
                digits = 4 if name == "qbe.mtwv" else 2
                assert f"{value:.{digits}f}" in text
    assert "<qbe>" not in render_paper_page(tables, "Ours.")


def test_tables_are_named_by_their_numbers() -> None:
    assert parse_tables([]) == parse_tables(["all"]) == [*range(1, 17), LATER]
    assert parse_tables(["9", "VIII", "4", "9"]) == [4, 9, LATER]
    assert name_table(LATER) == "VIII" and name_table(9) == "9"
    for text in ("17", "0", "nine", "-1", "²"):
        with pytest.raises(UserError, match=f"no table `{text}`"):
            parse_tables([text])
