"""docs/finetuning.md: the parser reads every example, and the table has the numbers of every
recipe."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from speechft_ray.commands.checks import check_names
from speechft_ray.core.space import parse_space
from speechft_ray.sweep.space_file import read_space
from speechft_ray.sweep.yaml_text import load_yaml

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "finetuning.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
RECIPES = sorted((REPOSITORY / "search_spaces" / "recipes").glob("*.yaml"))
REST_OF_SPACE = """
name: example
finetune:
  - name: any
    objectives: [{head: frame, corpus: {name: timit}, column: phones}]
    updates: 10
merge: [{alpha: 0.25}]
evaluate: [{task: pr, corpus: {name: librispeech}, updates: 10}]
"""


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_every_example_is_part_of_a_search_space(example: str) -> None:
    check_names(parse_space({**load_yaml(REST_OF_SPACE), **load_yaml(example)}, "the example"))


def test_there_are_examples_and_recipes() -> None:
    assert len(EXAMPLES) >= 5 and len(RECIPES) == 10


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_table_has_the_numbers_of_every_recipe(path: Path) -> None:
    (line,) = re.findall(rf"^\| `{path.stem}` \|(.*)\|$", PAGE, re.MULTILINE)
    _, heads, updates, batch, rate, *_ = (cell.strip() for cell in line.split("|"))
    (run,) = read_space(path).finetune
    assert re.findall(r"`(\w+)`", heads) == [item.head for item in run.objectives]
    assert int(updates.replace(",", "")) == run.updates
    assert [int(size) for size in batch.split("+")] == [item.batch_size for item in run.objectives]
    assert float(rate) == run.peak_learning_rate
