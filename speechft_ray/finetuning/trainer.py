"""The training step: batches, frozen and trainable parameters, gradients, optimizer."""

from __future__ import annotations

import logging
import math
from collections.abc import Generator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from speechft_ray.core.errors import GpuMemoryError
from speechft_ray.core.specs import FinetuneSpec
from speechft_ray.core.units import SAMPLE_RATE_HZ
from speechft_ray.finetuning.batches import BatchSampler
from speechft_ray.finetuning.data import ObjectiveData, max_crop_samples
from speechft_ray.finetuning.features import AudioClip, FeatureLoader
from speechft_ray.finetuning.penalties import l2_sp_penalty
from speechft_ray.finetuning.phases import is_head_only
from speechft_ray.finetuning.schedule import learning_rate
from speechft_ray.finetuning.seeding import Stream, make_generator, seed_torch
from speechft_ray.finetuning.targets import make_targets
from speechft_ray.finetuning.train_state import TrainState
from speechft_ray.speech.batching import batch_by_seconds
from speechft_ray.speech.gpu_memory import is_out_of_memory
from speechft_ray.speech.precision import autocast_products
from speechft_ray.speech.prefetch import read_ahead

HEAD_PHASE_BYTES = 1 << 30
"""Memory limit of the frozen encoder's outputs in a head-only phase without dropout: 1.9 hours of a
Base encoder."""

READ_AHEAD_BYTES = 512 * 2**20
"""Batches that are read ahead take at most this in memory: a dozen of 32 utterances of 15 s."""

Plan = tuple[int, list[list[int]]]
"""Number of an update, and the training examples of its batch of each objective, by index."""

_log = logging.getLogger(__name__)


class StepResult(NamedTuple):
    """What one update did."""

    applied: bool
    """False when the loss or the gradient was not finite; no weight was changed then."""
    loss: float
    """The minimised value: the weighted losses of all objectives plus the penalty."""
    gradient_norm: float
    """Before clipping."""
    loss_parts: Mapping[str, float]
    """Terms of the loss: ``loss_0``, ... by objective where there are several, and ``penalty``."""


class Trainer:
    """Performs the updates of a run. Update ``k`` depends on the train state and on ``k`` alone.

    Threads read the next batches while one update is computed. ``micro_batch_seconds``: most padded
    audio that goes through the encoder at once. A longer batch is split and its gradients are
    accumulated. The limit is halved when a GPU runs out of memory, until each clip is a part.
    """

    def __init__(
        self,
        spec: FinetuneSpec,
        objectives: Sequence[ObjectiveData],
        loader: FeatureLoader,
        micro_batch_seconds: float,
    ) -> None:
        self.micro_batch_seconds = micro_batch_seconds
        self._spec = spec
        self._objectives = objectives
        self._loader = loader
        self._crop_samples = [max_crop_samples(data, spec.crop_seconds) for data in objectives]
        self._samplers = [
            BatchSampler(
                [item.utterance.samples for item in data.train],
                data.objective.batch_size,
                spec.seed,
                index,
            )
            for index, data in enumerate(objectives)
        ]
        self._reading: Generator[tuple[Plan, list[Batch]], None, None] | None = None
        self._next_update = -1
        self._frozen_states = FrozenStateCache()

    def train_step(self, state: TrainState, update: int) -> StepResult:
        """Performs update number ``update`` (from 0).

        Raises ``GpuMemoryError`` when a GPU runs out of memory even with one clip.
        """
        spec = self._spec
        # Freeze the encoder in the head-only phase. Without dropout its outputs can be cached.
        head_only = is_head_only(update, spec.head_only_fraction, spec.updates)
        for value in state.parameters.values():
            value.requires_grad_(not head_only)
        cache_head_phase = head_only and not spec.head_phase_dropout
        state.encoder.module().train(not cache_head_phase)
        if not cache_head_phase:
            self._frozen_states.clear()
        # Take the batch; the reading threads go on with the next ones.
        batches = self._next_batches(update)
        # Accumulate the gradients of all objectives.
        losses = self._compute_gradients(state, update, batches, cache_head_phase)
        loss_parts = (
            {f"loss_{index}": loss for index, loss in enumerate(losses)} if len(losses) > 1 else {}
        )
        loss = sum(losses)
        # Add the gradient of the L2-SP penalty.
        if spec.anchor_penalty and not head_only:
            penalty = l2_sp_penalty(state.weights(), state.anchors, spec.anchor_penalty)
            penalty.backward()  # type: ignore[no-untyped-call]
            loss_parts["penalty"] = float(penalty.detach())
            loss += loss_parts["penalty"]
        # Clip the gradients over encoder and heads together.
        parameters = [
            value
            for group in state.optimizer.param_groups
            for value in group["params"]
            if value.grad is not None
        ]
        norm = float(nn.utils.clip_grad_norm_(parameters, spec.clip_norm))
        # Apply the update, unless it is not finite.
        applied = math.isfinite(loss) and math.isfinite(norm)
        if applied:
            rate = learning_rate(update, spec.updates, spec.peak_learning_rate, spec.schedule)
            for group in state.optimizer.param_groups:
                group["lr"] = rate
            state.optimizer.step()
        return StepResult(applied, loss, norm, loss_parts)

    def close(self) -> None:
        """Ends the reading threads."""
        if self._reading is not None:
            self._reading.close()

    def _next_batches(self, update: int) -> list[Batch]:
        """Returns the batches of an update, while those of the next ones are read."""
        if self._reading is None or update != self._next_update:
            self.close()
            self._reading = self._start_reading(update)
        self._next_update = update + 1
        _, batches = next(self._reading)
        return batches

    def _start_reading(self, first: int) -> Generator[tuple[Plan, list[Batch]], None, None]:
        """Yields the batches of this update and all later ones."""
        plans = (
            (update, [sampler.batch(update) for sampler in self._samplers])
            for update in range(first, max(first + 1, self._spec.updates))
        )
        readers = self._loader.readers
        return read_ahead(
            plans, self._read_batches, self._count_bytes, readers, 2 * readers, READ_AHEAD_BYTES
        )

    def _count_bytes(self, plan: Plan) -> int:
        return sum(
            self._loader.count_bytes(index, data.train[place].utterance)
            for index, (data, places) in enumerate(zip(self._objectives, plan[1], strict=True))
            for place in places
        )

    def _read_batches(self, plan: Plan) -> list[Batch]:
        """Reads one batch of each objective. Runs in a reading thread."""
        update, places_by_objective = plan
        batches = []
        for index, data in enumerate(self._objectives):
            crop_rng, mask_rng = (
                make_generator(self._spec.seed, stream, index, update)
                for stream in (Stream.CROP, Stream.MASK)
            )
            examples = [data.train[place] for place in places_by_objective[index]]
            longest, step = self._crop_samples[index], data.crop_step_samples
            clips = [
                self._loader.read(index, item.utterance, longest, crop_rng, step)
                for item in examples
            ]
            batches.append(Batch(*make_targets(data, examples, clips, mask_rng), clips))
        return batches

    def _compute_gradients(
        self, state: TrainState, update: int, batches: Sequence[Batch], cache_head_phase: bool
    ) -> list[float]:
        """Accumulates the gradients of all objectives and returns their weighted losses.

        Starts again with smaller micro-batches when a GPU runs out of memory.
        """
        while True:
            state.optimizer.zero_grad(set_to_none=True)
            seed_torch(self._spec.seed, Stream.UPDATE, update)
            try:
                return [
                    self._backward(state, index, batch, cache_head_phase)
                    for index, batch in enumerate(batches)
                ]
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._halve_micro_batch(batches, error)
            # Not in `except`: there the traceback holds the activations.
            state.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()

    def _backward(
        self, state: TrainState, index: int, batch: Batch, cache_head_phase: bool
    ) -> float:
        """Accumulates the gradient of one objective and returns its weighted loss."""
        data = self._objectives[index]
        units = max(1, sum(data.kind.loss_weight(target) for target in batch.targets))
        total = 0.0
        for places in batch_by_seconds(
            [clip.samples for clip in batch.clips], self.micro_batch_seconds
        ):
            targets = [batch.targets[place] for place in places]
            clips = [batch.clips[place] for place in places]
            masks = batch.masks and [batch.masks[place] for place in places]
            with autocast_products(self._spec.precision, state.device):
                # Encode the micro-batch, or take the frozen encoder's cached outputs.
                if cache_head_phase and masks is None:
                    features, frames = self._frozen_states.last_states(self._loader, index, clips)
                else:
                    features, frames = _encode_last(self._loader, clips, masks)
                logits = state.heads[index](features, frames)
            # Weight the mean loss of the micro-batch by its share of the batch.
            share = sum(data.kind.loss_weight(target) for target in targets) / units
            weighted = (
                data.objective.weight * share * data.kind.loss(logits.float(), frames, targets)
            )
            weighted.backward()  # type: ignore[no-untyped-call]
            total += float(weighted.detach())
        return total

    def _halve_micro_batch(self, batches: Sequence[Batch], error: RuntimeError) -> None:
        """Halves the largest part of these batches. Raises ``GpuMemoryError`` where each is one
        clip."""
        lengths = [
            [clips[place].samples for place in places]
            for clips in (batch.clips for batch in batches)
            for places in batch_by_seconds(
                [clip.samples for clip in clips], self.micro_batch_seconds
            )
        ]
        if max(map(len, lengths)) == 1:
            raise GpuMemoryError(
                "the GPU's memory is too small for one recording of "
                f"{max(map(max, lengths)) / SAMPLE_RATE_HZ:.3g} s: lower `crop_seconds`, or take a "
                "larger GPU; the run goes on from its last saved state."
            ) from error
        largest = max(max(part) * len(part) for part in lengths) / SAMPLE_RATE_HZ
        self.micro_batch_seconds = min(self.micro_batch_seconds, largest) / 2
        _log.warning(
            "the GPU's memory is too small: batches are split into parts of %.3g s of audio from "
            "now on",
            self.micro_batch_seconds,
        )


class Batch(NamedTuple):
    """One batch of one objective."""

    targets: list[torch.Tensor]
    masks: list[torch.Tensor] | None
    """Frames replaced by the mask embedding, bool ``(frames,)`` each; None without masking."""
    clips: list[AudioClip]


class FrozenStateCache:
    """Last hidden states of the frozen encoder without dropout, one per uncropped utterance.

    Each utterance is encoded once, alone.
    """

    def __init__(self) -> None:
        self._states: dict[tuple[int, str], torch.Tensor] = {}
        self._left_bytes = HEAD_PHASE_BYTES

    def last_states(
        self, loader: FeatureLoader, index: int, clips: Sequence[AudioClip]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the last hidden states ``(batch, frames, dim)`` and the frames ``(batch,)``."""
        states = [self._last_state(loader, index, clip) for clip in clips]
        return nn.utils.rnn.pad_sequence(states, batch_first=True), torch.tensor(
            [len(state) for state in states]
        )

    def clear(self) -> None:
        """Removes all states."""
        self._states.clear()

    @torch.no_grad()
    def _last_state(self, loader: FeatureLoader, index: int, clip: AudioClip) -> torch.Tensor:
        key = (index, clip.key)
        if clip.whole and key in self._states:
            return self._states[key]
        states = loader.encode([clip])
        last = states.states[-1][0, : int(states.frames[0])].clone()
        if clip.whole and last.nbytes <= self._left_bytes:
            self._states[key] = last
            self._left_bytes -= last.nbytes
        return last


def _encode_last(
    loader: FeatureLoader, clips: Sequence[AudioClip], masks: Sequence[torch.Tensor] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    states = loader.encode(clips, masks)
    return states.states[-1], states.frames
