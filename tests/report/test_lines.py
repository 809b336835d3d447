"""Lines of the table, comparisons and series, against numpy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from speechft_ray.report.comparison import compare_with_controls, headline
from speechft_ray.report.lines import find_winner, group_rows, metric_names
from speechft_ray.report.series import make_series
from speechft_ray.report.table import csv_table, incomplete_lines, table_cells
from speechft_ray.stages.dev_is_test import mark_dev_is_test
from tests.report.report_data import REFERENCES, ROWS, make_row
from tests.sweep.fakes import sweep


def test_rows_that_differ_in_seed_alone_are_one_line_with_mean_and_sample_deviation() -> None:
    line = next(group for group in group_rows(ROWS) if group.alpha == 0.25)
    scores, rates = [876.0, 879.0, 877.0], [4.7, 4.9, 5.0]
    assert line.count == 3
    assert line.spread_over == "fine-tuning seeds"
    assert line.score == pytest.approx(np.mean(scores))
    assert line.spread["score"] == pytest.approx(np.std(scores, ddof=1))
    assert line.mean["pr.per"] == pytest.approx(np.mean(rates))
    assert line.spread["pr.per"] == pytest.approx(np.std(rates, ddof=1))
    assert set(line.mean) == {"pr.per", "er.accuracy", "score"}


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
    params: dict[str, str | float | int] = {
        "alpha": 0,
        "method": "ties",
        "finetune": "other",
        "seed": 1,
    }
    copies = [ROWS[0], replace(ROWS[0], key="copy", params=params)]
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
        replace(ROWS[1], key="other-encoder", test={**ROWS[1].test, "score": 500.0}),
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
    rows = [*ROWS, make_row(0.25, 3, 0.0, dev=0.0, per=50.0, complete=False)]
    line = next(group for group in group_rows(rows) if group.alpha == 0.25)
    assert line.count == 3
    assert line.mean["pr.per"] == pytest.approx(np.mean([4.7, 4.9, 5.0]))
    assert len(line.missing) == 1


def test_only_parameters_that_vary_are_in_titles() -> None:
    rows = [
        *ROWS,
        make_row(0.25, 0, 860.0, dev=1.0, anchor_penalty=0.01),
        make_row(0.25, 0, 861.0, dev=1.0, anchor_penalty=1e-4),
    ]
    titles = {group.title for group in group_rows(rows)}
    assert {
        "alpha 0.25",
        "alpha 0.25, lambda 0.01",
        "alpha 0.25, lambda 0.0001",
        "pre-trained",
    } < titles


def test_the_answer_names_the_differences_and_that_they_cannot_be_judged_without_counts() -> None:
    lines = group_rows(ROWS)
    control, _ = compare_with_controls(lines)
    assert control.difference == pytest.approx(np.mean([876.0, 879.0, 877.0]) - 870.0)
    assert headline(lines) == (
        "Best merge, chosen on dev: alpha 0.25. It scores 877.33 ± 1.53 on test: "
        "7.33 above pre-trained (not judged: not every metric has counts), "
        "and 152.33 above stable fine-tuning (not judged: not every metric has counts). "
        "On dev stable fine-tuning (990.00) scores higher than every merge (878.00)."
    )


def test_the_answer_says_that_test_selected_where_it_is_dev() -> None:
    def answer(**fields: Any) -> str:
        evaluations = [{"task": "sid", "corpus": {}, "updates": 1}, {"updates": 1, **fields}]
        return headline(group_rows(mark_dev_is_test(ROWS, sweep(evaluate=evaluations))))

    asv: dict[str, Any] = {"task": "asv", "corpus": {}}
    sentence = "Dev of ASV EER is the test set, as in s3prl, so this choice has seen it"
    assert sentence in answer(**asv)
    for fields in (
        {**asv, "options": {"protocol": "clean"}},
        {**asv, "in_score": False},
        {"task": "er", "corpus": {}},
    ):
        assert answer(**fields) == headline(group_rows(ROWS))


def test_a_line_with_fewer_seeds_cannot_win_by_that() -> None:
    lucky = [make_row(0.4, 0, 900.0, dev=985.0)]
    assert [line.title for line in group_rows([*ROWS, *lucky]) if line.chosen] == ["alpha 0.25"]
    more = [make_row(0.4, seed, 900.0, dev=885.0) for seed in (0, 1, 2)]
    assert [line.title for line in group_rows([*ROWS, *more]) if line.chosen] == ["alpha 0.4"]


def test_a_merge_that_was_not_tuned_cannot_win() -> None:
    note = "not tuned: phones kept the encoder of update 6"
    rows = [replace(row, untuned=note) if row.params["alpha"] == 0.25 else row for row in ROWS]
    assert [line.title for line in group_rows(rows) if line.chosen] == ["alpha 0.5"]
    assert [line.title for line in group_rows(rows, winner=rows[1].key) if line.chosen] == []
    every = [replace(row, untuned=note) if row.params["alpha"] else row for row in ROWS]
    lines = group_rows(every)
    assert find_winner(lines) is None
    assert headline(lines) == f"No merge could be chosen; {note}."
    assert f"alpha 0.5: {note}" in incomplete_lines(lines)
    assert "alpha 0.5 (not tuned)" in table_cells(lines[0], [])[1]


def test_a_control_that_a_search_chose_is_not_compared_with_itself() -> None:
    """The plain mean of the donors is alpha 1, whatever a search calls it."""
    controls = [row for row in ROWS if row.params["alpha"] in (0, 1)]
    lines = group_rows(controls, winner=controls[1].key)
    assert [item.control.role for item in compare_with_controls(lines)] == ["pre-trained"]
    assert headline(lines) == (
        "Best merge, chosen on dev: stable fine-tuning. It scores 725.00 ± 7.07 on test: 145.00 "
        "below pre-trained (not judged: not every metric has counts)."
    )
    lines = group_rows(controls, winner=controls[0].key)
    assert "On dev stable fine-tuning (990.00) scores higher" in headline(lines)


def test_the_winner_is_compared_with_its_own_fine_tuning() -> None:
    other = [
        make_row(1.0, 0, 100.0, dev=2000.0, anchor_penalty=0.5),
        make_row(0.25, 0, 1.0, dev=1.0, anchor_penalty=0.5),
    ]
    comparison = compare_with_controls(group_rows([*ROWS, *other]))[1]
    assert comparison.control.score == pytest.approx(725.0)


def test_nothing_to_choose_is_said_in_words() -> None:
    assert (
        headline(group_rows([ROWS[0]])) == "No merge has a dev score yet, so none could be chosen."
    )
    assert group_rows([]) == []
    tuned = make_row(1.0, 0, 100.0, dev=2000.0)
    assert "Every merge has alpha 1, which is a control" in headline(group_rows([ROWS[0], tuned]))


def test_every_series_starts_at_the_pretrained_encoder() -> None:
    (line,) = make_series(group_rows(ROWS), "score")
    assert [alpha for alpha, _ in line.points] == [0.0, 0.25, 0.5, 1.0]
    assert line.control is not None and line.control.score == 870.0


def test_what_was_tuned_and_not_merged_is_one_point_at_alpha_1() -> None:
    baselines = [
        make_row(1.0, 0, 820.0, dev=820.0, finetune="phones-l2sp", anchor_penalty=0.01),
        make_row(1.0, 0, 830.0, dev=830.0, finetune="phones-lora"),
    ]
    series = make_series(group_rows([*ROWS, *baselines]), "score")
    alphas = {item.title: [alpha for alpha, _ in item.points] for item in series}
    assert alphas == {
        "phones": [0.0, 0.25, 0.5, 1.0],
        "phones-l2sp, lambda 0.01": [1.0],
        "phones-lora": [1.0],
    }


def test_a_later_stage_of_a_chain_does_not_start_at_the_pretrained_encoder() -> None:
    """Its alpha 0 is the merge that it was tuned from."""
    chain = [
        make_row(alpha, 0, 800.0, dev=800.0, finetune="phones>speakers") for alpha in (0.25, 1.0)
    ]
    starts = {item.points[0][0] for item in make_series(group_rows([ROWS[0], *chain]), "score")}
    assert starts == {0.25}


def test_the_series_of_the_winner_comes_first_whatever_its_controls_do() -> None:
    other = [
        make_row(1.0, 0, 700.0, dev=9999.0, anchor_penalty=0.5),
        make_row(0.25, 0, 890.0, dev=2.0, anchor_penalty=0.5),
    ]
    first = make_series(group_rows([*other, *ROWS]), "score")[0]
    assert any(group.chosen for _, group in first.points)


def test_an_extra_metric_is_neither_a_column_nor_missing() -> None:
    """Trackers log it (``tests/tracking/test_mlflow.py``)."""
    rows = [replace(row, extra={"real_time_factor": 0.25}) for row in ROWS[:3]] + ROWS[3:]
    lines = group_rows(rows, expected=REFERENCES)
    assert [line.missing for line in lines] == [
        line.missing for line in group_rows(ROWS, expected=REFERENCES)
    ]
    assert metric_names(lines) == metric_names(group_rows(ROWS))
    assert csv_table(lines) == csv_table(group_rows(ROWS, expected=REFERENCES))
