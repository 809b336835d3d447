"""What the contract tests of corpora share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contracts.test_corpora import EXAMPLES


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the small tree of a corpus; it is written once, and tests only read it."""
    roots: dict[str, Path] = {}

    def tree(name: str) -> Path:
        lay_out = EXAMPLES[name][1]
        assert lay_out is not None
        if name not in roots:
            roots[name] = lay_out(tmp_path_factory.mktemp(name) / "root")
        return roots[name]

    return tree
