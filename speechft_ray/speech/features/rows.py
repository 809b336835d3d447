"""A file of rows: the features of many utterances, read in parts so that memory does not grow with
the file.

It holds plain numbers, row-major and little-endian, without a header. The manifest beside it
describes them.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch

_DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype("<f4"),
    torch.float16: np.dtype("<f2"),
    torch.int8: np.dtype("i1"),
}


SPARE_FILES = 512
"""Open files that are left for all else: audio, logs, connections."""


def allow_open_files(count: int) -> None:
    """Raises this process's limit of open files so that ``count`` more fit, as far as it may be
    raised. The usual limit is 1,024, and a corpus of 1,000 hours has 2,000 files of features."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    with suppress(OSError, ValueError):  # then the one that opens too many files says so
        needed = sum(1 for _ in Path("/dev/fd").iterdir()) + count + SPARE_FILES
        limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        if limit > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


class RowSource(Protocol):
    """Rows of utterances."""

    @property
    def counts(self) -> Sequence[int]:
        """The number of rows of each utterance."""
        ...

    def rows(self, indices: Sequence[int]) -> torch.Tensor:
        """Returns the rows of these utterances, one after the other, ``(rows, width)``."""
        ...


class JoinedRows:
    """Utterances whose rows lie in several sources: each is a source and an index there."""

    def __init__(self, places: Sequence[tuple[RowSource, int]]) -> None:
        self._places = places
        self.counts = [source.counts[index] for source, index in places]

    def rows(self, indices: Sequence[int]) -> torch.Tensor:
        """Reads from each source once."""
        by_source: dict[int, list[int]] = {}
        for position, index in enumerate(indices):
            by_source.setdefault(id(self._places[index][0]), []).append(position)
        pieces: list[torch.Tensor] = [torch.empty(0)] * len(indices)
        for positions in by_source.values():
            source = self._places[indices[positions[0]]][0]
            rows = source.rows([self._places[indices[position]][1] for position in positions])
            if len(by_source) == 1:
                return rows
            counts = [self.counts[indices[position]] for position in positions]
            for position, piece in zip(positions, torch.split(rows, counts), strict=True):
                pieces[position] = piece
        return torch.cat(pieces)


class RowWriter:
    """Appends rows to a new file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self.rows = 0

    def append(self, rows: torch.Tensor) -> None:
        """Adds ``(rows, width)``."""
        self._file.write(np.ascontiguousarray(rows.detach().cpu().numpy()).data)
        self.rows += len(rows)

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        self._file.close()

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


class RowReader:
    """Reads ranges of rows. The file is not memory-mapped, so pages that were read do not stay in
    this process."""

    _file = -1
    """No file yet."""

    def __init__(self, path: Path, width: int, dtype: torch.dtype) -> None:
        """Raises ``OSError`` for a file that cannot be opened."""
        self._file = os.open(path, os.O_RDONLY)
        self.width, self.dtype = width, dtype
        self.row_bytes = width * _DTYPES[dtype].itemsize

    def read(self, ranges: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Returns the rows of each ``(start, count)``, one range after the other, as ``(rows,
        width)``.

        Raises ``OSError`` when the file ends before.
        """
        rows = np.empty((sum(count for _, count in ranges), self.width), _DTYPES[self.dtype])
        buffer = rows.reshape(-1).view(np.uint8).data
        done = 0
        for start, count in ranges:
            end, skipped = done + count * self.row_bytes, start * self.row_bytes - done
            while done < end:  # Linux returns at most 2 GiB at once (read(2), "NOTES")
                read = os.preadv(self._file, [buffer[done:end]], skipped + done)
                if read == 0:
                    raise OSError("a file of features is shorter than its manifest says")
                done += read
        return torch.from_numpy(rows)

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)
