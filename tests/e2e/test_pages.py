"""The report page in a real browser: its content, its look, and that it sends no request."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from speechft_ray.core.records import Outcome
from speechft_ray.report.write import ReportData, write_report
from speechft_ray.sweep.protocols import Curve, EncoderRow, SweepInfo
from tests.e2e.browser import BROWSER, FLAGS, needs_browser

pytestmark = needs_browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small report with seeds, controls, an incomplete line, a failure and a hostile name."""
    rows = [_row(0.0, 0, 870.0)]
    rows += [
        _row(alpha, seed, 880.0 - 150 * alpha**2 + seed)
        for alpha in (0.1, 0.25, 0.5, 1.0)
        for seed in (0, 1)
    ]
    rows.append(
        EncoderRow(
            key="late",
            title="late",
            params={"alpha": 0.75, "method": "linear", "finetune": "phones", "seed": 0},
            complete=False,
        )
    )
    curves = [
        Curve(
            f"run{s}",
            "run",
            {"finetune": "phones", "seed": s},
            [(u, {"loss": 9 / u}) for u in range(1, 9)],
        )
        for s in (0, 1)
    ]
    data = ReportData(
        sweep=SweepInfo(
            "3f9a1c77b2de", "<script>document.title='broken'</script>", {"encoder": "tiny"}
        ),
        rows=rows,
        curves=curves,
        failures=[
            Outcome(
                stage="evaluate",
                fingerprint="late",
                label="evaluate er alpha=0.75",
                error="out of memory",
            )
        ],
        references={"pr.per": (82.01, 2.55), "er.accuracy": (35.39, 70.68)},
        how_to_open="Open MLflow with `mlflow ui`.",
        versions={"torch": "2.10.0"},
    )
    return write_report(tmp_path_factory.mktemp("report"), data)


ACT = """
setTimeout(() => {
  const chart = document.querySelector("#alpha_curve .u-over");
  const box = chart.getBoundingClientRect();
  const point = (type) => chart.dispatchEvent(new MouseEvent(type, {
    clientX: box.left + box.width * 1.04 / 1.08 - 3, clientY: box.bottom - 40, bubbles: true,
  }));
  point("mouseenter");
  point("mousemove");
  document.querySelectorAll("#alpha_curve .legend button")[1].click();
}, 500);
"""
"""Points near alpha 1, the lowest score, and clicks on the second name of the legend."""


def _row(alpha: float, seed: int, score: float) -> EncoderRow:
    params: dict[str, str | float | int] = {
        "alpha": alpha,
        "method": "linear",
        "finetune": "phones",
        "seed": seed,
    }
    return EncoderRow(
        key=f"{alpha}-{seed}",
        title="row",
        params=params,
        test={"pr.per": 5 + alpha, "er.accuracy": 65 - alpha, "score": score},
        dev={"score": score},
        spread={"score": 1.0},
        complete=True,
    )


def browse(page: Path, folder: Path, *flags: str) -> str:
    """Opens the page in a fresh browser profile without network and returns what the browser
    prints."""
    offline = "--host-resolver-rules=MAP * ~NOTFOUND"
    command = [
        str(BROWSER),
        *FLAGS,
        offline,
        f"--user-data-dir={folder / 'profile'}",
        *flags,
        page.as_uri(),
    ]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=900).stdout


def screenshot(page: Path, folder: Path, width: int, height: int, *flags: str) -> np.ndarray:
    """Returns the page as pixels ``(height, width, 3)`` with values in [0, 1]."""
    target = folder / "page.png"
    browse(page, folder, f"--window-size={width},{height}", f"--screenshot={target}", *flags)
    return np.asarray(matplotlib.image.imread(target))[..., :3]


def test_the_browser_sees_every_line_of_the_table(page: Path, tmp_path: Path) -> None:
    dom = browse(page, tmp_path, "--dump-dom")
    body = re.search(r'<table id="results">.*?<tbody>(.*?)</tbody>', dom, re.DOTALL)
    assert body is not None
    rows = [
        re.sub(r"<[^>]+>", " ", row).split()
        for row in re.findall(r"<tr.*?</tr>", body[1], re.DOTALL)
    ]
    assert [" ".join(row[:2]) for row in rows[:2]] == ["★ alpha", "alpha 0.25"]
    assert "870.00" in rows[2] and "pre-trained" in rows[2]
    assert len(rows) == 6
    assert rows[-1] == ["alpha", "0.75", "(incomplete)", "0"]
    assert dom.count("<canvas") == 1 + 2 + 1  # score; two tasks; loss of the fine-tuning
    assert re.findall(r'<button [^>]*aria-pressed="true".*?</i>(.*?)</button>', dom)[:4] == [
        *("linear, phones", "pre-trained, 870.00", "stable fine-tuning, 730.50", "chosen on dev"),
    ]


def test_a_hostile_name_runs_nothing(page: Path, tmp_path: Path) -> None:
    dom = browse(page, tmp_path, "--dump-dom")
    assert "<title>&lt;script&gt;" in dom
    # Even one that got in unescaped: the policy of the page names those that may run.
    copy = tmp_path / "copy.html"
    evil = "<script>document.title='broken'</script>"
    copy.write_text(page.read_text(encoding="utf-8").replace("</main>", evil), encoding="utf-8")
    dom = browse(copy, tmp_path, "--dump-dom")
    assert evil in dom and "<title>&lt;script&gt;" in dom


def test_a_pointer_sees_the_numbers_of_the_nearest_point_and_names_hide_lines(
    page: Path, tmp_path: Path
) -> None:
    text = re.sub("<meta http-equiv=[^>]*>", "", page.read_text(encoding="utf-8"))
    copy = tmp_path / "copy.html"
    copy.write_text(text.replace("</body>", f"<script>{ACT}</script></body>"), encoding="utf-8")
    dom = browse(copy, tmp_path, "--virtual-time-budget=2000", "--dump-dom")
    (box,) = re.findall(r'<div class="near"[^>]*>(<b>.*?)</div>', dom)
    assert re.findall(r"<(?:b|span)[^>]*>(.*?)</", box) == [
        "stable fine-tuning",
        "score: test 730.50 ± 0.71, dev 730.50",
        "PR PER: test 6.00 ± 0.00",
        "ER ACC: test 64.00 ± 0.00",
    ]
    states = re.findall(r'aria-pressed="(\w+)"><i[^>]*>.?</i>(.*?)</button>', dom)
    assert {name: state for state, name in states[:4]} == {
        "linear, phones": "true",
        "pre-trained, 870.00": "false",
        "stable fine-tuning, 730.50": "true",
        "chosen on dev": "true",
    }


def test_the_page_is_painted_with_its_figures(page: Path, tmp_path: Path) -> None:
    picture = screenshot(page, tmp_path, 1100, 3200)
    assert picture.shape == (3200, 1100, 3)
    assert picture.std() > 0.05  # a blank page has next to no contrast
    blue = np.array([0x00, 0x72, 0xB2]) / 255  # the first colour of the figures
    assert (np.abs(picture - blue).max(axis=-1) < 0.02).sum() > 500


def test_a_dark_screen_gets_a_dark_page(page: Path, tmp_path: Path) -> None:
    light = screenshot(page, tmp_path, 1100, 500)
    dark = screenshot(page, tmp_path, 1100, 500, "--blink-settings=preferredColorScheme=0")
    assert light[5, 5].min() > 0.9
    assert dark[5, 5].max() < 0.2
    assert dark.std() > 0.03


def test_a_narrow_screen_does_not_scroll_sideways(page: Path, tmp_path: Path) -> None:
    picture = screenshot(page, tmp_path, 500, 2600)
    margin = picture[:, -8:, :]
    assert picture.shape == (2600, 500, 3)
    assert np.ptp(margin) < 0.02  # the right margin stays empty: nothing sticks out
