"""One round of masked prediction: updates, held-out scores, and a state on disk from which to go
on."""

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
from speechft_ray.pretraining.crops import Source, drawn, in_a_row
from speechft_ray.pretraining.masking import MaskedLoss, masked_prediction, spans
from speechft_ray.pretraining.recipe import PretrainOptions
from speechft_ray.pretraining.reverberation import in_rooms

_BETAS, _WEIGHT_DECAY = (
    (0.9, 0.98),
    0.01,
)  # HuBERT Base (fairseq config/pretrain/hubert_base_librispeech.yaml)
_CLIP_NORM = 1.0
_HELD_OUT_SEED = (
    1  # of the held-out masks, the same at every score and for every seed of the training
)

Labelled = tuple[Source, np.ndarray]


def learning_rate(options: PretrainOptions, update: int, updates: int) -> float:
    """Returns the rate of one update, counted from 0: linear up over the warm-up, then linear down
    to 0 after the last."""
    done = (update + 1) / updates
    return options.learning_rate * min(
        done / options.warmup_fraction, (1 + 1 / updates - done) / (1 - options.warmup_fraction)
    )


def train_round(
    model: torch.nn.Module,
    options: PretrainOptions,
    number: int,
    train: Labelled,
    held_out: Labelled,
    folder: Path,
    advance: Callable[[int], None],
) -> list[dict[str, float]]:
    """Trains the model in place through round ``number`` (from 0) and returns its learning curve.

    ``folder`` keeps ``state.pt``, written at every held-out score; a second call goes on from there
    and ends in the same weights as one that was never stopped. ``advance(update)`` is called after
    each update. Raises ``UserError`` when the loss is not finite.
    """
    updates = options.updates[number]
    optimiser = torch.optim.AdamW(
        model.parameters(),
        lr=options.learning_rate,
        betas=_BETAS,
        weight_decay=_WEIGHT_DECAY,
        fused=True,
    )
    first, curve, spent = _resume(folder / "state.pt", model, optimiser)
    clock = time.process_time() - spent
    losses: list[float] = []
    for update in range(first, updates):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(options, update, updates)
        losses.append(
            _update(
                model,
                optimiser,
                options,
                train,
                np.random.default_rng([options.seed, number, update]),
            )
        )
        if not np.isfinite(losses[-1]):
            raise UserError(
                f"the loss of update {update} is {losses[-1]}; go on from an empty folder with a smaller `learning_rate`."
            )
        advance(update + 1)
        if (update + 1) % options.score_every == 0 or update + 1 == updates:
            row = {
                "round": number + 1,
                "update": update + 1,
                "loss": round(sum(losses) / len(losses), 4),
            }
            accuracy = masked_accuracy(model, options, held_out)
            curve.append(
                row
                | {
                    "held_out_masked_accuracy": accuracy,
                    "cpu_seconds": round(time.process_time() - clock, 1),
                }
            )
            _log(folder / "curve.jsonl", curve)
            losses.clear()
            _save(
                folder / "state.pt",
                model,
                optimiser,
                update + 1,
                curve,
                time.process_time() - clock,
            )
    return curve


def masked_accuracy(model: torch.nn.Module, options: PretrainOptions, held_out: Labelled) -> float:
    """Returns the fraction of hidden frames of the held-out split that are named rightly, in
    float32, at masks, rooms and noise of a fixed seed."""
    rng = np.random.default_rng(_HELD_OUT_SEED)
    right = masked = 0
    model.eval()
    with torch.inference_mode():
        for waves, targets in in_a_row(
            *held_out,
            crops=options.batch_crops,
            crop_frames=options.crop_frames,
            crop_samples=options.crop_samples,
        ):
            found = _predict(model, options, in_rooms(waves, rng), targets, rng)
            right, masked = right + found.right, masked + found.masked
    return round(right / masked, 5)


def write_curve(path: Path, curve: list[dict[str, float]]) -> None:
    """Writes the learning curve as CSV, one row per held-out score."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fieldnames=list(curve[0]))
        table.writeheader()
        table.writerows(curve)


def _update(
    model: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    options: PretrainOptions,
    train: Labelled,
    rng: np.random.Generator,
) -> float:
    """One update; its generator makes crops and masks, so that no random state has to be kept for
    going on."""
    waves, targets = drawn(
        *train,
        crops=options.batch_crops,
        crop_frames=options.crop_frames,
        crop_samples=options.crop_samples,
        rng=rng,
    )
    model.train()
    waves = in_rooms(waves, rng)
    with torch.autocast(waves.device.type, dtype=torch.bfloat16, enabled=options.bfloat16):
        loss = _predict(model, options, waves, targets, rng).loss
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP_NORM)
    optimiser.step()
    return float(loss.detach())


def _predict(
    model: torch.nn.Module,
    options: PretrainOptions,
    waves: torch.Tensor,
    targets: torch.Tensor,
    rng: np.random.Generator,
) -> MaskedLoss:
    hidden = spans(
        *targets.shape, fraction=options.mask_fraction, length=options.mask_length, rng=rng
    )
    return masked_prediction(
        model, waves, targets, torch.from_numpy(hidden), options.unmasked_weight
    )


def _save(
    path: Path,
    model: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    update: int,
    curve: list[dict[str, float]],
    spent: float,
) -> None:
    state: dict[str, Any] = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
    part = path.with_suffix(".part")
    torch.save(state | {"update": update, "curve": curve, "cpu_seconds": spent}, part)
    part.replace(path)


def _resume(
    path: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer
) -> tuple[int, list[dict[str, float]], float]:
    if not path.exists():
        return 0, [], 0.0
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return state["update"], state["curve"], state["cpu_seconds"]


def _log(path: Path, curve: list[dict[str, float]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in curve), encoding="utf-8")
