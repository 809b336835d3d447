"""Work that goes on when nobody reads its output any more: `speechft run | head`, a dropped
terminal, a `tee` that died."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any


@contextmanager
def survive_closed_output(note: Callable[[], object]) -> Iterator[None]:
    """Drops what is printed to a closed pipe instead of raising; ``note`` is called once for the
    standard output, and should print to the standard error."""
    with (
        redirect_stderr(_Stream(sys.stderr, lambda: None)),
        redirect_stdout(_Stream(sys.stdout, note)),
    ):
        yield


class _Stream:
    """A text stream that becomes silent when its reader is gone; all else is the stream's own."""

    def __init__(self, stream: Any, note: Callable[[], object]) -> None:
        self._stream, self._note = stream, note

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except BrokenPipeError:
            self._silence()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._silence()

    def _silence(self) -> None:
        # What is buffered is written again at every flush, and once more when Python ends.
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
        note, self._note = self._note, lambda: None
        note()
