"""The training loop: updates, validations, the best checkpoint, the curve, and saved states."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from speechft_ray.core.curves import POINT, name_finetune_values
from speechft_ray.core.errors import UserError
from speechft_ray.core.metrics import is_better
from speechft_ray.core.preemption import leave_if_asked, must_leave
from speechft_ray.core.specs import FinetuneSpec
from speechft_ray.finetuning.batches import MICRO_BATCH_SECONDS
from speechft_ray.finetuning.data import ObjectiveData
from speechft_ray.finetuning.features import FeatureLoader
from speechft_ray.finetuning.penalties import compute_distances
from speechft_ray.finetuning.phases import head_only_updates
from speechft_ray.finetuning.schedule import learning_rate
from speechft_ray.finetuning.train_state import TrainState
from speechft_ray.finetuning.trainer import StepResult, Trainer
from speechft_ray.finetuning.validation import average_metrics, compute_dev_metrics, goodness
from speechft_ray.speech import checkpointing
from speechft_ray.speech.precision import use_float32_products

SAVE_EVERY_SECONDS = 10.0
"""Shortest time between two saved states: the work that a killed run loses, if saving is fast."""

SAVE_SHARE = 0.05
"""Largest share of the time spent on saving: a state that takes 1 s to write is written every
20 s."""

REPORT_EVERY_SECONDS = 2.0
"""Longest time between two reports."""

CURVE_POINTS = 100
"""Evenly spaced points of the curve, besides those of the validations."""

Report = Callable[[Mapping[str, float]], None]


@dataclass(kw_only=True)
class Progress:
    """How far a run is. Plain data and tensors only, so that it can be saved as it is."""

    update: int = 0
    """Updates done."""
    curve: list[Any] = field(default_factory=list)
    """``[update, {name: value}]`` points."""
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    """Encoder tensors of the best validation (``_validate``), on the CPU; empty before the first
    one."""
    best_heads: dict[str, torch.Tensor] = field(default_factory=dict)
    """Heads of the best validation, on the CPU; empty unless the spec asks for merge statistics."""
    best_update: int = 0
    best_dev: float = 0.0
    best_values: list[float] = field(default_factory=list)
    """Dev metric of each objective at the best validation."""
    early_checkpoints: dict[str, Any] = field(default_factory=dict)
    """Encoder tensors, on the CPU, by fraction of the updates (``keep_at`` of the spec)."""
    steps: list[dict[str, float]] = field(default_factory=list)
    """Loss, its parts and the gradient norm of each update since the last point of the curve."""
    micro_batch_seconds: float = MICRO_BATCH_SECONDS
    """Halved whenever a GPU ran out of memory."""
    skipped: int = 0
    skipped_in_row: int = 0
    seconds: float = 0.0
    """Training time of all attempts, up to the last saved state."""


SAVED_NAMES = {"early_checkpoints": "kept", "micro_batch_seconds": "part_seconds"}
"""Fields of ``Progress`` whose name in saved states differs. States of earlier releases must stay
readable."""


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """The parts of one run."""

    spec: FinetuneSpec
    objectives: Sequence[ObjectiveData]
    loader: FeatureLoader
    state: TrainState
    work: Path
    identity: str
    """Fingerprint of the run. A saved state with another identity is refused."""


def train(run: RunContext, report: Report) -> Progress:
    """Performs the remaining updates, from the last saved state if there is one.

    A run that is killed and started again ends with the same bits on the CPU: an update depends on
    the train state and its own number alone, and does not depend on when states are saved.
    """
    progress = _resume(run)
    trainer = Trainer(run.spec, run.objectives, run.loader, progress.micro_batch_seconds)
    run.state.train(True)
    try:
        with use_float32_products(run.spec.precision, run.loader.device):
            _run_updates(run, progress, trainer, report)
    finally:
        trainer.close()
    return progress


def choose_interval(save_seconds: float) -> float:
    """Returns the seconds between two saved states, where the last save took so long."""
    return max(SAVE_EVERY_SECONDS, save_seconds / SAVE_SHARE)


def make_heartbeat(spec: FinetuneSpec, report: Report) -> Callable[[], None]:
    """Returns a function to call repeatedly after the last update: it reports whenever
    ``REPORT_EVERY_SECONDS`` have passed."""
    reported_at = time.monotonic()

    def heartbeat() -> None:
        nonlocal reported_at
        if time.monotonic() - reported_at >= REPORT_EVERY_SECONDS:
            report({"done": spec.updates, "total": spec.updates})
            reported_at = time.monotonic()

    return heartbeat


def _run_updates(run: RunContext, progress: Progress, trainer: Trainer, report: Report) -> None:
    started = saved_at = reported_at = time.monotonic()
    earlier_seconds, save_seconds = progress.seconds, 0.0
    while progress.update < run.spec.updates:
        # One update.
        _record_step(run.spec, progress, trainer.train_step(run.state, progress.update))
        progress.micro_batch_seconds = trainer.micro_batch_seconds
        now = time.monotonic()
        # A point of the curve and a validation, where they are due.
        values = _log_or_validate(run, progress)
        # A report: at points of the curve, and at least every REPORT_EVERY_SECONDS.
        if values or now - reported_at >= REPORT_EVERY_SECONDS:
            report(_make_report(run, progress, values))
            reported_at = now
        progress.seconds = earlier_seconds + time.monotonic() - started
        # A saved state, at most for SAVE_SHARE of the time, and before it must leave its node.
        if now - saved_at >= choose_interval(save_seconds) or must_leave():
            saving = time.monotonic()
            _save(run, progress)
            leave_if_asked()
            saved_at = time.monotonic()
            save_seconds = saved_at - saving


def _make_report(
    run: RunContext, progress: Progress, values: Mapping[str, float]
) -> dict[str, float]:
    """Returns what to report: a point of the curve with these values, or the means since the last
    point."""
    metrics = [data.kind.metric for data in run.objectives]
    metric, _ = average_metrics(metrics, [0.0] * len(metrics))
    heads = [objective.head for objective in run.spec.objectives]
    point = {name: value for name, value in values.items() if name != "goodness"}
    return {
        "done": progress.update,
        "total": run.spec.updates,
        **name_finetune_values(point or _average(progress.steps), heads, metrics, metric),
        **({POINT: progress.update} if values else {}),
        **({"goodness": values["goodness"]} if "goodness" in values else {}),
    }


def _record_step(spec: FinetuneSpec, progress: Progress, step: StepResult) -> None:
    progress.update += 1
    if step.applied:
        progress.steps.append(
            {"loss": step.loss, **step.loss_parts, "gradient_norm": step.gradient_norm}
        )
        progress.skipped_in_row = 0
        return
    progress.skipped += 1
    progress.skipped_in_row += 1
    if progress.skipped_in_row > spec.non_finite_limit:
        raise UserError(
            f"the loss or its gradient was not finite in {progress.skipped_in_row} updates one "
            f"after the other, up to update {progress.update}: lower `peak_learning_rate`, or look "
            "for silent or damaged recordings (`non_finite_limit` says how many a run survives)."
        )


def _log_or_validate(run: RunContext, progress: Progress) -> dict[str, float]:
    """Stores early checkpoints, validates and adds a point to the curve, where each is due.

    Returns the values of the point; empty without one.
    """
    spec, update = run.spec, progress.update
    for fraction in spec.keep_at:
        if update == checkpoint_update(fraction, spec.updates):
            progress.early_checkpoints[str(fraction)] = _copy_weights(
                run.state, run.state.weights()
            )
    validate = update % spec.validate_every_updates == 0 or update == spec.updates
    if not validate and update % max(1, spec.updates // CURVE_POINTS):
        return {}
    values = _average(progress.steps)
    values["learning_rate"] = learning_rate(
        update - 1, spec.updates, spec.peak_learning_rate, spec.schedule
    )
    values.update(compute_distances(run.state.weights(), run.state.anchors))
    report_only: dict[str, float] = {}
    if validate:
        dev_values, report_only["goodness"] = _validate(run, progress)
        values.update(dev_values)
    progress.steps = []
    progress.curve.append([update, values])
    return values | report_only


def checkpoint_update(fraction: float, updates: int) -> int:
    """Returns the number of updates at a fraction of a run, at least one."""
    return max(1, round(fraction * updates))


def _average(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns the mean of each value over the updates that have it."""
    names = dict.fromkeys(name for step in steps for name in step)
    columns = {name: [step[name] for step in steps if name in step] for name in names}
    return {name: sum(values) / len(values) for name, values in columns.items()}


def _validate(run: RunContext, progress: Progress) -> tuple[dict[str, float], float]:
    """Validates, and stores the weights when they are the best so far.

    A validation of the head-only phase counts only until there is a later one: its encoder is still
    the start, and would make every merge a copy of the start. Returns values for the curve, and the
    metric turned so that higher is better.
    """
    metrics = compute_dev_metrics(run.state, run.objectives, run.loader)
    name, dev = average_metrics([data.kind.metric for data in run.objectives], metrics)
    head_only = head_only_updates(run.spec.head_only_fraction, run.spec.updates)
    is_first_tuned = progress.best_update <= head_only < progress.update
    if not progress.best or is_first_tuned or is_better(name, dev, progress.best_dev):
        progress.best = _copy_weights(run.state, run.state.weights())
        if run.spec.gather:
            heads = run.state.heads.state_dict()
            progress.best_heads = {
                name: value.detach().to("cpu", copy=True) for name, value in heads.items()
            }
        progress.best_update, progress.best_dev = progress.update, dev
        progress.best_values = metrics
    by_objective = (
        {f"dev_{index}": value for index, value in enumerate(metrics)} if len(metrics) > 1 else {}
    )
    return {"dev": dev, **by_objective}, goodness(name, dev)


def _copy_weights(
    state: TrainState, changing: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Copies to the CPU what a run changes of the encoder: the ``weights`` or ``parameters`` of the
    train state, and buffers."""
    module = state.encoder.module()
    parameters = {name for name, _ in module.named_parameters()}
    buffers = {name: value for name, value in module.state_dict().items() if name not in parameters}
    return {
        name: value.detach().to("cpu", copy=True) for name, value in {**buffers, **changing}.items()
    }


def _save(run: RunContext, progress: Progress) -> None:
    state = run.state
    progress_values = {
        SAVED_NAMES.get(item.name, item.name): getattr(progress, item.name)
        for item in fields(progress)
    }
    checkpointing.save(
        run.work,
        progress.update,
        {
            "identity": run.identity,
            "progress": progress_values,
            "encoder": _copy_weights(state, state.parameters),
            "heads": state.heads.state_dict(),
            "optimizer": state.optimizer.state_dict(),
        },
    )


def _resume(run: RunContext) -> Progress:
    saved_state = checkpointing.load(run.work, run.identity)
    if saved_state is None:
        return Progress()
    run.state.encoder.module().load_state_dict(saved_state["encoder"], strict=False)
    run.state.heads.load_state_dict(saved_state["heads"])
    run.state.optimizer.load_state_dict(saved_state["optimizer"])
    field_names = {saved_name: name for name, saved_name in SAVED_NAMES.items()}
    values = saved_state["progress"].items()
    return Progress(**{field_names.get(name, name): value for name, value in values})
