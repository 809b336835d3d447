"""Pseudo-labels of unlabelled audio, predicted by the start encoder before the first update.

Each utterance is encoded whole, alone, unmasked and without dropout, as the paper's first author
does in a sibling repository. The labels are saved with the unfinished run, so that a resumed run
does not predict them again.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.units import frame_count
from speechft_ray.finetuning.data import Example, ObjectiveData
from speechft_ray.finetuning.features import AudioClip, FeatureLoader
from speechft_ray.finetuning.loop import REPORT_EVERY_SECONDS, Report
from speechft_ray.finetuning.seeding import Stream, make_generator
from speechft_ray.finetuning.targets import make_targets
from speechft_ray.speech import checkpointing


def with_pseudo_labels(
    objectives: Sequence[ObjectiveData],
    loader: FeatureLoader,
    work: Path,
    identity: str,
    report: Report,
) -> list[ObjectiveData]:
    """Returns the objectives, with pseudo-labels as targets, int32 ``(frames,)``, where the head
    learns from audio alone.

    Dev utterances are masked at the same frames in every run. ``loader`` holds the start encoder,
    which is left in eval mode. ``work`` keeps the labels for the run of that ``identity``.
    ``report`` gets ``named`` and ``to_name`` (utterances). Raises ``UserError`` when all training
    frames have the same label.
    """
    return [
        data
        if data.kind.masking is None
        else _assign_labels(
            data, index, _load_or_predict_labels(data, index, loader, work, identity, report)
        )
        for index, data in enumerate(objectives)
    ]


def _assign_labels(data: ObjectiveData, index: int, labels: torch.Tensor) -> ObjectiveData:
    """Sets the targets of all examples; ``labels``: all frames in a row, those of train first."""
    examples = [*data.train, *data.dev]
    targets = torch.split(labels, [frame_count(item.utterance.samples) for item in examples])
    labelled = [
        dataclasses.replace(item, target=target)
        for item, target in zip(examples, targets, strict=True)
    ]
    train, dev = labelled[: len(data.train)], labelled[len(data.train) :]
    train_labels = torch.cat([item.target for item in train])
    if train_labels.min() == train_labels.max():
        raise UserError(
            f"corpus `{data.corpus.name}`: the start encoder names all training frames alike, so "
            "there is nothing to learn: start from an encoder whose pre-training got further."
        )
    dev_masked = tuple(_mask_dev(data, item, index, place) for place, item in enumerate(dev))
    return dataclasses.replace(data, train=tuple(train), dev=dev_masked)


def _mask_dev(data: ObjectiveData, example: Example, index: int, place: int) -> Example:
    clip = AudioClip(example.utterance.key, example.utterance.samples, True)
    rng = make_generator(0, Stream.DEV_MASK, index, place)
    (target,), masks = make_targets(data, [example], [clip], rng)
    assert masks is not None  # only called for heads that mask
    return dataclasses.replace(example, target=target, mask=masks[0])


def _load_or_predict_labels(
    data: ObjectiveData,
    index: int,
    loader: FeatureLoader,
    work: Path,
    identity: str,
    report: Report,
) -> torch.Tensor:
    """Returns the labels of all frames in a row, int32, from ``work`` if they are there."""
    kind = f"names{index}"
    saved_labels = checkpointing.load(work, identity, kind)
    if saved_labels is not None:
        labels: torch.Tensor = saved_labels["names"]
        return labels
    labels = torch.cat(_predict_labels(data, index, loader, report))
    checkpointing.save(work, 0, {"identity": identity, "names": labels}, kind)
    return labels


@torch.no_grad()
def _predict_labels(
    data: ObjectiveData, index: int, loader: FeatureLoader, report: Report
) -> list[torch.Tensor]:
    masking, module = data.kind.masking, loader.encoder.module().eval()
    assert masking is not None  # only called for heads that mask
    examples, reported_at = [*data.train, *data.dev], time.monotonic()
    labels: list[torch.Tensor] = []
    for _, clips in loader.read_groups(index, [[example] for example in examples]):
        states = loader.encode(clips).states[-1][0]
        labels.append(masking.compute_labels(data.options, module, states).to("cpu", torch.int32))
        if time.monotonic() - reported_at >= REPORT_EVERY_SECONDS:
            report({"named": len(labels), "to_name": len(examples)})
            reported_at = time.monotonic()
    return labels
