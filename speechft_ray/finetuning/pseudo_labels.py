"""Targets without labels: the start encoder's own name of every frame, worked out before the first
update.

Each utterance is named whole, alone, unmasked and without dropout, as the paper's first author does
in a sibling repository. The names are kept with the unfinished run, so that one that goes on need
not ask the start again.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.units import frame_count
from speechft_ray.finetuning import checkpointing as saved
from speechft_ray.finetuning.data import Example, Lesson
from speechft_ray.finetuning.features import Listener, Sound
from speechft_ray.finetuning.loop import REPORT_EVERY_SECONDS, Report
from speechft_ray.finetuning.masks import taught
from speechft_ray.finetuning.seeding import Draw, generator


def with_names(
    lessons: Sequence[Lesson], listener: Listener, work: Path, identity: str, report: Report
) -> list[Lesson]:
    """Returns the lessons, those that learn from audio alone with the names of their frames as
    targets, int32 ``(frames,)``.

    Dev utterances come masked, at the same frames in every run. ``listener`` hears with the start
    encoder, which is left in eval mode. ``work`` keeps the names for the run of that ``identity``.
    ``report`` gets ``named`` and ``to_name`` (utterances). Raises ``UserError`` when the start
    names all training frames alike.
    """
    return [
        lesson
        if lesson.kind.masking is None
        else _named(lesson, index, _names(lesson, index, listener, work, identity, report))
        for index, lesson in enumerate(lessons)
    ]


def _named(lesson: Lesson, index: int, names: torch.Tensor) -> Lesson:
    """Gives each utterance its part of all names in a row, first those of the training
    utterances."""
    examples = [*lesson.train, *lesson.dev]
    parts = torch.split(names, [frame_count(item.utterance.samples) for item in examples])
    named = [
        dataclasses.replace(item, target=part) for item, part in zip(examples, parts, strict=True)
    ]
    train, dev = named[: len(lesson.train)], named[len(lesson.train) :]
    taught_names = torch.cat([item.target for item in train])
    if taught_names.min() == taught_names.max():
        raise UserError(
            f"corpus `{lesson.corpus.name}`: the start encoder names all training frames alike, so there is nothing to learn: "
            "start from an encoder whose pre-training got further."
        )
    masked = tuple(_masked(lesson, item, index, place) for place, item in enumerate(dev))
    return dataclasses.replace(lesson, train=tuple(train), dev=masked)


def _masked(lesson: Lesson, example: Example, index: int, place: int) -> Example:
    whole = Sound(example.utterance.key, example.utterance.samples, True)
    found = taught(lesson, [example], [whole], generator(0, Draw.DEV_MASK, index, place))
    assert found.masked is not None  # this lesson masks
    return dataclasses.replace(example, target=found.targets[0], masked=found.masked[0])


def _names(
    lesson: Lesson, index: int, listener: Listener, work: Path, identity: str, report: Report
) -> torch.Tensor:
    """Returns the names of all frames in a row, int32, from ``work`` if they are there."""
    kind = f"names{index}"
    kept = saved.load(work, identity, kind)
    if kept is not None:
        found: torch.Tensor = kept["names"]
        return found
    names = torch.cat(_asked(lesson, index, listener, report))
    saved.save(work, 0, {"identity": identity, "names": names}, kind)
    return names


@torch.no_grad()
def _asked(lesson: Lesson, index: int, listener: Listener, report: Report) -> list[torch.Tensor]:
    masking, module = lesson.kind.masking, listener.encoder.module().eval()
    assert masking is not None  # asked for lessons that mask alone
    examples, reported_at, found = [*lesson.train, *lesson.dev], time.monotonic(), []
    for example in examples:
        states = listener.states([listener.read(index, example.utterance, None)]).states[-1][0]
        found.append(masking.compute_labels(lesson.options, module, states).to("cpu", torch.int32))
        if time.monotonic() - reported_at >= REPORT_EVERY_SECONDS:
            report({"named": len(found), "to_name": len(examples)})
            reported_at = time.monotonic()
    return found
