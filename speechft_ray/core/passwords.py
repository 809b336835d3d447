"""Addresses without the passwords in them, as logs, reports and errors show them."""

from __future__ import annotations

import re

_BEFORE_HOST = re.compile(r"(://[^:/@\s]*):\S*@")
"""``://USER:PASSWORD@``; a password may have ``/`` and ``@``, as SQLAlchemy takes them."""
_IN_QUERY = re.compile(r"([?&](?:password|passwd|pwd|token|secret)=)[^&\s]+", re.IGNORECASE)


def hide_passwords(text: str) -> str:
    """Returns a text with ``***`` in place of the passwords of addresses in it."""
    return _IN_QUERY.sub(r"\1***", _BEFORE_HOST.sub(r"\1:***@", text))
