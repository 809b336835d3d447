"""One update: what is read for it, who learns, and by how much."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import nn

from speechft_ray.core.errors import UserError
from speechft_ray.core.specs import FinetuneSpec
from speechft_ray.finetuning.batches import PART_SECONDS, BatchOrder
from speechft_ray.finetuning.data import Lesson, crop_samples
from speechft_ray.finetuning.features import Listener, Sound, precision
from speechft_ray.finetuning.masks import taught
from speechft_ray.finetuning.penalties import l2_sp
from speechft_ray.finetuning.phases import is_head_only
from speechft_ray.finetuning.schedule import learning_rate
from speechft_ray.finetuning.seeding import Draw, generator, seed_torch
from speechft_ray.finetuning.train_state import Learner
from speechft_ray.speech.batching import batch_by_seconds

HEAD_PHASE_BYTES = 1 << 30
"""Most that the encoder's output may take in memory in a head-only phase without dropout: 1.9 hours
of a Base encoder."""

_log = logging.getLogger(__name__)


class Step(NamedTuple):
    """What one update did; ``taken`` is false when loss or gradient was not finite and nothing was
    changed."""

    taken: bool
    loss: float
    """What was minimised: the weighted losses of all objectives, and the penalty."""
    gradient_norm: float
    """Before clipping."""
    parts: Mapping[str, float]
    """What the loss is made of: ``loss_0``, ... by objective where there are several, and
    ``penalty``."""


class Teacher:
    """Takes the updates of a run, one by one. Update ``k`` depends on the learner and on ``k``
    alone.

    While one update is computed, a thread reads what the next one needs. ``part_seconds``: padded
    audio that goes through the encoder at once; a longer batch is learned in parts whose gradients
    add up. It is halved once when a GPU has no memory.
    """

    def __init__(
        self, spec: FinetuneSpec, lessons: Sequence[Lesson], listener: Listener, part_seconds: float
    ) -> None:
        self.part_seconds = part_seconds
        self._spec = spec
        self._lessons = lessons
        self._listener = listener
        self._crops = [crop_samples(lesson, spec.crop_seconds) for lesson in lessons]
        self._orders = [
            BatchOrder(
                [item.utterance.samples for item in lesson.train],
                lesson.objective.batch_size,
                spec.seed,
                index,
            )
            for index, lesson in enumerate(lessons)
        ]
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="speechft-reader")
        self._ahead: tuple[int, Future[list[Batch]]] | None = None
        self._known = _Known()
        self._halved = part_seconds < PART_SECONDS

    def update(self, learner: Learner, update: int) -> Step:
        """Performs update number ``update`` (from 0). Raises ``UserError`` when half a part is too
        much for a GPU."""
        spec = self._spec
        head_only = is_head_only(update, spec.head_only_fraction, spec.updates)
        for value in learner.parameters.values():
            value.requires_grad_(not head_only)
        quiet = head_only and not spec.head_phase_dropout
        learner.encoder.module().train(not quiet)
        if not quiet:
            self._known.clear()
        batches = self._read(update)
        losses = self._gradients(learner, update, batches, quiet)
        parts = (
            {f"loss_{index}": loss for index, loss in enumerate(losses)} if len(losses) > 1 else {}
        )
        loss = sum(losses)
        if spec.anchor_penalty and not head_only:
            penalty = l2_sp(learner.weights(), learner.anchors, spec.anchor_penalty)
            penalty.backward()  # type: ignore[no-untyped-call]
            parts["penalty"] = float(penalty.detach())
            loss += parts["penalty"]
        trained = [
            value
            for group in learner.optimizer.param_groups
            for value in group["params"]
            if value.grad is not None
        ]
        norm = float(nn.utils.clip_grad_norm_(trained, spec.clip_norm))
        taken = math.isfinite(loss) and math.isfinite(norm)
        if taken:
            rate = learning_rate(update, spec.updates, spec.peak_learning_rate, spec.schedule)
            for group in learner.optimizer.param_groups:
                group["lr"] = rate
            learner.optimizer.step()
        return Step(taken, loss, norm, parts)

    def close(self) -> None:
        """Ends the reading thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, update: int) -> list[Batch]:
        """Returns what an update learns from, and begins to read for the one after."""
        if self._ahead is not None and self._ahead[0] == update:
            found = self._ahead[1].result()
        else:
            found = self._pool.submit(self._batches, update).result()
        self._ahead = (
            (update + 1, self._pool.submit(self._batches, update + 1))
            if update + 1 < self._spec.updates
            else None
        )
        return found

    def _batches(self, update: int) -> list[Batch]:
        """Reads the batches of all objectives. Runs in the reading thread."""
        found = []
        for index, lesson in enumerate(self._lessons):
            crop, mask = (
                generator(self._spec.seed, draw, index, update) for draw in (Draw.CROP, Draw.MASK)
            )
            examples = [lesson.train[place] for place in self._orders[index].batch(update)]
            longest, step = self._crops[index], lesson.crop_step_samples
            sounds = [
                self._listener.read(index, item.utterance, longest, crop, step) for item in examples
            ]
            found.append(Batch(*taught(lesson, examples, sounds, mask), sounds))
        return found

    def _gradients(
        self, learner: Learner, update: int, batches: Sequence[Batch], quiet: bool
    ) -> list[float]:
        """Leaves the gradient of all objectives and returns their weighted losses."""
        while True:
            learner.optimizer.zero_grad(set_to_none=True)
            seed_torch(self._spec.seed, Draw.UPDATE, update)
            try:
                return [
                    self._backward(learner, index, batch, quiet)
                    for index, batch in enumerate(batches)
                ]
            except torch.OutOfMemoryError as error:
                self._halve(learner, error)

    def _backward(self, learner: Learner, index: int, batch: Batch, quiet: bool) -> float:
        """Adds the gradient of one objective and returns its weighted loss."""
        lesson = self._lessons[index]
        units = max(1, sum(lesson.kind.loss_weight(target) for target in batch.targets))
        total = 0.0
        for part in batch_by_seconds([sound.samples for sound in batch.sounds], self.part_seconds):
            targets = [batch.targets[place] for place in part]
            sounds = [batch.sounds[place] for place in part]
            with precision(learner.device):
                if quiet and batch.masked is None:
                    last, frames = self._known.last(self._listener, index, sounds)
                else:
                    last, frames = _last(
                        self._listener,
                        sounds,
                        batch.masked and [batch.masked[place] for place in part],
                    )
                logits = learner.heads[index](last, frames)
            share = sum(lesson.kind.loss_weight(target) for target in targets) / units
            weighted = (
                lesson.objective.weight * share * lesson.kind.loss(logits.float(), frames, targets)
            )
            weighted.backward()  # type: ignore[no-untyped-call]
            total += float(weighted.detach())
        return total

    def _halve(self, learner: Learner, error: torch.OutOfMemoryError) -> None:
        if self._halved:
            raise UserError(
                f"the GPU's memory is too small for a batch even in parts of {self.part_seconds:g} s of audio: lower "
                "`batch_size` or `crop_seconds`, or take a larger GPU; the run goes on from its last saved state."
            ) from error
        self._halved = True
        learner.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        self.part_seconds /= 2
        _log.warning(
            "the GPU's memory is too small: batches are learned in parts of %g s of audio from now on",
            self.part_seconds,
        )


class Batch(NamedTuple):
    """What one objective learns from in one update."""

    targets: list[torch.Tensor]
    masked: list[torch.Tensor] | None
    """Frames that the encoder does not hear, bool ``(frames,)`` each; None where it hears all."""
    sounds: list[Sound]


class _Known:
    """What the frozen encoder says of whole utterances while it does not drop out, each computed
    once and alone."""

    def __init__(self) -> None:
        self._states: dict[tuple[int, str], torch.Tensor] = {}
        self._left_bytes = HEAD_PHASE_BYTES

    def last(
        self, listener: Listener, index: int, sounds: Sequence[Sound]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the last hidden states ``(batch, frames, dim)`` and the frames ``(batch,)``."""
        found = [self._of(listener, index, sound) for sound in sounds]
        return nn.utils.rnn.pad_sequence(found, batch_first=True), torch.tensor(
            [len(states) for states in found]
        )

    def clear(self) -> None:
        """Forgets everything."""
        self._states.clear()

    @torch.no_grad()
    def _of(self, listener: Listener, index: int, sound: Sound) -> torch.Tensor:
        key = (index, sound.key)
        if sound.whole and key in self._states:
            return self._states[key]
        states = listener.states([sound])
        last = states.states[-1][0, : int(states.frames[0])].clone()
        if sound.whole and last.nbytes <= self._left_bytes:
            self._states[key] = last
            self._left_bytes -= last.nbytes
        return last


def _last(
    listener: Listener, sounds: Sequence[Sound], masked: Sequence[torch.Tensor] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    states = listener.states(sounds, masked)
    return states.states[-1], states.frames
