"""Computes the output of a convolutional front end once for all encoders with the same front end.

Stable fine-tuning never changes the front end, so every epoch of it, and every merge of a sweep,
computes the same output. It is cached on disk under the sha256 of the front end's weights, and
encoders with those weights read it from there. An encoder with another front end has another
sha256.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.specs import Precision
from speechft_ray.core.units import frame_count
from speechft_ray.speech.batching import BatchRule, choose_rule, make_batches
from speechft_ray.speech.checkpoints.load import weights_fingerprint
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.encoders._front_ends import PrecomputedOutput
from speechft_ray.speech.encoders.base import Encoder, EncoderWeights, Shape
from speechft_ray.speech.features.cache import Entry, FeatureCache
from speechft_ray.speech.features.rows import RowSource
from speechft_ray.speech.prefetch import pin, read_groups, wave_bytes

Read = Callable[[Utterance], torch.Tensor]


class EncodingContext(NamedTuple):
    """How utterances are encoded whose front end is shared with other encoders."""

    enter: Callable[[Sequence[int]], AbstractContextManager[object]]
    """Returns the context in which to encode the utterances of these indices as one batch, padded
    together."""
    needs_audio: Callable[[Sequence[int]], bool] = lambda indices: True
    """Whether encoding the utterances of these indices as one batch looks at their samples, not at
    their lengths alone."""


class SharedFrontEnd:
    """The cached front end of one encoder on one corpus. ``computed`` counts the utterances whose
    output was computed and not read; ``frame_bytes`` is the size of one frame of output."""

    def __init__(
        self,
        cache: FeatureCache,
        module: nn.Module,
        prefix: str,
        shape: Shape,
        corpus: Corpus,
        precision: Precision = "float32",
    ) -> None:
        """``prefix`` is the one prefix of the front end's parameters, for example
        ``feature_extractor.``. ``precision`` is the one that its output is computed in."""
        self._cache, self._module, self._name = cache, module, prefix.removesuffix(".")
        self.frame_bytes = 4 * shape.conv_layers[-1][0]  # float32
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
            **({} if precision == "float32" else {"precision": precision}),
        }
        self.computed = 0

    @contextmanager
    def reuse(
        self, utterances: Sequence[Utterance], *, stores: bool = True
    ) -> Iterator[EncodingContext]:
        """Yields the context in which to encode these utterances. In it the front end's output is
        read from the cache, or computed and written there, if ``stores``."""
        key = self._key(utterances)
        entry = self._cache.find(key)
        frames = [frame_count(item.samples) for item in utterances]
        if entry is not None:
            yield EncodingContext(self.read_from(entry), lambda indices: False)
        elif stores and self._make_room(utterances):
            with self._cache.write(key, len(utterances), lasting=True) as append:
                yield EncodingContext(self._write_to(append, frames))
        else:
            yield EncodingContext(self._write_to(lambda index, rows: None, frames))

    def load_or_compute(
        self,
        encoder: Encoder,
        utterances: Sequence[Utterance],
        read: Read,
        advance: Callable[[int], None],
        readers: int = 0,
        rule: BatchRule | None = None,
    ) -> Entry | None:
        """Returns the front end's output for these utterances, float32 ``(frames, channels)`` each.

        It is read from the cache, or computed and written there. Returns ``None`` when it does not
        fit into the cache. ``read`` returns an utterance's waveform ``(samples,)`` on the CPU;
        ``readers`` threads call it ahead (``speech.prefetch``). ``advance`` is called with the
        number of utterances done since its last call. ``rule`` is that of the device unless it is
        set; the values are those that ``reuse`` writes when an ``Extractor`` of that rule encodes
        these utterances.
        """
        rule = rule or choose_rule(self._device().type)
        key = self._key(utterances)
        entry = self._cache.find(key)
        if entry is None and self._make_room(utterances):
            device = self._device()
            groups = (
                (group, [utterances[index] for index in group])
                for group in make_batches([item.samples for item in utterances], rule)
            )
            audio = read_groups(groups, lambda item: pin(read(item), device), wave_bytes, readers)
            with (
                self._cache.write(key, len(utterances), lasting=True) as append,
                torch.no_grad(),
                closing(audio),
            ):
                for group, waves in audio:
                    on_device = [wave.to(device, non_blocking=True) for wave in waves]
                    for index, rows in zip(group, encoder.conv_features(on_device), strict=True):
                        append(index, rows)
                    self.computed += len(group)
                    advance(len(group))
            entry = self._cache.find(key)
        elif entry is not None:
            advance(len(utterances))
        return entry

    @property
    def budget_bytes(self) -> int:
        """What the cache may take in all."""
        return self._cache.budget_bytes

    def _key(self, utterances: Sequence[Utterance]) -> str:
        return self._cache.key(
            {**self._identity, "utterances": fingerprint([item.key for item in utterances])}
        )

    def _make_room(self, utterances: Sequence[Utterance]) -> bool:
        return self._cache.make_room(
            self.frame_bytes * sum(frame_count(item.samples) for item in utterances)
        )

    def _device(self) -> torch.device:
        return next(self._module.parameters()).device

    def read_from(
        self, entry: RowSource
    ) -> Callable[[Sequence[int]], AbstractContextManager[object]]:
        """Returns a function that returns the context in which the front end's output of some
        utterances is read from ``entry``, by their indices in it."""

        @contextmanager
        def within(indices: Sequence[int]) -> Iterator[None]:
            front_end = getattr(self._module, self._name)
            # (rows, channels) of all utterances -> (batch, frames, channels)
            rows = torch.split(entry.rows(indices), [entry.counts[index] for index in indices])
            output = pad_sequence(list(rows), batch_first=True).transpose(1, 2)
            setattr(
                self._module, self._name, PrecomputedOutput(output.contiguous().to(self._device()))
            )
            try:
                yield
            finally:
                setattr(self._module, self._name, front_end)

        return within

    def _write_to(
        self, append: Callable[[int, torch.Tensor], None], frames: Sequence[int]
    ) -> Callable[[Sequence[int]], AbstractContextManager[object]]:
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
            # From a GPU in one copy.
            for index, rows in zip(indices, output.transpose(1, 2).float().cpu(), strict=True):
                append(index, rows[: frames[index]])

        return within
