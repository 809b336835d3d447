"""Intervals over test speakers, against formulas and simulations, and in the report."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats
from pydantic import ValidationError

from speechft_ray.core.counts import COUNTS_FILE, UtteranceCounts
from speechft_ray.core.score import superb_score
from speechft_ray.core.specs import CorpusSpec
from speechft_ray.core.store import Store
from speechft_ray.report import comparison
from speechft_ray.report.comparison import compare_with_controls, headline
from speechft_ray.report.intervals import compute_intervals, estimate_difference, read_counts
from speechft_ray.report.lines import add_intervals, group_rows
from speechft_ray.report.power import measure_spread
from speechft_ray.report.table import csv_table
from speechft_ray.report.write import write_report
from speechft_ray.sweep.inputs import Inputs
from speechft_ray.sweep.plan import make_plan
from speechft_ray.sweep.protocols import EncoderRow, Leak
from tests.report.report_data import make_report_data
from tests.sweep.fakes import sweep

Numbers = Sequence[float] | np.ndarray[Any, Any]

ACCURACY, PER = "er.accuracy", "pr.per"
REFERENCES = {ACCURACY: (35.39, 70.68), PER: (82.01, 2.55)}
ONE_METRIC = {ACCURACY: REFERENCES[ACCURACY]}


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
    low, high = compute_intervals([[[hit_counts([1] * 320 + [0] * 80)]]], {})[ACCURACY]
    half = 196.0 * (0.8 * 0.2 / 400) ** 0.5
    assert low == pytest.approx(80 - half, abs=0.05)
    assert high == pytest.approx(80 + half, abs=0.05)


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
        low, high = compute_intervals([[[error_counts(wrong[chosen], tokens[chosen])]]], {})[PER]
        hits += low <= true <= high
    assert 178 <= hits <= 198


def test_an_interval_of_few_speakers_is_covered_as_often_as_it_should() -> None:
    """Eight speakers of 5 to 80 utterances each, whose rates differ; utterances drawn one by one
    would cover 60 %."""
    random = np.random.default_rng(6)
    sizes = np.array([5, 10, 15, 20, 30, 40, 60, 80])
    speaker_of = np.repeat(np.arange(8), sizes)
    hits = naive = 0
    for _ in range(200):
        rates = np.clip(random.normal(0.7, 0.12, 8), 0, 1)
        counts = hit_counts(random.binomial(1, rates[speaker_of]))
        clustered = counts.model_copy(
            update={"speakers": tuple("abcdefgh"), "speaker_of": tuple(map(int, speaker_of))}
        )
        (low, high), (naive_low, naive_high) = (
            compute_intervals([[[item]]], {})[ACCURACY] for item in (clustered, counts)
        )
        hits += low <= 70 <= high
        naive += naive_low <= 70 <= naive_high
    assert (180 <= hits <= 198, naive < 150) == (True, True), (hits, naive)


def test_equal_encoders_differ_by_nothing_and_few_utterances_by_little() -> None:
    base = np.random.default_rng(1).integers(0, 2, 300)
    better = base.copy()
    better[np.flatnonzero(base == 0)[:12]] = 1
    same = estimate_difference([[[hit_counts(base)]]], [[[hit_counts(base)]]], ONE_METRIC)
    assert same is not None and not same.difference and not same.error
    other = estimate_difference([[[hit_counts(better)]]], [[[hit_counts(base)]]], ONE_METRIC)
    assert other is not None
    points = superb_score({ACCURACY: 4.0 + 35.39}, ONE_METRIC)  # 12 of 300
    assert other.difference == pytest.approx(points)
    # A paired proportion: 12 of 300 changed, all for the better.
    assert other.error == pytest.approx(points / 0.04 * (0.04 * 0.96 / 299) ** 0.5)


def test_seeds_and_encoders_of_a_line_are_averaged() -> None:
    random = np.random.default_rng(2)
    seeds = random.integers(0, 2, (4, 50))
    line = compute_intervals([[[hit_counts(*seeds[:2])]], [[hit_counts(*seeds[2:])]]], {})
    values = 100 * seeds.mean(0)
    half = scipy.stats.t.ppf(0.975, 49) * values.std(ddof=1) / 50**0.5
    assert line[ACCURACY] == pytest.approx((values.mean() - half, values.mean() + half))


def test_a_score_adds_up_independent_test_sets_and_a_speaker_of_two_counts_once() -> None:
    random = np.random.default_rng(3)
    hits, wrong = random.integers(0, 2, 80), random.integers(0, 9, 80)
    tests = [[hit_counts(hits)], [error_counts(wrong, [20] * 80, utterances="other")]]
    score = superb_score({ACCURACY: 100 * hits.mean(), PER: 5 * wrong.mean()}, REFERENCES)

    def standard_error(shared: bool) -> float:
        speakers = {"speaker_of": tuple(range(80))}
        names = [tuple(f"{'' if shared else place}{i}" for i in range(80)) for place in (0, 1)]
        named = [
            [counts.model_copy(update={"speakers": own, **speakers})]
            for (counts,), own in zip(tests, names, strict=True)
        ]
        low, high = compute_intervals([named], REFERENCES)["score"]
        assert (low + high) / 2 == pytest.approx(score)
        return (high - low) / 2

    slopes = [500 / (70.68 - 35.39), 500 / (2.55 - 82.01)]
    parts = [slopes[0] * 100 * hits, slopes[1] * 5 * wrong]
    variances = [part.var(ddof=1) / 80 for part in parts]
    degrees = sum(variances) ** 2 / sum(variance**2 / 79 for variance in variances)
    quantile = scipy.stats.t.ppf(0.975, degrees)
    assert standard_error(shared=False) == pytest.approx(quantile * sum(variances) ** 0.5)
    together = (parts[0] + parts[1]).var(ddof=1) / 80
    assert standard_error(shared=True) == pytest.approx(quantile * together**0.5)


def test_folds_are_test_sets_of_their_own_and_averaged() -> None:
    folds = [
        hit_counts([1] * 30 + [0] * 10, utterances="first"),
        hit_counts([1, 0] * 20, utterances="second"),
    ]
    low, high = compute_intervals([[folds]], {})[ACCURACY]
    assert (low + high) / 2 == pytest.approx((75 + 50) / 2)
    half = 100 * 1.99 * ((0.75 * 0.25 + 0.5 * 0.5) / 39 / 4) ** 0.5
    assert high - low == pytest.approx(2 * half, rel=0.01)


def test_what_was_not_counted_or_is_another_test_set_has_no_interval() -> None:
    counts, other = hit_counts([1, 0, 1]), hit_counts([1, 0, 1], utterances="other")
    assert compute_intervals([[[]]], REFERENCES) == {}
    assert compute_intervals([[[counts]], [[other]]], REFERENCES) == {}
    assert sorted(compute_intervals([[[counts]]], REFERENCES)) == [ACCURACY]  # no score without PER
    assert estimate_difference([[[counts]]], [[[other]]], ONE_METRIC) is None
    assert estimate_difference([[[counts]]], [[[counts]]], REFERENCES) is None
    assert compute_intervals([[[hit_counts([1])]]], {}) == {}  # one utterance has no spread


def test_intervals_stay_within_what_a_percentage_can_be() -> None:
    low, high = compute_intervals([[[hit_counts([1] * 19 + [0])]]], {})[ACCURACY]
    assert low < 95 and high == 100
    low, high = compute_intervals([[[error_counts([1, 0, 0], [4, 4, 4])]]], {})[PER]
    assert low == 0 < high


def test_counts_of_speakers_must_be_parallel() -> None:
    hits = {"utterances": "u", "amounts": {PER: ((1, 2),)}, "of": {PER: (1, 1)}}
    for speakers, message in (((0,), "not one speaker"), ((0, 1), "`speakers` lacks")):
        with pytest.raises(ValidationError, match=message):
            UtteranceCounts.model_validate({**hits, "speakers": ("a",), "speaker_of": speakers})


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


def test_the_spread_behind_a_power_is_that_of_the_differences() -> None:
    """Three fine-tuning seeds of one merge; the variance of their mean is what the interval has."""
    random = np.random.default_rng(7)
    rows = [make_encoder(0.0, 0, random.integers(0, 2, 300).tolist())]
    rows += [make_encoder(0.25, seed, (random.random(300) < 0.6).tolist()) for seed in range(3)]
    lines = add_intervals(
        group_rows([row for row, _ in rows]), {row.key: tests for row, tests in rows}, ONE_METRIC
    )
    spread = measure_spread(lines, "pre-trained")
    assert spread is not None
    control, merge = ([tests for row, tests in rows if row.params["alpha"] == a] for a in (0, 0.25))
    result = estimate_difference(merge, control, ONE_METRIC)
    assert result is not None
    assert spread.speakers + spread.seed / 3 == pytest.approx(float(result.error) ** 2)
    assert spread.speaker_degrees == pytest.approx(299, rel=0.01)
    assert measure_spread(lines[:2], "stable fine-tuning") is None


@pytest.mark.parametrize(("gained", "is_different"), [(40, True), (3, False), (0, False)])
def test_different_is_an_interval_without_zero(gained: int, is_different: bool) -> None:
    """Three utterances more of 400 are twenty points of the score: they may be luck."""
    random = np.random.default_rng(4)
    before = random.integers(0, 2, 400)
    after = before.copy()
    after[np.flatnonzero(before == 0)[: gained + 9]] = 1
    after[np.flatnonzero(before == 1)[:9]] = 0  # as many lost as won, beside the gain
    rows = [make_encoder(0.0, 0, before.tolist()), make_encoder(0.25, 0, after.tolist())]
    lines = add_intervals(
        group_rows([row for row, _ in rows]), {row.key: tests for row, tests in rows}, ONE_METRIC
    )
    (comparison,) = compare_with_controls(lines)
    assert comparison.interval is not None
    low, high = comparison.interval
    assert low <= comparison.difference <= high
    scope = "different for this encoder and this probe: 95 % interval"
    assert comparison.verdict.startswith(scope if is_different else "not different: 95 % interval")
    assert (low > 0) == is_different
    text = headline(lines)
    assert comparison.verdict in text
    assert "With one fine-tuning seed this is about this encoder, not about the recipe." in text
    assert "With one probe seed it is about this probe" in text
    assert "The speakers of ER ACC are not known" in text


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
            ends = group.intervals[name]
            assert ends[0] < group.mean[name] < ends[1]
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


def test_seeds_that_both_lines_have_are_compared_and_the_scope_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In whatever order and number the lines have their seeds."""

    def make_line(score: float, role: str, *seeds: int) -> Any:
        tests = {str(seed): f"{role} {seed}" for seed in seeds}
        return SimpleNamespace(tests=tests, score=score, role=role, count=len(seeds))

    best, tuned = make_line(90.0, "merge", 0, 1, 2), make_line(80.0, "fine-tuned", 2, 1)
    pair: Any = comparison._pair(best, tuned)
    assert pair == (["merge 1", "merge 2"], ["fine-tuned 1", "fine-tuned 2"])
    monkeypatch.setattr(comparison, "_count_probes", lambda encoders: 1)
    result: Any = SimpleNamespace(interval=lambda judged: (1.0, 7.0), difference=4.0)
    # Two of three seeds: the difference of these, not that of the lines
    partial = comparison._compare(best, tuned, pair, result, 1)
    assert (partial.difference, partial.seeds, partial.is_partial) == (4.0, 2, True)
    assert partial.scope == ()  # each seed has a probe of its own
    # The pre-trained encoder has one probe for all seeds
    start = make_line(70.0, "pre-trained", 0)
    with_start = comparison._compare(best, start, comparison._pair(best, start), result, 1)
    assert (with_start.difference, with_start.is_partial) == (20.0, False)
    assert with_start.scope == ("this probe",)
    alone = make_line(90.0, "merge", 0)
    one = comparison._compare(alone, alone, comparison._pair(alone, alone), result, 1)
    assert one.scope == ("this encoder", "this probe")
