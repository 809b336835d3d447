"""The peak of the score across alpha, against curves whose peak is known."""

from __future__ import annotations

import numpy as np
import pytest

from speechft_ray.report.lines import group_rows
from speechft_ray.report.own_table import make_own_table
from speechft_ray.report.peak import Peak, estimate_peak, find_peaks
from speechft_ray.sweep.protocols import EncoderRow

ALPHAS = [0.0, 0.25, 0.5, 0.75, 1.0]


def test_equal_seeds_leave_no_doubt() -> None:
    curve = [600.0, 650.0, 640.0, 600.0, 500.0]
    assert estimate_peak("a", ALPHAS, np.asarray([curve] * 5)) == Peak(
        "a", tuple(ALPHAS), 0.25, (0.25, 0.25), 5
    )
    assert Peak("a", tuple(ALPHAS), 0.25, (0.25, 0.25), 5).is_inside is True


@pytest.mark.parametrize(
    ("interval", "inside"),
    [
        ((0.25, 0.75), True),
        ((0.0, 0.5), None),
        ((0.5, 1.0), None),
        ((0.0, 0.0), False),
        (None, None),
    ],
)
def test_an_interval_with_an_end_of_the_range_decides_nothing(
    interval: tuple[float, float] | None, inside: bool | None
) -> None:
    assert Peak("a", tuple(ALPHAS), 0.5, interval, 5).is_inside is inside


def test_the_interval_covers_the_true_peak() -> None:
    """Noise of a seed makes the best alpha vary; the interval of five seeds holds the true one in
    most of the repetitions, and widens with the noise."""
    truth = np.asarray([600.0, 650.0, 645.0, 600.0, 500.0])
    widths = {}
    for noise in (1.0, 20.0):
        rng = np.random.default_rng(int(noise))
        peaks = [
            estimate_peak("a", ALPHAS, truth + noise * rng.normal(size=(5, 5))) for _ in range(60)
        ]
        ends = [peak.interval for peak in peaks]
        assert all(ends)
        covered = [low <= 0.25 <= high for low, high in filter(None, ends)]
        assert np.mean(covered) >= 0.9
        widths[noise] = np.mean([high - low for low, high in filter(None, ends)])
    assert widths[1.0] < widths[20.0]


def test_three_seeds_make_an_interval_of_95_percent() -> None:
    """The third seed alone has its peak at 1: one of 27 resamples is three times this one, which
    is more than the 2.5 % that are left out at either end."""
    curves = np.asarray([[0.0, 0, 9, 0, 0], [0.0, 0, 9, 0, 0], [0.0, 0, 0, 0, 3]])
    assert estimate_peak("a", ALPHAS, curves) == Peak("a", tuple(ALPHAS), 0.5, (0.5, 1.0), 3)


def test_two_seeds_make_no_interval() -> None:
    assert estimate_peak("a", ALPHAS, np.eye(5)[:2]).interval is None


def make_rows(curves: dict[int, list[float]]) -> list[EncoderRow]:
    rows = [make_row("start", {"alpha": 0.0}, 600.0)]
    for seed, scores in curves.items():
        for alpha, score in zip(ALPHAS[1:], scores, strict=True):
            params: dict[str, str | float | int] = {
                "alpha": alpha,
                "method": "linear",
                "finetune": "tones",
                "seed": seed,
            }
            rows.append(make_row(f"{seed}-{alpha}", params, score))
    return rows


def make_row(key: str, params: dict[str, str | float | int], score: float) -> EncoderRow:
    return EncoderRow(
        key=key,
        title=key,
        params=params,
        test={"score": score},
        dev={"score": score},
        complete=True,
    )


def test_peaks_of_a_sweep_are_over_its_seeds() -> None:
    lines = group_rows(make_rows({seed: [640.0 + seed, 650.0, 610.0, 500.0] for seed in range(5)}))
    (peak,) = find_peaks(lines)
    assert (peak.alpha, peak.interval, peak.seeds) == (0.5, (0.5, 0.5), 5)
    table = make_own_table(9, "In shape", lines, [])
    assert len(table.rows) == 5 and table.header[:3] == ["", "alpha", "score"]
    sentences = [row[0].value for row in table.claims]
    assert "alpha 0.25 scores above pre-trained" in sentences[0]
    assert sentences[-1] == (
        "linear, tones: of the alphas 0, 0.25, 0.5, 0.75, 1 the best is inside (0, 1)."
    )
    assert table.claims[-1][3].value == "alpha 0.5" and table.claims[-1][4].value == "holds"


def test_a_seed_that_lacks_an_alpha_is_left_out() -> None:
    rows = make_rows({seed: [640.0, 650.0, 610.0, 500.0] for seed in range(4)})
    lines = group_rows([row for row in rows if row.key != "3-0.5"])
    assert find_peaks(lines)[0].seeds == 3
