"""Tells sweeps of one name apart: a second, different one keeps the name, with the beginning of its
fingerprint."""

from __future__ import annotations

from pathlib import Path

DIGITS = 8
"""Digits of the fingerprint of a plan in a label."""


def label_sweep(name: str, plan: str, owner: str | None) -> str:
    """Returns what a sweep is called in a storage folder: its name, or where that belongs to the
    plan ``owner`` and this is another one, name and fingerprint: ``alpha-3f2a1b9c``."""
    return name if owner in (None, plan) else f"{name}-{plan[:DIGITS]}"


def choose_report_folder(report: Path, plan: str, page: str) -> Path:
    """Returns the folder for the report of a plan: ``report``, or a folder beside it where that has
    the report of another plan. ``page``: name of the page, which states the fingerprint."""
    try:
        text = (report / page).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return report
    if plan in text or "sweep fingerprint" not in text:
        return report
    return report.with_name(f"{report.name}-{plan[:DIGITS]}")
