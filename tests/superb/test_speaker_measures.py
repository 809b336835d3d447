"""EER, DER and MTWV against hand-worked cases and against other programs."""

from __future__ import annotations

import importlib.util
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from speechft_ray.core.errors import UserError
from speechft_ray.superb.measures.der import Turn, diarization_error_rate, errors_and_speech
from speechft_ray.superb.measures.eer import equal_error_rate
from speechft_ray.superb.measures.mtwv import BETA, maximum_term_weighted_value
from tests.superb.references import RECORDINGS

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize(
    ("same", "scores", "eer"),
    [
        ([True, True, False, False], [0.9, 0.8, 0.2, 0.1], 0.0),
        ([True, True, False, False], [0.1, 0.2, 0.8, 0.9], 100.0),
        ([True, False], [0.5, 0.5], 50.0),  # one threshold: the line from (0, 0) to (1, 1)
        (
            [True, True, False, False],
            [0.9, 0.4, 0.6, 0.1],
            50.0,
        ),  # at 0.6 half of each kind is wrong
        # Accepted from the top: T, T, F, T, F, F: (0, 2/3) -> (1/3, 2/3) meets 1 - x at 1/3.
        ([True, True, False, True, False, False], [6, 5, 4, 3, 2, 1], 100 / 3),
        # (0, 1/2), then both of a tie at once to (1/3, 1): 1/2 + 3x/2 = 1 - x, so x = 1/5.
        ([True, False, True, False, False], [5, 4, 4, 3, 2], 20.0),
        # What is not finite is wrong, on either side and wherever it stands.
        ([True, True, False, False], [math.nan] * 4, 100.0),
        ([True, True, False, False], [0.9, 0.8, math.nan, math.nan], 100.0),
        ([True, False, True, False], [0.9, 0.2, math.nan, 0.1], 50.0),
    ],
)
def test_equal_error_rates_by_hand(same: list[bool], scores: list[float], eer: float) -> None:
    assert equal_error_rate(same, scores) == pytest.approx(eer)


@pytest.mark.parametrize("seed", range(6))
def test_equal_error_rates_are_those_of_s3prl(seed: int) -> None:
    package = importlib.util.find_spec("s3prl")
    if package is None or not package.submodule_search_locations:
        pytest.skip("s3prl is not installed")
    path = Path(package.submodule_search_locations[0]) / "downstream" / "sv_voxceleb1" / "utils.py"
    spec = importlib.util.spec_from_file_location("s3prl_sv_utils", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    draw = random.Random(seed)
    same = [draw.random() < 0.4 for _ in range(300)]
    scores = [
        round(draw.gauss(float(label), 0.8), seed % 3) for label in same
    ]  # rounded: many are equal
    eer, _ = module.EER(np.array(same, dtype=int), np.array(scores))
    assert equal_error_rate(same, scores) == pytest.approx(100 * eer, abs=1e-9)


def test_equal_error_rates_need_both_kinds() -> None:
    with pytest.raises(UserError, match="same speaker and of different ones"):
        equal_error_rate([True, True], [0.1, 0.2])
    with pytest.raises(ValueError, match="do not belong"):
        equal_error_rate([True, False], [0.1])


REFERENCE = [Turn("a", 0, 10), Turn("b", 6, 12)]  # 16 units of speech, 4 of them overlapped


@pytest.mark.parametrize(
    ("hypothesis", "error"),
    [
        ([Turn("x", 0, 10), Turn("y", 6, 12)], 0.0),  # names do not matter
        (
            [Turn("x", 0, 12)],
            6.0,
        ),  # x is a: b's overlap (4) is missed, and 2 are a's instead of b's
        ([Turn("x", 0, 6), Turn("y", 6, 12)], 4.0),  # the overlap counts for one speaker only
        ([], 16.0),
        ([Turn("x", 0, 10), Turn("y", 6, 12), Turn("z", 0, 4)], 4.0),  # a false alarm over speech
        ([Turn("x", 0, 10), Turn("y", 6, 15)], 3.0),  # a false alarm over silence
        (
            [Turn("x", 0, 5), Turn("x", 3, 10), Turn("y", 6, 12)],
            0.0,
        ),  # turns of one speaker are united
        ([Turn("x", 0, 5), Turn("z", 5, 10), Turn("y", 6, 12)], 5.0),  # z has nobody left to be
    ],
)
def test_diarisation_errors_by_hand(hypothesis: list[Turn], error: float) -> None:
    assert errors_and_speech(hypothesis, REFERENCE) == (error, 16.0)
    assert diarization_error_rate([hypothesis], [REFERENCE]) == pytest.approx(100 * error / 16)


def test_diarisation_adds_up_times_before_it_divides() -> None:
    long = [Turn("a", 0, 84)]
    assert diarization_error_rate([[], long], [REFERENCE, long]) == pytest.approx(
        16.0
    )  # a mean of rates would be 50
    with pytest.raises(UserError, match="somebody speaks"):
        diarization_error_rate([long], [[]])
    with pytest.raises(ValueError, match="zip"):
        diarization_error_rate([long], [])


def test_diarisation_errors_are_those_of_pyannote() -> None:
    kept = json.loads((DATA / "pyannote_der.json").read_text())
    assert [list(errors_and_speech(*pair)) for pair in RECORDINGS] == kept["recordings"]
    assert diarization_error_rate(*zip(*RECORDINGS, strict=True)) == pytest.approx(kept["rate"])


def test_term_weighted_values_by_hand() -> None:
    documents = 1000
    match = np.zeros(documents, dtype=bool)
    match[:2] = True
    scores = np.linspace(-1.0, 0.0, documents)
    scores[:2] = (3.0, 1.0)
    assert maximum_term_weighted_value([scores], [match]) == pytest.approx(1.0)
    scores[500] = 2.0  # one false alarm stands between the two hits
    assert maximum_term_weighted_value([scores], [match]) == pytest.approx(1.0 - BETA / 998)
    scores[501:600] = 2.0  # a hundred: better to miss the second hit
    assert maximum_term_weighted_value([scores], [match]) == pytest.approx(0.5)
    assert maximum_term_weighted_value([-scores], [match]) == 0.0  # detecting nothing
    nothing = np.full(documents, np.nan)
    assert maximum_term_weighted_value([nothing], [match]) == 0.0  # not in the order of documents
    assert maximum_term_weighted_value([nothing, -scores], [match, ~match]) < 1.0
    assert pytest.approx(12.49) == BETA


def test_one_threshold_serves_all_queries() -> None:
    match = np.array([True] + [False] * 99)
    high, low = np.linspace(2.0, 1.0, 100), np.linspace(1.0, 0.0, 100)
    low[0] = 1.0
    # The first query's hit is at 2, the second's at 1, where all of the first query's documents
    # have passed.
    assert maximum_term_weighted_value([high, low], [match, match]) == pytest.approx(0.5)
    assert maximum_term_weighted_value([high - 1, low], [match, match]) == pytest.approx(1.0)


def test_equal_scores_pass_together_and_queries_without_a_match_are_left_out() -> None:
    match = np.array([True] + [False] * 9)
    assert maximum_term_weighted_value([np.ones(10)], [match]) == 0.0
    sure = np.arange(10.0)[::-1]
    assert maximum_term_weighted_value([sure, sure], [match, ~match & False]) == pytest.approx(1.0)
    with pytest.raises(UserError, match="some documents match"):
        maximum_term_weighted_value([sure], [np.zeros(10, dtype=bool)])
