"""Renders the HTML templates beside this file. Jinja2 escapes every value."""

from __future__ import annotations

import base64
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechft_ray.report.table import one_line

if TYPE_CHECKING:
    from jinja2 import Environment


def render_template(template: str, /, **values: object) -> str:
    """Returns a template, for example ``page.html``, filled with values.

    A string is put on one line without control characters and escaped; the filter ``verbatim``
    escapes only.
    """
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup, escape

    def clean(value: Any) -> Any:
        return one_line(value) if type(value) is str else value  # not Markup, which is escaped

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=clean,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["verbatim"] = escape
    environment.filters["data_uri"] = lambda png: Markup(
        f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
    )
    return environment
