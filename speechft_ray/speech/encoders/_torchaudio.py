"""Imports torchaudio where its compiled extension cannot be loaded.

The wheels of torchaudio 2.11 on PyPI are linked against CUDA. Beside a CPU build of torch the
import raises ``OSError`` (libc10_cuda.so). s3prl uses only the Python part of torchaudio, so the
extension is replaced by what torchaudio has in builds without one
(``_IS_TORCHAUDIO_EXT_AVAILABLE = False``). Forced alignment, which needs it, raises.

``make install`` repairs the environment itself (``scripts/fix_torchaudio.py``). This module stays
for environments that were made without make, such as ``pip install speechft_ray`` on the nodes of a
cluster.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn


def import_torchaudio() -> None:
    """Imports torchaudio, without its compiled extension when that cannot be loaded."""
    try:
        importlib.import_module("torchaudio")
    except (OSError, ImportError):
        if importlib.util.find_spec("torchaudio") is None:
            raise
        # Left by the failed import. Other threads may be importing, so a copy is walked.
        for name in sys.modules.copy():
            if name.split(".")[0] == "torchaudio":
                sys.modules.pop(name, None)
        sys.modules["torchaudio._extension"] = _without_extension()
        importlib.import_module("torchaudio")


def _without_extension() -> ModuleType:
    module = ModuleType("torchaudio._extension")
    module.__dict__.update(
        _IS_TORCHAUDIO_EXT_AVAILABLE=False, _IS_ALIGN_AVAILABLE=False, fail_if_no_align=_refuse
    )
    return module


def _refuse(function: Callable[..., Any]) -> Callable[..., NoReturn]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise RuntimeError(
            f"{function.__name__} needs torchaudio's compiled extension, "
            "which does not load on this machine"
        )

    return refuse


import_torchaudio()
