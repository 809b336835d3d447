"""Two processes share the tests (``-n 2 --dist loadgroup``, pyproject.toml): a file stays together,
and so does all of Ray.

Module fixtures are then made once, and no two clusters compete for two cores.
"""

from __future__ import annotations

import pytest

RAY = (
    "tests/cluster/",
    "tests/contracts/test_executors.py",
    "tests/e2e/test_recipes.py",
    "tests/e2e/test_search.py",
    "tests/e2e/test_sweep.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        file = item.nodeid.split("::")[0]
        item.add_marker(pytest.mark.xdist_group("ray" if file.startswith(RAY) else file))
