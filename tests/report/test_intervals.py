"""The bootstrap over test utterances, against formulas and single draws, and in the report."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from speechft_ray.core.counts import COUNTS_FILE, UtteranceCounts
from speechft_ray.core.score import superb_score
from speechft_ray.core.specs import CorpusSpec
from speechft_ray.core.store import Store
from speechft_ray.report.comparison import compare_with_control, headline
from speechft_ray.report.intervals import DRAWS, bootstrap, percentile_interval, read_counts
from speechft_ray.report.lines import add_intervals, group_rows
from speechft_ray.report.table import csv_table
from speechft_ray.report.write import write_report
from speechft_ray.sweep.plan import Inputs, make_plan
from speechft_ray.sweep.protocols import EncoderRow, Leak
from tests.report.report_data import make_report_data
from tests.sweep.fakes import sweep

Numbers = Sequence[float] | np.ndarray[Any, Any]

ACCURACY, PER = "er.accuracy", "pr.per"
REFERENCES = {ACCURACY: (35.39, 70.68), PER: (82.01, 2.55)}


def hit_counts(*seeds: Numbers, utterances: str = "test") -> UtteranceCounts:
    return UtteranceCounts(
        utterances=utterances,
        amounts={ACCURACY: tuple(tuple(map(int, seed)) for seed in seeds)},
        of={ACCURACY: (1,) * len(seeds[0])},
    )


def error_counts(wrong: Numbers, tokens: Numbers, utterances: str = "test") -> UtteranceCounts:
    return UtteranceCounts(
        utterances=utterances,
        amounts={PER: (tuple(map(int, wrong)),)},
        of={PER: tuple(map(int, tokens))},
    )


def test_an_accuracy_has_the_interval_of_a_binomial() -> None:
    (resampled,) = bootstrap([[[[hit_counts([1] * 320 + [0] * 80)]]]], {})
    low, high = percentile_interval(resampled[ACCURACY])
    half = 196.0 * (0.8 * 0.2 / 400) ** 0.5
    assert low == pytest.approx(80 - half, abs=0.5)
    assert high == pytest.approx(80 + half, abs=0.5)
    assert len(resampled[ACCURACY]) == DRAWS and resampled[ACCURACY].mean() == pytest.approx(
        80.0, abs=0.3
    )


def test_an_error_rate_of_utterances_of_different_length_is_covered_as_often_as_it_should() -> None:
    """The rate of the whole population lies in 95 % of the intervals of samples from it: of 200, in
    190 give or take 12."""
    random = np.random.default_rng(0)
    tokens = random.integers(5, 60, 20_000)
    wrong = random.binomial(tokens, random.beta(2, 8, 20_000))
    true = 100 * wrong.sum() / tokens.sum()
    hits = 0
    for _ in range(200):
        chosen = random.integers(20_000, size=120)
        (resampled,) = bootstrap([[[[error_counts(wrong[chosen], tokens[chosen])]]]], {})
        low, high = percentile_interval(resampled[PER])
        hits += low <= true <= high
    assert 178 <= hits <= 198


def test_two_encoders_are_drawn_together() -> None:
    """What is equal on every utterance differs by nothing at all; a few utterances differ by
    little, whatever is drawn."""
    base = np.random.default_rng(1).integers(0, 2, 300)
    better = base.copy()
    better[np.flatnonzero(base == 0)[:12]] = 1
    same, twin, other = bootstrap(
        [[[[hit_counts(base)]]], [[[hit_counts(base)]]], [[[hit_counts(better)]]]], {}
    )
    assert np.array_equal(same[ACCURACY], twin[ACCURACY])
    low, high = percentile_interval(other[ACCURACY] - same[ACCURACY])
    assert 0 < low < 100 * 12 / 300 < high
    assert high - low < 0.5 * (
        percentile_interval(same[ACCURACY])[1] - percentile_interval(same[ACCURACY])[0]
    )


def test_seeds_and_encoders_of_a_line_are_averaged_first() -> None:
    random = np.random.default_rng(2)
    seeds = random.integers(0, 2, (4, 50))
    line, plain = bootstrap(
        [[[[hit_counts(*seeds[:2])]], [[hit_counts(*seeds[2:])]]], [[[hit_counts(seeds[0])]]]], {}
    )
    singles = bootstrap([[[[hit_counts(seed)]]] for seed in seeds], {})
    np.testing.assert_allclose(
        line[ACCURACY], np.mean([single[ACCURACY] for single in singles], axis=0)
    )
    np.testing.assert_array_equal(plain[ACCURACY], singles[0][ACCURACY])


def test_the_score_is_that_of_every_draw_and_tasks_are_drawn_apart() -> None:
    random = np.random.default_rng(3)
    tests = [
        [hit_counts(random.integers(0, 2, 80))],
        [error_counts(random.integers(0, 9, 80), [20] * 80)],
    ]
    (resampled,) = bootstrap([[tests]], REFERENCES)
    for place in (0, 17, DRAWS - 1):
        values = {name: float(resampled[name][place]) for name in (ACCURACY, PER)}
        assert resampled["score"][place] == pytest.approx(superb_score(values, REFERENCES))
    assert abs(np.corrcoef(resampled[ACCURACY], resampled[PER])[0, 1]) < 0.1


def test_folds_are_drawn_each_and_averaged() -> None:
    folds = [
        hit_counts([1] * 30 + [0] * 10, utterances="first"),
        hit_counts([1, 0] * 20, utterances="second"),
    ]
    (resampled,) = bootstrap([[[folds]]], {})
    assert resampled[ACCURACY].mean() == pytest.approx((75 + 50) / 2, abs=0.5)
    half = 100 * 1.96 * ((0.75 * 0.25 + 0.5 * 0.5) / 40 / 4) ** 0.5
    low, high = percentile_interval(resampled[ACCURACY])
    assert high - low == pytest.approx(2 * half, rel=0.12)


def test_what_was_not_counted_or_is_another_test_set_has_no_interval() -> None:
    other = hit_counts([1, 0, 1], utterances="other")
    resampled = bootstrap([[[[hit_counts([1, 0, 1])]]], [[[other]]], [[[]]], []], REFERENCES)
    assert [sorted(values) for values in resampled] == [[ACCURACY], [], [], []]
    assert bootstrap([], REFERENCES) == [] and bootstrap([[]], {}) == [{}]


def test_a_draw_without_any_reference_token_is_left_out() -> None:
    (resampled,) = bootstrap([[[[error_counts([1, 0, 0], [4, 0, 0])]]]], {})
    values = resampled[PER]
    assert 0.1 < np.isnan(values).mean() < 0.5  # (2/3)^3
    assert percentile_interval(values) == (25.0, 25.0)


def test_counts_must_be_parallel() -> None:
    with pytest.raises(ValidationError, match="not one amount per utterance"):
        UtteranceCounts(utterances="u", amounts={PER: ((1, 2),)}, of={PER: (1,)})


def test_counts_are_read_from_the_store_and_damage_only_costs_the_interval(tmp_path: Path) -> None:
    plan = make_plan(sweep(), Inputs(encoder="e", corpus=lambda spec: (CorpusSpec.__name__, False)))
    store = Store(tmp_path)
    stored = [hit_counts([1, 0, 1]).model_dump(mode="json")]
    contents = [json.dumps(stored), "{broken", json.dumps([{"utterances": 3}]), None]
    for place, row in enumerate(plan.rows):
        for key in row.evaluations if place < len(contents) else ():
            with store.publish("evaluate", key, {}) as folder:
                if contents[place] is not None:
                    (folder / COUNTS_FILE).write_text(contents[place] or "")
    counts = read_counts(plan, store)
    for row, content in zip(plan.rows, contents, strict=False):
        expected = [[hit_counts([1, 0, 1])]] if content == contents[0] else [[]]
        assert counts[row.key] == expected * len(row.evaluations)
    assert set(counts) == {row.key for row in plan.rows[: len(contents)]}


def make_encoder(
    alpha: float, seed: int, hits: Sequence[int]
) -> tuple[EncoderRow, list[list[UtteranceCounts]]]:
    """A row whose score is its accuracy on the line of ``REFERENCES``, and its counts."""
    accuracy = 100 * sum(hits) / len(hits)
    score = superb_score({ACCURACY: accuracy}, {ACCURACY: REFERENCES[ACCURACY]})
    row = EncoderRow(
        key=f"{alpha}-{seed}",
        title="row",
        params={"alpha": alpha, "method": "linear", "finetune": "phones", "seed": seed},
        test={ACCURACY: accuracy, "score": score},
        dev={"score": 1.0 - alpha},
        spread={"score": 0.5},
        complete=True,
    )
    return row, [[hit_counts(hits)]]


@pytest.mark.parametrize(
    ("gained", "verdict"),
    [(40, "different: more than the"), (3, "not different: more than the"), (0, "within the")],
)
def test_different_means_more_than_the_spread_and_an_interval_without_zero(
    gained: int, verdict: str
) -> None:
    """Three utterances more of 400 are twenty points of the score, far above the spread of seeds:
    they may be luck."""
    random = np.random.default_rng(4)
    before = random.integers(0, 2, 400)
    after = before.copy()
    after[np.flatnonzero(before == 0)[: gained + 9]] = 1
    after[np.flatnonzero(before == 1)[:9]] = 0  # as many lost as won, beside the gain
    rows = [make_encoder(0.0, 0, before.tolist()), make_encoder(0.25, 0, after.tolist())]
    lines = add_intervals(
        group_rows([row for row, _ in rows]),
        {row.key: tests for row, tests in rows},
        {ACCURACY: REFERENCES[ACCURACY]},
    )
    comparison = compare_with_control(lines, "pre-trained")
    assert (
        comparison is not None and comparison.interval is not None and comparison.spread is not None
    )
    low, high = comparison.interval
    assert low <= comparison.difference <= high
    assert comparison.verdict.startswith(verdict)
    assert (low > 0) == (gained == 40)
    assert comparison.verdict in headline(lines)


def test_the_report_shows_intervals_and_leaks(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    rows = [
        make_encoder(alpha, 0, random.binomial(1, 0.5 + alpha, 200).tolist())
        for alpha in (0.0, 0.25)
    ]
    tests = {row.key: counts for row, counts in rows}
    leaks = {rows[1][0].key: [Leak("<b>", "er", 3, 200, 0, 0)]}
    data = make_report_data(
        rows=[row for row, _ in rows],
        tests=tests,
        leaks=leaks,
        references={ACCURACY: REFERENCES[ACCURACY]},
    )
    page = write_report(tmp_path, data)
    lines = add_intervals(group_rows(data.rows), tests, data.references)
    table = {
        item["title"]: item
        for item in csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text()))
    }
    text = page.read_text(encoding="utf-8")
    for group in lines:
        for name in ("score", ACCURACY):
            ends = group.interval(name)
            assert ends is not None and ends[0] < group.mean[name] < ends[1]
            assert (
                float(table[group.title][f"{name}.low"]),
                float(table[group.title][f"{name}.high"]),
            ) == ends
            assert f"<small>{ends[0]:.2f} to {ends[1]:.2f}</small>" in text
    assert (
        "† &lt;b&gt; was tuned on 3 of the 200 test utterances of er." in text
        and text.count(" †</small>") == 1
    )
    assert "dev.score.low" not in table["pre-trained"]
    assert ".low" not in csv_table(group_rows(data.rows))  # nothing counted, nothing shown
