"""Statistics of a fine-tuned encoder on its tuning set, for merge methods that need them.

``fisher``: the diagonal of the empirical Fisher information (arXiv 2111.09832), the mean over
utterances of the squared gradient of an utterance's loss. ``gram``: for the weight of each linear
layer X^T X over the number of rows, with a row of X for each input frame of the layer (arXiv
2212.09849). Both are computed with the best weights of encoder and heads, without dropout.
``waves``: a sample of the tuning set's waveforms, for inner products behind layers that a merge has
merged already (arXiv 2508.03121).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from speechft_ray.core.errors import UserError
from speechft_ray.finetuning.adapters import merge_adapters
from speechft_ray.finetuning.batches import crop
from speechft_ray.finetuning.data import Example, max_crop_samples
from speechft_ray.finetuning.features import AudioClip
from speechft_ray.finetuning.loop import Progress, Report, RunContext, make_heartbeat
from speechft_ray.finetuning.seeding import Stream, make_generator
from speechft_ray.finetuning.targets import Targets, make_targets
from speechft_ray.finetuning.train_state import TrainState

EXAMPLES = 256
"""Most training utterances of an objective that are used, drawn without replacement (fusion_bench
0.2.33: 256 for both)."""

KEPT_WAVES = 64
"""Most waveforms of an objective that are kept: at 12 s each 38,000 frames and 49 MB. RegMean++
uses 256 images of 50 patches, 12,800 rows (fusion_bench 0.2.33)."""

LossFunction = Callable[[], torch.Tensor]
"""Runs one utterance through the encoder and its head, and returns its weighted loss."""


def collect_statistics(
    run: RunContext, progress: Progress, report: Report
) -> dict[str, torch.Tensor]:
    """Returns the statistics that the spec asks for, float32 on the CPU, by ``<kind>:<parameter>``,
    and waveforms, ``(samples,)`` at 16 kHz, by ``waves:<number>``.

    Only trainable or adapted weights have an entry. Leaves the train state with its best weights,
    adapters merged. Each utterance is encoded alone, without padding. With several objectives each
    loss counts by the objective's weight. Raises ``UserError`` when no utterance has a finite loss.
    """
    needs_passes = set(run.spec.gather) != {"waves"}
    statistics = _run_passes(run, progress, report) if needs_passes else {}
    if "waves" in run.spec.gather:
        statistics |= _sample_waves(run)
    return statistics


def _sample_waves(run: RunContext) -> dict[str, torch.Tensor]:
    """Returns waveforms of the training utterances, in equal numbers of each objective, without the
    masks of masked prediction."""
    waves = [
        clip.wave
        for index in range(len(run.objectives))
        for _, clip, _ in _draw_clips(run, index, KEPT_WAVES)
        if clip.wave is not None
    ]
    return {f"waves:{number:05d}": wave.clone() for number, wave in enumerate(waves)}


def _run_passes(run: RunContext, progress: Progress, report: Report) -> dict[str, torch.Tensor]:
    """Returns the statistics that need forward passes."""
    state, wants_fisher = _load_best_weights(run.state, progress), "fisher" in run.spec.gather
    for parameter in state.parameters.values():
        parameter.requires_grad_(wants_fisher)
    fisher = {name: torch.zeros_like(value) for name, value in state.parameters.items()}
    gram = GramRecorder(
        {name: value for name, value in state.parameters.items() if value.dim() == 2}
    )
    count, heartbeat = 0, make_heartbeat(run.spec, report)
    # One forward pass per utterance, and one backward pass for the Fisher information.
    for loss_function in _loss_functions(run):
        _zero_gradients(state)
        with torch.set_grad_enabled(wants_fisher), gram:
            loss = loss_function()
        count += _add_squares(fisher, state, loss) if wants_fisher else 1
        heartbeat()
    _zero_gradients(state)
    if not count:
        raise UserError(
            "no utterance of the tuning set has a finite loss, so that no statistics can be "
            "gathered: look for silent or damaged recordings, or leave `gather` out."
        )
    # Sums become means.
    statistics: dict[str, torch.Tensor] = {}
    if wants_fisher:
        statistics |= {f"fisher:{name}": value.detach() / count for name, value in fisher.items()}
    if "gram" in run.spec.gather:
        statistics |= {f"gram:{name}": value for name, value in gram.means().items()}
    return {name: value.cpu() for name, value in statistics.items()}


def _load_best_weights(state: TrainState, progress: Progress) -> TrainState:
    """Loads the best weights as plain parameters and switches dropout off.

    Recurrent layers, which have no dropout of their own, stay in training mode: in another one
    cuDNN has no backward pass.
    """
    module = state.encoder.module()
    merge_adapters(module)
    module.load_state_dict(progress.best, strict=False)
    state.heads.load_state_dict(progress.best_heads)
    state.train(False)
    for part in state.heads.modules():
        if isinstance(part, nn.RNNBase):
            part.train()
    return replace(state, parameters={name: module.get_parameter(name) for name in state.anchors})


def _zero_gradients(state: TrainState) -> None:
    for module in (state.encoder.module(), state.heads):
        module.zero_grad(set_to_none=True)


class GramRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While entered, accumulates X^T X of every X that is multiplied with the transpose of one of
    the weights.

    It observes matrix products instead of modules, since attention multiplies with the weights of
    its projections without calling them.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {_memory_key(weight.detach().t()): name for name, weight in weights.items()}
        self._sums: dict[str, torch.Tensor] = {}
        self._rows: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs every operation unchanged, and records the left operand of matrix products."""
        operands = {"aten::mm": args, "aten::addmm": args[1:]}.get(func._schema.name, ())
        if len(operands) >= 2:
            name = self._names.get(_memory_key(operands[1]))
            if name is not None:
                rows = operands[0].detach().float()
                self._sums[name] = self._sums.get(name, 0.0) + rows.T @ rows
                self._rows[name] = self._rows.get(name, 0) + len(rows)
        return func(*args, **(kwargs or {}))

    def means(self) -> dict[str, torch.Tensor]:
        """Returns X^T X over the number of rows for the weights that were used."""
        return {name: total / self._rows[name] for name, total in self._sums.items()}


def _memory_key(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _add_squares(fisher: Mapping[str, torch.Tensor], state: TrainState, loss: torch.Tensor) -> bool:
    """Adds the squared gradients of a loss, unless one is not finite; returns whether it did."""
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {
        name: value.grad for name, value in state.parameters.items() if value.grad is not None
    }
    if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values()):
        return False
    for name, gradient in gradients.items():
        fisher[name].addcmul_(gradient, gradient)
    return True


def _loss_functions(run: RunContext) -> Iterator[LossFunction]:
    """Yields one loss function per drawn utterance, objective by objective."""
    for index, data in enumerate(run.objectives):
        for example, clip, rng in _draw_clips(run, index, EXAMPLES):
            targets = make_targets(data, [example], [clip], rng)
            yield _make_loss_function(run, index, clip, targets)


def _draw_clips(
    run: RunContext, index: int, most: int
) -> Iterator[tuple[Example, AudioClip, np.random.Generator]]:
    """Yields at most that many training utterances of an objective, drawn without replacement and
    cropped as in training, and the generator that draws what depends on them."""
    data = run.objectives[index]
    rng = make_generator(run.spec.seed, Stream.STATISTICS, index)
    longest = max_crop_samples(data, run.spec.crop_seconds)
    for place in sorted(rng.permutation(len(data.train))[:most].tolist()):
        example = data.train[place]
        audio = run.loader.audio_caches[index].read(example.utterance)
        audio, start = crop(audio, longest, rng, data.crop_step_samples)
        if not np.isfinite(audio).all():
            continue  # training skips the update of a damaged recording, too
        wave = torch.from_numpy(audio)
        yield (
            example,
            AudioClip(example.utterance.key, len(audio), False, wave=wave, start=start),
            rng,
        )


def _make_loss_function(
    run: RunContext, index: int, clip: AudioClip, targets: Targets
) -> LossFunction:
    def compute_loss() -> torch.Tensor:
        data = run.objectives[index]
        states, frames = run.loader.encode([clip], targets.masks)
        logits = run.state.heads[index](states[-1], frames)
        return data.objective.weight * data.kind.loss(logits, frames, targets.targets)

    return compute_loss
