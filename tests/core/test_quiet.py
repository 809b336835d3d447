"""Warnings are ignored in a way that threads do not undo for each other."""

from __future__ import annotations

import ast
import warnings
from pathlib import Path

import pytest

import speechft_ray
from speechft_ray.core.quiet import ignore_warning

UNDER_A_LOCK = {"_torch.py"}
"""Modules that replace the filters of the process while they hold a lock of their own."""


def test_a_filter_is_added_once_and_again_where_it_was_removed() -> None:
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter("error")
        for _ in range(3):
            ignore_warning(UserWarning, "nothing new")
            warnings.warn("nothing new here", UserWarning, stacklevel=1)
        assert len(warnings.filters) == 2
        with pytest.raises(UserWarning):
            warnings.warn("something new", UserWarning, stacklevel=1)
        warnings.resetwarnings()
        ignore_warning(UserWarning, "nothing new")
        assert len(warnings.filters) == 1


def test_no_module_replaces_the_filters_of_all_threads() -> None:
    users = {
        path.name
        for path in Path(speechft_ray.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "catch_warnings"
    }
    assert users == UNDER_A_LOCK
