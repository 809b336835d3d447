"""Every search space that ships is valid, and launch scripts start the ones they name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from speechft_ray.commands.checks import check_names
from speechft_ray.commands.parts import SEARCH_SPACES, find_space, resolve_place
from speechft_ray.commands.search import plan_search
from speechft_ray.sweep.space_file import read_space

REPOSITORY = Path(__file__).parents[1]
SPACES = sorted(SEARCH_SPACES.rglob("*.yaml"))


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_every_space_is_valid(path: Path) -> None:
    check_names(read_space(path))


@pytest.mark.parametrize(
    "path", [path for path in SPACES if path.stem.startswith("search_")], ids=lambda path: path.stem
)
def test_every_search_can_be_planned(path: Path, tmp_path: Path) -> None:
    spec = read_space(path)
    plan = plan_search(spec, resolve_place(spec, storage=tmp_path))
    assert plan.search.trials * len(plan.tasks) > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "launch").glob("*.py")), ids=lambda path: path.stem
)
def test_launch_scripts_are_saved_command_lines(path: Path) -> None:
    """No logic: no function, no condition but the main guard, and a space that exists."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not any(
        isinstance(node, ast.FunctionDef | ast.For | ast.While) for node in ast.walk(tree)
    )
    assert sum(isinstance(node, ast.If) for node in ast.walk(tree)) == 1
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert find_space(str(texts[texts.index("--space") + 1])) in SPACES
