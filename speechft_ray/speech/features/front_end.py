"""The convolutional front end, computed once for all encoders that have the same.

Stable fine-tuning never changes the front end, so every epoch of it, and every merge of a sweep,
begins with the same work. Its output is kept on disk under the sha256 of its weights, and an
encoder with those weights gets it handed in. An encoder whose front end differs has another sha256
and simply does not share.
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
from speechft_ray.speech.encoders._fronts import Given
from speechft_ray.speech.encoders.base import Encoder, EncoderWeights, Shape
from speechft_ray.speech.features.cache import Entry, FeatureCache

Read = Callable[[Utterance], torch.Tensor]

GROUP_SECONDS = 20.0
"""Audio encoded at once. On one CPU core 16 utterances of 1.2 s take two thirds of the time that
they take one by one."""

EncodingContext = Callable[[Sequence[int]], Any]
"""A context for encoding the utterances at these places together; without padding, since they are
of equal length."""


class SharedFrontEnd:
    """The shared front end of one encoder on one corpus. ``computed`` counts the utterances that it
    really went through."""

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
        """Yields what to encode these utterances within: their front end comes from the cache, or
        goes there."""
        key = self._key(utterances)
        entry = self._cache.find(key)
        if entry is not None:
            yield self._playing(entry)
        elif self._has_room(utterances):
            with self._cache.write(key, len(utterances)) as append:
                yield self._recording(append)
        else:
            yield self._recording(lambda place, rows: None)

    def load_or_compute(
        self,
        encoder: Encoder,
        utterances: Sequence[Utterance],
        read: Read,
        advance: Callable[[int], None],
    ) -> Entry | None:
        """Returns the front end's output of these utterances, float32 ``(frames, channels)`` each,
        from the cache.

        What is not there is computed and put there; ``None`` when there is no room for it. ``read``
        returns an utterance's waveform ``(samples,)`` where the encoder is; ``advance`` is told how
        many more utterances are done. The numbers are those that ``reuse`` records: utterances of
        equal length go together, none is padded.
        """
        key = self._key(utterances)
        entry = self._cache.find(key)
        if entry is None and self._has_room(utterances):
            with self._cache.write(key, len(utterances)) as append, torch.no_grad():
                for group in group_by_length([item.samples for item in utterances], GROUP_SECONDS):
                    fronts = encoder.conv_features([read(utterances[place]) for place in group])
                    for place, rows in zip(group, fronts, strict=True):
                        append(place, rows)
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

    def _has_room(self, utterances: Sequence[Utterance]) -> bool:
        return self._cache.make_room(
            self._frame_bytes * sum(frame_count(item.samples) for item in utterances)
        )

    def _playing(self, entry: Entry) -> EncodingContext:
        @contextmanager
        def around(places: Sequence[int]) -> Iterator[None]:
            own = getattr(self._module, self._name)
            device = next(self._module.parameters()).device
            rows = torch.unflatten(
                entry.rows(places), 0, (len(places), -1)
            )  # (batch, frames, channels)
            setattr(self._module, self._name, Given(rows.transpose(1, 2).contiguous().to(device)))
            try:
                yield
            finally:
                setattr(self._module, self._name, own)

        return around

    def _recording(self, append: Callable[[int, torch.Tensor], None]) -> EncodingContext:
        @contextmanager
        def around(places: Sequence[int]) -> Iterator[None]:
            heard: list[torch.Tensor] = []
            hook = getattr(self._module, self._name).register_forward_hook(
                lambda _, __, output: heard.append(output)
            )
            try:
                yield
            finally:
                hook.remove()
            self.computed += len(places)
            (output,) = heard  # (batch, channels, frames)
            for place, rows in zip(places, output.transpose(1, 2), strict=True):
                append(place, rows)

        return around
