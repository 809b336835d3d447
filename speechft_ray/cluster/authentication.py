"""Tokens of Ray clusters: where this user's is, and a loud line about a cluster that asks for none.

Whoever reaches a cluster without a token runs code on it (CVE-2023-48022).
"""

from __future__ import annotations

import ipaddress
import json
import os
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ANSWER_SECONDS = 5.0


def find_token() -> str | None:
    """Returns the token of this user: ``RAY_AUTH_TOKEN``, the file ``RAY_AUTH_TOKEN_PATH``, or
    ``~/.ray/auth_token`` (Ray's own order); ``None`` without one or with ``RAY_AUTH_MODE``
    ``disabled``."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return None
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    with suppress(OSError, RuntimeError, UnicodeDecodeError):  # no home folder at all
        path = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
        return Path(path).read_text(encoding="utf-8").strip() or None
    return None


def is_loopback(host: str) -> bool:
    """Whether a host name or address is that of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def warn_without_token(dashboard: str, note: Callable[[str], object]) -> None:
    """Prints a line where the cluster behind a dashboard asks for no token.

    Nothing is said where it does not answer or is too old to tell.
    """
    try:
        address = f"{dashboard.rstrip('/')}/api/authentication_mode"
        with urllib.request.urlopen(address, timeout=ANSWER_SECONDS) as answer:
            mode = json.loads(answer.read(10_000))["authentication_mode"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if mode == "disabled":
        note(describe_open_cluster(dashboard))


def describe_open_cluster(address: str) -> str:
    """Returns the line about a cluster that asks for no token."""
    return (
        f"WARNING: the Ray cluster at {address} asks for no token: whoever reaches its ports can "
        "run code on all of its nodes as you. Start every node with RAY_AUTH_MODE=token and one "
        "token (docs/clusters.md, Tokens)."
    )
