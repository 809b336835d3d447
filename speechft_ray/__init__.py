"""Distributed search for speech encoders that stay general after fine-tuning (Speech-FT, arXiv
2502.12672).

``speechft_ray.open("runs").sweep("alpha").table()`` reads a sweep; ``run``, ``evaluate`` and
``merge`` are the verbs of the command line. Nothing heavy is loaded before one of them is used.
"""

from importlib import import_module as _import_module
from typing import Any as _Any

__version__ = "0.13.0"

_HOMES = {
    "open": ("storage", "open_storage"),
    "run": ("verbs", "run"),
    "evaluate": ("verbs", "evaluate"),
    "merge": ("verbs", "merge"),
    "load_encoder": ("encoders", "load_encoder"),
    "build_encoder": ("encoders", "build_encoder"),
}
"""Module of ``speechft_ray.api`` and name there of what this package offers. Type checkers see
``Any``; with a stub of this file all modules would be one circle of imports for them. The same
functions have their types where they are: ``from speechft_ray.api.storage import open_storage``."""

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> _Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(_import_module(f"{__name__}.api.{module}"), attribute)


def __dir__() -> list[str]:
    return [*__all__]
