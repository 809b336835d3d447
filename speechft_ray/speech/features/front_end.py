"""Computes the output of a convolutional front end once for all encoders with the same front end.

Stable fine-tuning never changes the front end, so every epoch of it, and every merge of a sweep,
computes the same output. It is cached on disk under the sha256 of the front end's weights, and
encoders with those weights read it from there. An encoder with another front end has another
sha256.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.units import frame_count
from speechft_ray.speech.batching import group_by_length
from speechft_ray.speech.checkpoints.load import weights_fingerprint
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.encoders._front_ends import PrecomputedOutput
from speechft_ray.speech.encoders.base import Encoder, EncoderWeights, Shape
from speechft_ray.speech.features.cache import Entry, FeatureCache

Read = Callable[[Utterance], torch.Tensor]

GROUP_SECONDS = 20.0
"""Audio in one batch. On one CPU core 16 utterances of 1.2 s take two thirds of the time that they
take one by one."""

EncodingContext = Callable[[Sequence[int]], Any]
"""Returns the context in which to encode the utterances of these indices as one batch. They are of
equal length, so nothing is padded."""


class SharedFrontEnd:
    """The cached front end of one encoder on one corpus. ``computed`` counts the utterances whose
    output was computed and not read."""

    def __init__(
        self, cache: FeatureCache, module: nn.Module, prefix: str, shape: Shape, corpus: Corpus
    ) -> None:
        """``prefix`` is the one prefix of the front end's parameters, for example
        ``feature_extractor.``."""
        self._cache, self._module, self._name = cache, module, prefix.removesuffix(".")
        self._frame_bytes = 4 * shape.conv_layers[-1][0]  # float32
        own = {
            name: value for name, value in module.state_dict().items() if name.startswith(prefix)
        }
        self._identity = {
            "what": "front end",
            "weights": weights_fingerprint(EncoderWeights(family="", config={}, state=own)),
            "geometry": [list(layer) for layer in shape.conv_layers],
            "mode": shape.extractor_mode,
            "normalised": shape.normalizes_waveform,
            "corpus": corpus.fingerprint,
        }
        self.computed = 0

    @contextmanager
    def reuse(self, utterances: Sequence[Utterance]) -> Iterator[EncodingContext]:
        """Yields the context in which to encode these utterances. In it the front end's output is
        read from the cache, or computed and written there."""
        key = self._key(utterances)
        entry = self._cache.find(key)
        if entry is not None:
            yield self._read_from(entry)
        elif self._make_room(utterances):
            with self._cache.write(key, len(utterances)) as append:
                yield self._write_to(append)
        else:
            yield self._write_to(lambda index, rows: None)

    def load_or_compute(
        self,
        encoder: Encoder,
        utterances: Sequence[Utterance],
        read: Read,
        advance: Callable[[int], None],
    ) -> Entry | None:
        """Returns the front end's output for these utterances, float32 ``(frames, channels)`` each.

        It is read from the cache, or computed and written there. Returns ``None`` when it does not
        fit into the cache. ``read`` returns an utterance's waveform ``(samples,)`` on the encoder's
        device. ``advance`` is called with the number of utterances done since its last call. The
        values are those that ``reuse`` writes: utterances of equal length form a batch, and none is
        padded.
        """
        key = self._key(utterances)
        entry = self._cache.find(key)
        if entry is None and self._make_room(utterances):
            with self._cache.write(key, len(utterances)) as append, torch.no_grad():
                for group in group_by_length([item.samples for item in utterances], GROUP_SECONDS):
                    waves = [read(utterances[index]) for index in group]
                    for index, rows in zip(group, encoder.conv_features(waves), strict=True):
                        append(index, rows)
                    self.computed += len(group)
                    advance(len(group))
            entry = self._cache.find(key)
        elif entry is not None:
            advance(len(utterances))
        return entry

    def _key(self, utterances: Sequence[Utterance]) -> str:
        return self._cache.key(
            {**self._identity, "utterances": fingerprint([item.key for item in utterances])}
        )

    def _make_room(self, utterances: Sequence[Utterance]) -> bool:
        return self._cache.make_room(
            self._frame_bytes * sum(frame_count(item.samples) for item in utterances)
        )

    def _read_from(self, entry: Entry) -> EncodingContext:
        @contextmanager
        def within(indices: Sequence[int]) -> Iterator[None]:
            front_end = getattr(self._module, self._name)
            device = next(self._module.parameters()).device
            # (batch * frames, channels) -> (batch, frames, channels)
            rows = torch.unflatten(entry.rows(indices), 0, (len(indices), -1))
            output = rows.transpose(1, 2).contiguous().to(device)
            setattr(self._module, self._name, PrecomputedOutput(output))
            try:
                yield
            finally:
                setattr(self._module, self._name, front_end)

        return within

    def _write_to(self, append: Callable[[int, torch.Tensor], None]) -> EncodingContext:
        @contextmanager
        def within(indices: Sequence[int]) -> Iterator[None]:
            outputs: list[torch.Tensor] = []
            hook = getattr(self._module, self._name).register_forward_hook(
                lambda _, __, output: outputs.append(output)
            )
            try:
                yield
            finally:
                hook.remove()
            self.computed += len(indices)
            (output,) = outputs  # (batch, channels, frames)
            for index, rows in zip(indices, output.transpose(1, 2), strict=True):
                append(index, rows)

        return within
