"""The registry, on a package made for the test."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from speechft_ray.core.errors import UserError
from speechft_ray.core.registry import Registry

PACKAGE = "registry_test_parts"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[object]:
    folder = tmp_path / PACKAGE
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from speechft_ray.core.registry import Registry\n"
        f"PARTS = Registry('animal', '{PACKAGE}')\n"
    )
    for name in ("zebra", "ape"):
        (folder / f"{name}.py").write_text(
            f"from {PACKAGE} import PARTS\nPARTS.register('{name}', '{name}!')\n"
        )
    (folder / "_private.py").write_text("raise RuntimeError('discovery must not import this')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in [module for module in sys.modules if module.split(".")[0] == PACKAGE]:
        monkeypatch.delitem(sys.modules, module)
    parts: Registry[object] = __import__(PACKAGE).PARTS
    return parts


def test_every_module_of_the_folder_is_found(registry: Registry[object]) -> None:
    assert registry.names() == ["ape", "zebra"]
    assert registry.get("zebra") == "zebra!"
    assert list(registry.items()) == [("ape", "ape!"), ("zebra", "zebra!")]


def test_a_new_file_is_a_new_part(registry: Registry[object], tmp_path: Path) -> None:
    (tmp_path / PACKAGE / "bee.py").write_text(
        f"from {PACKAGE} import PARTS\nPARTS.register('bee', 'bee!')\n"
    )
    assert registry.get("bee") == "bee!"


def test_an_unknown_name_gets_the_nearest_and_the_list(registry: Registry[object]) -> None:
    with pytest.raises(
        UserError, match=r"unknown animal `zebar`. Did you mean `zebra`\? Allowed: ape, zebra."
    ):
        registry.get("zebar")
    with pytest.raises(UserError, match=r"unknown animal `xyz`. Allowed: ape, zebra."):
        registry.get("xyz")


def test_a_name_is_taken_once(registry: Registry[object]) -> None:
    one = object()
    assert registry.register("cow", one) is one
    assert registry.register("cow", one) is one  # a module that is imported twice
    with pytest.raises(ValueError, match="two animal parts are called `cow`"):
        registry.register("cow", object())


def test_a_part_that_does_not_import_is_not_hidden(
    registry: Registry[object], tmp_path: Path
) -> None:
    (tmp_path / PACKAGE / "broken.py").write_text("import a_module_that_is_not_there\n")
    for _ in range(2):  # the second call does not take the half-filled registry for the whole
        with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
            registry.names()
