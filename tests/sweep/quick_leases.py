"""Leases that are renewed and judged within parts of a second."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Renews and waits in parts of a second."""
    for module in ("speechft_ray.core.lease", "speechft_ray.sweep.lock"):
        monkeypatch.setattr(f"{module}.RENEW_SECONDS", 0.02)
        monkeypatch.setattr(f"{module}.STALE_SECONDS", 0.3)
    yield
