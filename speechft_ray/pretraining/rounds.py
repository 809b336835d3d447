"""One round of masked prediction: updates, held-out scores, and a saved state to resume from."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.files import atomic_write
from speechft_ray.pretraining.crops import CropSource, draw_crops, iter_crops
from speechft_ray.pretraining.masking import MaskedLoss, compute_masked_loss, draw_span_mask
from speechft_ray.pretraining.recipe import PretrainOptions
from speechft_ray.pretraining.reverberation import add_reverberation

# HuBERT Base (fairseq config/pretrain/hubert_base_librispeech.yaml)
_BETAS, _WEIGHT_DECAY = (0.9, 0.98), 0.01
_CLIP_NORM = 1.0
_HELD_OUT_SEED = 1
"""Seed of masks and noise of held-out scores: the same at every score and for every training
seed."""

LabelledSource = tuple[CropSource, np.ndarray]
"""The utterances of a split, and the labels of their frames in a row, ``(all frames,)`` int16."""


def learning_rate(options: PretrainOptions, update: int, updates: int) -> float:
    """Returns the learning rate of one update (from 0): it rises linearly over the warm-up and then
    falls linearly to 0."""
    done = (update + 1) / updates
    return options.learning_rate * min(
        done / options.warmup_fraction, (1 + 1 / updates - done) / (1 - options.warmup_fraction)
    )


def train_round(
    model: torch.nn.Module,
    options: PretrainOptions,
    number: int,
    train: LabelledSource,
    held_out: LabelledSource,
    folder: Path,
    advance: Callable[[int], None],
) -> list[dict[str, float]]:
    """Trains the model in place through round ``number`` (from 0) and returns its learning curve.

    ``folder`` holds ``state.pt``, written at every held-out score. A second call resumes from it
    and ends in the same weights as an uninterrupted one. ``advance(update)`` is called after each
    update. Raises ``UserError`` when the loss is not finite.
    """
    updates = options.updates[number]
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=options.learning_rate,
        betas=_BETAS,
        weight_decay=_WEIGHT_DECAY,
        fused=True,
    )
    # Resume from the saved state, if there is one.
    first, curve, cpu_seconds = _resume(folder / "state.pt", model, optimizer)
    started = time.process_time() - cpu_seconds
    losses: list[float] = []
    for update in range(first, updates):
        # One update, with a generator of its own.
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(options, update, updates)
        rng = np.random.default_rng([options.seed, number, update])
        losses.append(_train_step(model, optimizer, options, train, rng))
        if not np.isfinite(losses[-1]):
            raise UserError(
                f"the loss of update {update} is {losses[-1]}; go on from an empty folder with a "
                "smaller `learning_rate`."
            )
        advance(update + 1)
        # A held-out score and a saved state.
        if (update + 1) % options.score_every == 0 or update + 1 == updates:
            loss = round(sum(losses) / len(losses), 4)
            accuracy = compute_masked_accuracy(model, options, held_out)
            curve.append(
                {
                    "round": number + 1,
                    "update": update + 1,
                    "loss": loss,
                    "held_out_masked_accuracy": accuracy,
                    "cpu_seconds": round(time.process_time() - started, 1),
                }
            )
            _write_jsonl(folder / "curve.jsonl", curve)
            losses.clear()
            _save(
                folder / "state.pt",
                model,
                optimizer,
                update + 1,
                curve,
                time.process_time() - started,
            )
    return curve


def compute_masked_accuracy(
    model: torch.nn.Module, options: PretrainOptions, held_out: LabelledSource
) -> float:
    """Returns the accuracy at masked frames of the held-out split, in float32; masks, reverberation
    and noise have a fixed seed."""
    rng = np.random.default_rng(_HELD_OUT_SEED)
    correct = masked = 0
    model.eval()
    with torch.inference_mode():
        for waves, targets in iter_crops(
            *held_out,
            crops=options.batch_crops,
            crop_frames=options.crop_frames,
            crop_samples=options.crop_samples,
        ):
            batch = _predict(model, options, add_reverberation(waves, rng), targets, rng)
            correct, masked = correct + batch.correct, masked + batch.masked
    return round(correct / masked, 5)


def write_curve(path: Path, curve: list[dict[str, float]]) -> None:
    """Writes the learning curve as CSV, one row per held-out score."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fieldnames=list(curve[0]))
        table.writeheader()
        table.writerows(curve)


def _train_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    options: PretrainOptions,
    train: LabelledSource,
    rng: np.random.Generator,
) -> float:
    """Performs one update and returns its loss.

    Crops, noise and masks follow from ``rng``, so that no generator state has to be saved.
    """
    waves, targets = draw_crops(
        *train,
        crops=options.batch_crops,
        crop_frames=options.crop_frames,
        crop_samples=options.crop_samples,
        rng=rng,
    )
    model.train()
    waves = add_reverberation(waves, rng)
    with torch.autocast(waves.device.type, dtype=torch.bfloat16, enabled=options.bfloat16):
        loss = _predict(model, options, waves, targets, rng).loss
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP_NORM)
    optimizer.step()
    return float(loss.detach())


def _predict(
    model: torch.nn.Module,
    options: PretrainOptions,
    waves: torch.Tensor,
    targets: torch.Tensor,
    rng: np.random.Generator,
) -> MaskedLoss:
    mask = draw_span_mask(
        *targets.shape, fraction=options.mask_fraction, length=options.mask_length, rng=rng
    )
    return compute_masked_loss(
        model, waves, targets, torch.from_numpy(mask), options.unmasked_weight
    )


def _save(
    path: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    update: int,
    curve: list[dict[str, float]],
    cpu_seconds: float,
) -> None:
    state: dict[str, Any] = {"model": model.state_dict(), "optimiser": optimizer.state_dict()}
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        torch.save(state | {"update": update, "curve": curve, "cpu_seconds": cpu_seconds}, file)


def _resume(
    path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, list[dict[str, float]], float]:
    if not path.exists():
        return 0, [], 0.0
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimiser"])
    return state["update"], state["curve"], state["cpu_seconds"]


def _write_jsonl(path: Path, curve: list[dict[str, float]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in curve), encoding="utf-8")
