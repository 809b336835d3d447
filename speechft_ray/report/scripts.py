"""The scripts of a page: uPlot, which is shipped with the package, and what draws charts with it.

Both are inlined, so that a page is one file that loads nothing. The page's policy names them by
their hashes; a browser then runs no other script, whatever a name of the sweep contains.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent
_UPLOT = _HERE.parent / "assets" / "uplot"


@cache
def read_scripts() -> tuple[str, ...]:
    """Returns the text of each script, in the order in which they run."""
    licence = (_UPLOT / "LICENSE").read_text(encoding="utf-8")
    library = (_UPLOT / "uPlot.iife.min.js").read_text(encoding="utf-8")
    return f"/*\n{licence}*/\n{library}", (_HERE / "charts.js").read_text(encoding="utf-8")


@cache
def read_style() -> str:
    """Returns the style sheet of uPlot."""
    return (_UPLOT / "uPlot.min.css").read_text(encoding="utf-8")


def list_sources() -> str:
    """Returns the scripts as a policy lists them: ``'sha256-...' 'sha256-...'``."""
    digests = [hashlib.sha256(text.encode("utf-8")).digest() for text in read_scripts()]
    return " ".join(f"'sha256-{base64.b64encode(one).decode('ascii')}'" for one in digests)
