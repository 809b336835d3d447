"""Registries of named parts, such as merge methods and tasks, one module each."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Generic, TypeVar

from speechft_ray.core.errors import UserError, unknown_name

T = TypeVar("T")


class Registry(Generic[T]):
    """Named parts of one kind, discovered in one package.

    A module of that package registers its part by calling ``register(name, part)`` at import.
    Modules whose name starts with an underscore are not imported by discovery.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._parts: dict[str, T] = {}
        self._discovered = False

    def register(self, name: str, part: T) -> T:
        """Adds a part. Raises ``ValueError`` when the name is taken by a different part."""
        other = self._parts.get(name)
        if other is not None and other is not part:
            raise ValueError(f"two {self.kind} parts are called `{name}`")
        self._parts[name] = part
        return part

    def get(self, name: str) -> T:
        """Returns the part of that name. Raises ``UserError`` with the nearest name and the
        list."""
        self._discover()
        if name not in self._parts:
            raise UserError(unknown_name(self.kind, name, self._parts))
        return self._parts[name]

    def names(self) -> list[str]:
        """Returns all names, sorted."""
        self._discover()
        return sorted(self._parts)

    def items(self) -> Iterator[tuple[str, T]]:
        """Yields ``(name, part)``, sorted by name."""
        for name in self.names():
            yield name, self._parts[name]

    def _discover(self) -> None:
        if self._discovered:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            if not module.name.startswith("_"):
                importlib.import_module(f"{self.package}.{module.name}")
        self._discovered = True
