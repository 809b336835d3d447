"""Tables in README and docs are what the product prints, and have its leak marks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from speechft_ray.core.metrics import METRICS
from speechft_ray.core.specs import CorpusSpec
from speechft_ray.report.table import LEAK, column_title
from speechft_ray.speech.synthesis.parts import PARTS, make_items
from speechft_ray.sweep.space_file import read_space

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PRINTED = (REPOSITORY / "tests" / "data" / "default_sweep.md").read_text(encoding="utf-8")
BASELINES = (REPOSITORY / "docs" / "finetuning.md").read_text(encoding="utf-8")


def list_speakers(corpus: CorpusSpec, *splits: str) -> set[str]:
    """Returns the speakers of a synthetic corpus; equal names are one person in all of them."""
    options: Mapping[str, Any] = corpus.options
    counts = {split: int(options[split]) for split in ("train", "dev", "test")}
    speakers = int(options.get("speakers", PARTS[options["part"]].speakers))
    items = make_items(options["part"], int(options.get("seed", 0)), counts, speakers)
    return {item.labels["speaker"] for item in items if item.split in splits}


def find_leaks(space: str, finetune: str) -> set[str]:
    """Returns the tasks with test speakers that a fine-tuning run of a packaged space was tuned
    on."""
    spec = read_space(REPOSITORY / "speechft_ray" / "search_spaces" / f"{space}.yaml")
    (corpus, *_) = [
        objective.corpus
        for run in spec.finetune
        if run.name == finetune
        for objective in run.objectives
    ]
    tuned = list_speakers(corpus, "train", "dev")
    return {item.task for item in spec.evaluate if tuned & list_speakers(item.corpus, "test")}


def read_tables(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def test_the_readme_has_the_table_and_the_headline_that_the_sweep_prints() -> None:
    table = [line for line in PRINTED.splitlines() if line.startswith("|")]
    assert "\n".join(table) in README
    quoted = " ".join(line[2:] for line in README.splitlines() if line.startswith("> "))
    assert quoted == PRINTED.splitlines()[2]
    (leak,) = re.findall(r"^- (narrow-phones .*)$", PRINTED, re.MULTILINE)
    assert leak in " ".join(README.split())


@pytest.mark.parametrize(
    ("space", "text", "runs"),
    [
        ("alpha", PRINTED, {"alpha": "narrow-phones", "stable": "narrow-phones"}),
        ("baselines", BASELINES, {"phones": "phones", "emotions": "emotions"}),
    ],
)
def test_every_tuned_row_has_its_leak_marks(space: str, text: str, runs: Mapping[str, str]) -> None:
    rows = read_tables(text)
    header = next(row for row in rows if column_title("sid.accuracy") in row)
    titles = {column_title(name): metric.task for name, metric in METRICS.items()}
    marked = 0
    for start, finetune in runs.items():
        leaks = find_leaks(space, finetune)
        assert leaks == {"sid"}
        for row in rows:
            if row[header.index("encoder") if "encoder" in header else 0].startswith(start):
                tasks = [titles.get(title) for title in header]
                has_mark = [LEAK in cell for cell in row]
                expected = [
                    title == "score" or task in leaks
                    for title, task in zip(header, tasks, strict=True)
                ]
                assert has_mark == expected, row
                marked += 1
    assert marked == (5 if space == "alpha" else 18)
    untuned = [row for row in rows if any(cell.startswith("pre-trained") for cell in row[:2])]
    assert untuned and not any(LEAK in cell for row in untuned for cell in row)
