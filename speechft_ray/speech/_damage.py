"""What is wrong with a recording: shared by the modules that look at one kind of file each."""

from __future__ import annotations


class DamagedStream(ValueError):
    """Says what is wrong with a recording, as the rest of a sentence that its path begins."""
