"""The training loop: updates, validations, the best checkpoint, the curve, and states to go on
from."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.metrics import is_better
from speechft_ray.core.specs import FinetuneSpec
from speechft_ray.finetuning import checkpointing as saved
from speechft_ray.finetuning.batches import PART_SECONDS
from speechft_ray.finetuning.data import Lesson
from speechft_ray.finetuning.features import Listener
from speechft_ray.finetuning.penalties import distances
from speechft_ray.finetuning.schedule import learning_rate
from speechft_ray.finetuning.train_state import Learner
from speechft_ray.finetuning.trainer import Step, Teacher
from speechft_ray.finetuning.validation import dev_values, goodness, overall

SAVE_EVERY_SECONDS = 10.0
"""At most so much work is lost when a run is killed, as long as saving is fast."""

SAVE_SHARE = 0.05
"""Largest share of the time spent saving: a state that takes 1 s to write is written every 20 s."""

REPORT_EVERY_SECONDS = 2.0
"""Longest silence between two reports while updates are taken."""

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
    """Encoder tensors of the best validation, on the CPU; empty before the first one."""
    best_heads: dict[str, torch.Tensor] = field(default_factory=dict)
    """Heads of the best validation, on the CPU; empty where no statistics are gathered, which alone
    need them."""
    best_update: int = 0
    best_dev: float = 0.0
    best_values: list[float] = field(default_factory=list)
    """Dev metric of each objective at the best validation."""
    kept: dict[str, Any] = field(default_factory=dict)
    """Encoder tensors, on the CPU, by fraction of the updates at which they were to be kept
    (``keep_at``)."""
    steps: list[dict[str, float]] = field(default_factory=list)
    """Loss, its parts and the gradient's norm of each update since the last point of the curve."""
    part_seconds: float = PART_SECONDS
    """Halved where a GPU had no memory."""
    skipped: int = 0
    skipped_in_row: int = 0
    seconds: float = 0.0
    """Time spent, over all tries, up to the last saved state."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that one run consists of."""

    spec: FinetuneSpec
    lessons: Sequence[Lesson]
    listener: Listener
    learner: Learner
    work: Path
    identity: str
    """A saved state of another identity is refused."""


def train(run: Run, report: Report) -> Progress:
    """Takes all updates that are left, from the last saved state if there is one, and returns the
    finished progress.

    When the process dies and the run is started again, the result is the same to the bit on the
    CPU: an update depends on the learner and its own number alone, and when states are saved does
    not matter.
    """
    progress = _resume(run)
    teacher = Teacher(run.spec, run.lessons, run.listener, progress.part_seconds)
    run.learner.train(True)
    try:
        _take_updates(run, progress, teacher, report)
    finally:
        teacher.close()
    return progress


def pulse(spec: FinetuneSpec, report: Report) -> Callable[[], None]:
    """Returns what to call again and again after the last update: as often as is needed it reports
    that the run is alive."""
    reported_at = time.monotonic()

    def beat() -> None:
        nonlocal reported_at
        if time.monotonic() - reported_at >= REPORT_EVERY_SECONDS:
            report({"done": spec.updates, "total": spec.updates})
            reported_at = time.monotonic()

    return beat


def _take_updates(run: Run, progress: Progress, teacher: Teacher, report: Report) -> None:
    begun = saved_at = reported_at = time.monotonic()
    earlier_seconds, save_seconds = progress.seconds, 0.0
    while progress.update < run.spec.updates:
        _count(run.spec, progress, teacher.update(run.learner, progress.update))
        progress.part_seconds = teacher.part_seconds
        now = time.monotonic()
        values = _point(run, progress)
        if values or now - reported_at >= REPORT_EVERY_SECONDS:
            report(
                {
                    "done": progress.update,
                    "total": run.spec.updates,
                    **(values or _means(progress.steps)),
                }
            )
            reported_at = now
        progress.seconds = earlier_seconds + time.monotonic() - begun
        if now - saved_at >= max(SAVE_EVERY_SECONDS, save_seconds / SAVE_SHARE):
            saving = time.monotonic()
            _save(run, progress)
            saved_at = time.monotonic()
            save_seconds = saved_at - saving


def _count(spec: FinetuneSpec, progress: Progress, step: Step) -> None:
    progress.update += 1
    if step.taken:
        progress.steps.append(
            {"loss": step.loss, **step.parts, "gradient_norm": step.gradient_norm}
        )
        progress.skipped_in_row = 0
        return
    progress.skipped += 1
    progress.skipped_in_row += 1
    if progress.skipped_in_row > spec.non_finite_limit:
        raise UserError(
            f"the loss or its gradient was not finite in {progress.skipped_in_row} updates one after the other, up to update "
            f"{progress.update}: lower `peak_learning_rate`, or look for silent or damaged recordings "
            "(`non_finite_limit` says how many a run survives)."
        )


def _point(run: Run, progress: Progress) -> dict[str, float]:
    """Keeps what is to be kept at this update, and adds a point to the curve where one is due,
    validating where that is due; returns its values, else nothing."""
    spec, update = run.spec, progress.update
    for fraction in spec.keep_at:
        if update == kept_update(fraction, spec.updates):
            progress.kept[str(fraction)] = _copies(run.learner, run.learner.weights())
    validate = update % spec.validate_every_updates == 0 or update == spec.updates
    if not validate and update % max(1, spec.updates // CURVE_POINTS):
        return {}
    values = _means(progress.steps)
    values["learning_rate"] = learning_rate(
        update - 1, spec.updates, spec.peak_learning_rate, spec.schedule
    )
    values.update(distances(run.learner.weights(), run.learner.anchors))
    reported: dict[str, float] = {}
    if validate:
        found, reported["goodness"] = _validate(
            run, progress
        )  # for whoever compares runs while they go on: not kept
        values.update(found)
    progress.steps = []
    progress.curve.append([update, values])
    return values | reported


def kept_update(fraction: float, updates: int) -> int:
    """Returns the number of updates after which the weights of a fraction of a run are kept; at
    least one."""
    return max(1, round(fraction * updates))


def _means(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each value over the updates that have it."""
    names = dict.fromkeys(name for step in steps for name in step)
    found = {name: [step[name] for step in steps if name in step] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}


def _validate(run: Run, progress: Progress) -> tuple[dict[str, float], float]:
    """Keeps the weights when they are the best so far; returns values for the curve, and the metric
    made to be maximised."""
    found = dev_values(run.learner, run.lessons, run.listener)
    name, dev = overall([lesson.kind.metric for lesson in run.lessons], found)
    if not progress.best or is_better(name, dev, progress.best_dev):
        progress.best = _copies(run.learner, run.learner.weights())
        if run.spec.gather:
            heads = run.learner.heads.state_dict()
            progress.best_heads = {
                name: value.detach().to("cpu", copy=True) for name, value in heads.items()
            }
        progress.best_update, progress.best_dev, progress.best_values = progress.update, dev, found
    each = {f"dev_{index}": value for index, value in enumerate(found)} if len(found) > 1 else {}
    return {"dev": dev, **each}, goodness(name, dev)


def _copies(learner: Learner, changing: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies what a run changes of the encoder: the learner's ``weights`` or ``parameters``, and
    buffers."""
    module = learner.encoder.module()
    parameters = {name for name, _ in module.named_parameters()}
    buffers = {name: value for name, value in module.state_dict().items() if name not in parameters}
    return {
        name: value.detach().to("cpu", copy=True) for name, value in {**buffers, **changing}.items()
    }


def _save(run: Run, progress: Progress) -> None:
    learner = run.learner
    state = {
        "identity": run.identity,
        "progress": {item.name: getattr(progress, item.name) for item in fields(progress)},
        "encoder": _copies(learner, learner.parameters),
        "heads": learner.heads.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
    }
    saved.save(run.work, progress.update, state)


def _resume(run: Run) -> Progress:
    state = saved.load(run.work, run.identity)
    if state is None:
        return Progress()
    learner = run.learner
    learner.encoder.module().load_state_dict(state["encoder"], strict=False)
    learner.heads.load_state_dict(state["heads"])
    learner.optimizer.load_state_dict(state["optimizer"])
    return Progress(**state["progress"])
