"""What a tuned encoder's task depends on, gathered on the tuning set for merges that ask for it.

``fisher``: the diagonal of the empirical Fisher information (arXiv 2111.09832), the mean over
utterances of the squared gradient of an utterance's loss. ``gram``: for the weight of each linear
layer X^T X over the number of rows, with a row of X for each frame that the layer reads (arXiv
2212.09849). Both with the best weights of encoder and heads, dropout off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from speechft_ray.core.errors import UserError
from speechft_ray.finetuning.adapters import merge
from speechft_ray.finetuning.batches import cropped
from speechft_ray.finetuning.data import crop_samples
from speechft_ray.finetuning.features import Sound
from speechft_ray.finetuning.loop import Progress, Report, Run, pulse
from speechft_ray.finetuning.masks import Taught, taught
from speechft_ray.finetuning.seeding import Draw, generator
from speechft_ray.finetuning.train_state import Learner

EXAMPLES = 256
"""Most training utterances of an objective that are read, drawn without replacement (fusion_bench
0.2.33: 256 for both)."""

Loss = Callable[[], torch.Tensor]
"""Runs one utterance through the encoder and its head, and returns its weighted loss."""


def gather(run: Run, progress: Progress, report: Report) -> dict[str, torch.Tensor]:
    """Returns the statistics that the spec asks for, float32 on the CPU, by ``<kind>:<parameter>``.

    Only weights that learn, or have an adapter, have an entry. Leaves the learner with its best
    weights, adapters merged. Each utterance goes through alone, so that no padding counts; with
    several objectives each counts by its weight, in the loss and in nothing else. Raises
    ``UserError`` when no utterance has a finite loss.
    """
    learner, wants_fisher = _with_best_weights(run.learner, progress), "fisher" in run.spec.gather
    for parameter in learner.parameters.values():
        parameter.requires_grad_(wants_fisher)
    fisher = {name: torch.zeros_like(value) for name, value in learner.parameters.items()}
    gram = GramRecorder(
        {name: value for name, value in learner.parameters.items() if value.dim() == 2}
    )
    read, beat = 0, pulse(run.spec, report)
    for loss in _losses(run):
        _without_gradients(learner)
        with torch.set_grad_enabled(wants_fisher), gram:
            value = loss()
        read += _add_squares(fisher, learner, value) if wants_fisher else 1
        beat()
    _without_gradients(learner)
    if not read:
        raise UserError(
            "no utterance of the tuning set has a finite loss, so that nothing can be gathered of it."
        )
    found = (
        {f"fisher:{name}": value.detach() / read for name, value in fisher.items()}
        if wants_fisher
        else {}
    )
    found |= (
        {f"gram:{name}": value for name, value in gram.means().items()}
        if "gram" in run.spec.gather
        else {}
    )
    return {name: value.cpu() for name, value in found.items()}


def _with_best_weights(learner: Learner, progress: Progress) -> Learner:
    """Returns the learner with plain parameters that hold the best weights, dropout off."""
    module = learner.encoder.module()
    merge(module)
    module.load_state_dict(progress.best, strict=False)
    learner.heads.load_state_dict(progress.best_heads)
    learner.train(False)
    return replace(
        learner, parameters={name: module.get_parameter(name) for name in learner.anchors}
    )


def _without_gradients(learner: Learner) -> None:
    for module in (learner.encoder.module(), learner.heads):
        module.zero_grad(set_to_none=True)


class GramRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, adds up X^T X of whatever is multiplied with the transpose of one of the
    weights.

    It watches products instead of modules, since attention multiplies with the weights of its
    projections without calling them.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {_place(weight.detach().t()): name for name, weight in weights.items()}
        self._sums: dict[str, torch.Tensor] = {}
        self._rows: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Lets every operation through, and looks at its operands."""
        operands = {"aten::mm": args, "aten::addmm": args[1:]}.get(func._schema.name, ())
        if len(operands) >= 2:
            name = self._names.get(_place(operands[1]))
            if name is not None:
                rows = operands[0].detach().float()
                self._sums[name] = self._sums.get(name, 0.0) + rows.T @ rows
                self._rows[name] = self._rows.get(name, 0) + len(rows)
        return func(*args, **(kwargs or {}))

    def means(self) -> dict[str, torch.Tensor]:
        """Returns X^T X over the number of rows for the weights that were used."""
        return {name: total / self._rows[name] for name, total in self._sums.items()}


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _add_squares(fisher: Mapping[str, torch.Tensor], learner: Learner, loss: torch.Tensor) -> bool:
    """Adds the squared gradients of a loss, unless one is not finite; returns whether it did."""
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {
        name: value.grad for name, value in learner.parameters.items() if value.grad is not None
    }
    if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values()):
        return False
    for name, gradient in gradients.items():
        fisher[name].addcmul_(gradient, gradient)
    return True


def _losses(run: Run) -> Iterator[Loss]:
    """Yields one loss per utterance that is drawn, objective by objective."""
    for index, lesson in enumerate(run.lessons):
        draw = generator(run.spec.seed, Draw.STATISTICS, index)
        longest = crop_samples(lesson, run.spec.crop_seconds)
        for place in sorted(draw.permutation(len(lesson.train))[:EXAMPLES].tolist()):
            example = lesson.train[place]
            audio = run.listener.recordings[index].read(example.utterance)
            audio, start = cropped(audio, longest, draw, lesson.crop_step_samples)
            if not np.isfinite(audio).all():
                continue  # a damaged recording costs its update in training, and nothing else
            sound = Sound(example.utterance.key, len(audio), False, wave=audio, start=start)
            yield _loss(run, index, sound, taught(lesson, [example], [sound], draw))


def _loss(run: Run, index: int, sound: Sound, wanted: Taught) -> Loss:
    def loss() -> torch.Tensor:
        lesson = run.lessons[index]
        states, frames = run.listener.states([sound], wanted.masked)
        value = lesson.kind.loss(
            run.learner.heads[index](states[-1], frames), frames, wanted.targets
        )
        return lesson.objective.weight * value

    return loss
