"""Features that are read as rows, from memory, from disk or from the encoder, and unpacked on the
device."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext

import torch

from speechft_ray.core.units import frame_count
from speechft_ray.speech.corpora.base import Utterance
from speechft_ray.speech.features.front_end import EncodingContext
from speechft_ray.speech.features.rows import JoinedRows, RowSource
from speechft_ray.speech.prefetch import pin, read_ahead
from speechft_ray.superb.extractor import Batch, Extractor, Indices, Location
from speechft_ray.superb.feature_forms import Form

Place = tuple[RowSource, int]
"""Where an utterance's rows are: a source, and the index there."""


class MemoryRows:
    """Rows of utterances in one tensor ``(rows, width)``."""

    def __init__(self, rows: torch.Tensor, counts: Sequence[int]) -> None:
        self.counts, self._pieces = counts, torch.split(rows, list(counts))

    def rows(self, indices: Sequence[int]) -> torch.Tensor:
        """Returns the rows of these utterances."""
        return torch.cat([self._pieces[index] for index in indices])


class RowFeatures:
    """Features whose rows are stored."""

    def __init__(
        self, source: RowSource, form: Form, device: torch.device, location: Location
    ) -> None:
        self._source, self._form, self._device, self.location = source, form, device, location
        self._frames = torch.tensor(source.counts)
        self.count = len(source.counts)

    def batch(self, indices: Indices) -> Batch:
        """Reads the features of these utterances."""
        return self._make_batch(indices, self._read_rows(indices))

    def read_batches(
        self, order: Iterable[Indices]
    ) -> Generator[tuple[Indices, Batch], None, None]:
        """Yields each of these indices with its batch; one thread reads the next ones ahead from
        disk."""
        row_bytes = self._form.width * self._form.dtype.itemsize

        def count_bytes(indices: Indices) -> int:
            return row_bytes * int(self._frames[indices].sum())

        threads = 0 if self.location == "memory" else 1
        with closing(read_ahead(order, self._read_rows, count_bytes, threads)) as pairs:
            for indices, rows in pairs:
                yield indices, self._make_batch(indices, rows)

    def _read_rows(self, indices: Indices) -> torch.Tensor:
        """Reads ``(rows, width)``. Runs in a reading thread."""
        rows = self._source.rows(torch.arange(self.count)[indices].tolist())
        return pin(rows, self._device) if rows.device.type == "cpu" else rows

    def _make_batch(self, indices: Indices, rows: torch.Tensor) -> Batch:
        states = self._form.unpack(rows.to(self._device, non_blocking=True))
        return Batch(states, self._frames[indices], self._form.basis)


class PartlyEncodedFeatures:
    """Features of which some utterances are encoded anew for every batch.

    ``places``: the rows of those that are stored, by index. ``front_ends``: the output of the front
    end of others, where that is stored.
    """

    def __init__(
        self,
        extractor: Extractor,
        utterances: Sequence[Utterance],
        form: Form,
        places: Mapping[int, Place],
        front_ends: Mapping[int, Place],
    ) -> None:
        self._extractor, self._utterances, self._form = extractor, utterances, form
        self._places, self._front_ends = places, front_ends
        self._frames = torch.tensor(
            [1 if extractor.pooled else frame_count(item.samples) for item in utterances]
        )
        self.count = len(utterances)
        self.location: Location = "mixed" if places else "recomputed"

    def batch(self, indices: Indices) -> Batch:
        """Reads or encodes these utterances."""
        with closing(self.read_batches([indices])) as batches:
            return next(batches)[1]

    def read_batches(
        self, order: Iterable[Indices]
    ) -> Generator[tuple[Indices, Batch], None, None]:
        """Yields each of these indices with its batch; the audio of the next ones is read
        meanwhile."""
        waiting: deque[tuple[Indices, list[int], list[int]]] = deque()

        def list_encoded() -> Iterator[tuple[None, list[int]]]:
            for indices in order:
                selected = torch.arange(self.count)[indices].tolist()
                anew = [index for index in selected if index not in self._places]
                waiting.append((indices, selected, anew))
                if anew:
                    yield None, anew

        within = EncodingContext(self._enter, lambda indices: not self._has_front_ends(indices))
        batches = self._extractor.encode_batches(list_encoded(), self._utterances, within)
        with closing(batches):
            for _, states in batches:
                # Batches before it are stored as a whole.
                while not waiting[0][2]:
                    indices, selected, _ = waiting.popleft()
                    yield indices, self._make_batch(selected, {})
                indices, selected, anew = waiting.popleft()
                packed = {
                    index: self._form.pack(one) for index, one in zip(anew, states, strict=True)
                }
                yield indices, self._make_batch(selected, packed)
            for indices, selected, _ in waiting:
                yield indices, self._make_batch(selected, {})

    def _has_front_ends(self, indices: Sequence[int]) -> bool:
        """Whether the front end's output is stored for all of these utterances."""
        return self._extractor.front_end is not None and all(
            index in self._front_ends for index in indices
        )

    def _enter(self, indices: Sequence[int]) -> AbstractContextManager[object]:
        """Reads the front end's output of these utterances, if it is stored for all of them."""
        front_end = self._extractor.front_end
        if front_end is None or not self._has_front_ends(indices):
            return nullcontext()
        joined = JoinedRows([self._front_ends[index] for index in indices])
        return front_end.read_from(joined)(range(len(indices)))

    def _make_batch(self, selected: Sequence[int], packed: Mapping[int, torch.Tensor]) -> Batch:
        """Joins rows that were encoded with those that are stored."""
        device, frames = self._extractor.device, self._frames[list(selected)]
        stored = [index for index in dict.fromkeys(selected) if index not in packed]
        pieces = dict(packed)
        if stored:
            rows = JoinedRows([self._places[index] for index in stored]).rows(range(len(stored)))
            counts = self._frames[stored].tolist()
            pieces.update(zip(stored, torch.split(rows.to(device), counts), strict=True))
        joined = torch.cat([pieces[index] for index in selected])
        return Batch(self._form.unpack(joined), frames, self._form.basis)
