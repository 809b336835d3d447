"""Encodings at real lengths: once per utterance and encoder where the features fit, in proportion
where they do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.lengths import CORPORA, simulate_samples
from benchmarks.published import PAPER, PROTOCOLS, all_or_nothing_hours, format_costs, format_gpus
from benchmarks.rehearsal import Rehearsal, TaskResult, find_missed_aims, rehearse

DOCS = Path(__file__).parents[2] / "docs" / "performance.md"


def test_simulated_lengths_have_the_published_hours_at_any_scale() -> None:
    hours = {name: sum(item.hours for item in splits.values()) for name, splits in CORPORA.items()}
    published = {"librispeech": 111.4, "snips": 88.5, "voxceleb1": 351.0, "iemocap": 7.0}
    assert hours == pytest.approx(published, rel=2e-3)
    for count in (30, 5000):
        seconds = np.array(simulate_samples(CORPORA["librispeech"]["train"], count)) / 16_000
        assert seconds.mean() == pytest.approx(12.69, abs=0.01)
        assert seconds.std() == pytest.approx(3.5, abs=0.3)
        assert seconds.max() <= 17.6


def test_the_cost_model_has_the_hours_of_both_protocols() -> None:
    # PR by hand: 100,000 updates of 32, 100 validations and the test, at the published means.
    by_hand = (3_200_000 * 12.69 + 100 * 2_703 * 7.19 + 2_620 * 7.42) / 3600
    assert PROTOCOLS["pr"].loop_hours() == pytest.approx(by_hand)
    # What does not fit is encoded for every draw; dev fits, and test is encoded once.
    assert all_or_nothing_hours("pr") == pytest.approx(
        (3_200_000 * 12.69 + 2_703 * 7.19 + 2_620 * 7.42) / 3600
    )
    assert [all_or_nothing_hours(task) for task in ("sid", "er")] == [
        PROTOCOLS[task].hours for task in ("sid", "er")
    ]


def test_the_tables_of_the_docs_are_the_cost_model() -> None:
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    assert len(format_costs()) == len(PAPER) + 1
    for row in [*format_costs(), *format_gpus()]:
        assert row in lines


def test_every_utterance_is_encoded_once_and_its_front_end_once_for_all_encoders(
    tmp_path: Path,
) -> None:
    settings = Rehearsal(factor=1 / 4000, draws=0.03, cache_gb=1000.0, changes={"features": "int8"})
    results = rehearse(settings, ["pr", "asr", "sf"], tmp_path)
    # asr reads what pr stored of their corpus.
    once = {"pr": 1.0, "asr": 0.0, "sf": 1.0}
    assert {one.task: one.encodings for one in results} == once
    assert {one.task: one.front_ends for one in results} == once
    assert sum(one.hours for one in results) == pytest.approx(111.4 + 88.5, rel=2e-3)
    by_task = {one.task: one for one in results}
    assert by_task["pr"].features_gb == pytest.approx(200.7, rel=2e-3)
    assert by_task["pr"].front_ends_gb == pytest.approx(41.1, rel=2e-3)
    assert by_task["sf"].features_gb == pytest.approx(159.4, rel=2e-3)
    assert find_missed_aims(results) == []


def test_what_the_budget_does_not_hold_is_encoded_for_every_draw(tmp_path: Path) -> None:
    def run(share: float) -> TaskResult:
        settings = Rehearsal(
            factor=1 / 2000, draws=0.03, encoders=1, share=share, changes={"features": "int8"}
        )
        (result,) = rehearse(settings, ["pr"], tmp_path / str(share))
        return result

    nothing, most = run(0.0), run(0.6)
    assert nothing.features_gb == 0 and nothing.encodings > 2
    stored = most.features_gb / 200.7
    assert 0.4 < stored <= 0.6  # front ends of the rest take what is left
    expected = stored * 111.4 + (1 - stored) * nothing.hours
    assert most.hours == pytest.approx(expected, rel=0.2)
    assert find_missed_aims([most]) == [
        f"pr: each utterance encoded {most.encodings:.2f} times, aim 1"
    ]
