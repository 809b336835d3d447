"""What a probe sees of a frozen encoder: layer-normalised hidden states, encoded without any padding.

An utterance is never padded and shares a batch only with others of exactly its length, so its features depend on nothing but
its samples and the weights (to the last bits of a matrix product). In s3prl they depend on the batch: the group norm of Base
encoders takes padding into its statistics, and shorter utterances of a batch get a frame of padding
(``upstream/interfaces.py``). Batch size 1 is also how s3prl evaluates most tasks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.units import FRAME_FIELD_SAMPLES, SAMPLE_RATE_HZ
from speechft_ray.speech.batching import groups_of_equal_length
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.encoders.base import Encoder
from speechft_ray.speech.heads.featurizer import normalized

FRAME_CACHE_BYTES = 1 << 30
"""Frame states kept in memory by one evaluation: 1 GiB is 66 minutes of a 7 x 192 encoder (50 frames of 5.4 kB a second) or 9
minutes of a Base encoder (13 x 768, 40 kB a frame). Splits beyond it are encoded again whenever they are drawn."""

GROUP_SECONDS = 20.0
"""Audio encoded at once. On one CPU core 16 utterances of 1.2 s take two thirds of the time that they take one by one."""

Chosen = slice | torch.Tensor
"""Utterances by place: a slice with start and stop, or places ``(count,)`` int64."""


Advance = Callable[[int], None]
"""Told how many more units of work, utterances or updates, are done."""


class Batch(NamedTuple):
    """States of some utterances, one after the other without padding.

    ``states``: ``(layers, rows, dim)``. ``frames``: rows of each utterance ``(batch,)``, int64, on the CPU.
    """

    states: torch.Tensor
    frames: torch.Tensor


class Source(Protocol):
    """The features of a list of utterances."""

    count: int

    def take(self, chosen: Chosen) -> Batch:
        """Returns the features of the chosen utterances, in the chosen order."""
        ...


class Extractor:
    """A frozen encoder as a function from utterances to their states.

    ``pooled`` keeps only the mean over frames of each normalised state. Puts the encoder into eval mode. ``seconds`` is the
    time spent so far.
    """

    def __init__(self, encoder: Encoder, corpus: Corpus, device: torch.device, pooled: bool) -> None:
        self.encoder, self.corpus, self.device, self.pooled = encoder, corpus, device, pooled
        self.seconds = 0.0
        encoder.module().to(device).eval()

    def __call__(self, utterances: Sequence[Utterance], advance: Advance | None = None) -> list[torch.Tensor]:
        """Returns ``(layers, rows, dim)`` float32 of each utterance, in their order; one row when pooled.

        Raises ``UserError`` for an utterance shorter than one frame.
        """
        began = time.perf_counter()
        found: dict[int, torch.Tensor] = {}
        for group in groups_of_equal_length([utterance.samples for utterance in utterances], GROUP_SECONDS):
            found.update(zip(group, self._encode([utterances[index] for index in group]), strict=True))
            if advance is not None:
                advance(len(group))
        self.seconds += time.perf_counter() - began
        return [found[index] for index in range(len(utterances))]

    @torch.no_grad()
    def _encode(self, group: Sequence[Utterance]) -> list[torch.Tensor]:
        encoded = self.encoder.hidden_states([self._wave(utterance) for utterance in group])
        states = normalized(torch.stack(encoded.states)[:, :, : int(encoded.frames[0])].float())  # (layers, batch, frames, dim)
        if self.pooled:
            states = states.mean(dim=2, keepdim=True)  # -> (layers, batch, 1, dim)
        return list(states.unbind(dim=1))

    def _wave(self, utterance: Utterance) -> torch.Tensor:
        wave = torch.from_numpy(self.corpus.read(utterance)).to(self.device)
        if len(wave) < FRAME_FIELD_SAMPLES:
            raise UserError(
                f"the utterance `{utterance.key}` of the corpus `{self.corpus.name}` has {len(wave)} samples, less than one "
                f"frame ({FRAME_FIELD_SAMPLES} samples at {SAMPLE_RATE_HZ} Hz): leave it out."
            )
        return wave


class Kept:
    """Features of all utterances in one tensor, encoded once."""

    def __init__(self, states: torch.Tensor, frames: torch.Tensor) -> None:
        """``states`` is ``(layers, rows, dim)``, ``frames`` the rows of each utterance ``(utterances,)``."""
        self.states, self.frames = states, frames
        self.count = len(frames)
        self._ends = frames.cumsum(0)
        self._starts = self._ends - frames

    @classmethod
    def of(cls, extract: Extractor, utterances: Sequence[Utterance], advance: Advance) -> Kept:
        """Encodes all utterances."""
        found = extract(utterances, advance)
        frames = torch.tensor([states.shape[1] for states in found])
        layers, _, dim = found[0].shape
        packed = found[0].new_empty(layers, int(frames.sum()), dim)
        for last in reversed(frames.cumsum(0).tolist()):  # from the end, so that each piece is freed once it is copied
            piece = found.pop()
            packed[:, last - piece.shape[1] : last] = piece
        return cls(packed, frames)

    def take(self, chosen: Chosen) -> Batch:
        """Returns the chosen features; a slice shares the memory of the whole."""
        frames = self.frames[chosen]
        if isinstance(chosen, slice):
            first, last = int(self._starts[chosen.start]), int(self._ends[chosen.stop - 1])
            return Batch(self.states[:, first:last], frames)
        # Row r of utterance u lies at start(u) + r; rows that precede u in the batch are taken off the running count.
        offsets = torch.repeat_interleave(self._starts[chosen] - (frames.cumsum(0) - frames), frames)
        rows = offsets + torch.arange(len(offsets))
        return Batch(self.states.index_select(1, rows.to(self.states.device)), frames)


class Reencoded:
    """Features that are encoded whenever they are taken."""

    def __init__(self, extract: Extractor, utterances: Sequence[Utterance]) -> None:
        self.extract, self.utterances = extract, utterances
        self.count = len(utterances)

    def take(self, chosen: Chosen) -> Batch:
        """Encodes the chosen utterances."""
        places = torch.arange(self.count)[chosen].tolist()
        found = self.extract([self.utterances[place] for place in places])
        return Batch(torch.cat(found, dim=1), torch.tensor([states.shape[1] for states in found]))


def sources(
    extract: Extractor,
    splits: Mapping[str, Sequence[Utterance]],
    advance: Advance,
    budget_bytes: int = FRAME_CACHE_BYTES,
) -> dict[str, Source]:
    """Returns the features of each split: kept while they fit into the budget, in the order of ``splits``, else encoded anew.

    Means are always kept. The size of all is judged by the first utterance.
    """
    first = next(iter(splits.values()))[0]
    states = extract([first])[0]
    bytes_per_sample = 0.0 if extract.pooled else states.numel() * states.element_size() / first.samples
    found: dict[str, Source] = {}
    for split, utterances in splits.items():
        size_bytes = bytes_per_sample * sum(utterance.samples for utterance in utterances)
        if size_bytes <= budget_bytes:
            budget_bytes -= int(size_bytes)
            found[split] = Kept.of(extract, utterances, advance)
        else:
            found[split] = Reencoded(extract, utterances)
            advance(len(utterances))  # nothing to do ahead
    return found
