"""The format of fairseq, as published and as fairseq 0.12.2 loads it, without fairseq.

Since 2020 ``cfg`` holds the configuration (omegaconf's containers or plain ones, with ``model`` and
``task``), and the ``task_state`` of a HuBERT its dictionaries, pickled objects of fairseq. Older
files have the whole configuration in ``args``, an ``argparse.Namespace``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from speechft_ray.speech.checkpoints import _fairseq_names as names
from speechft_ray.speech.checkpoints._dictionary import make_dictionaries, read_symbols
from speechft_ray.speech.checkpoints._embedded import KEY, embed, keep_if_unchanged, read_embedded
from speechft_ray.speech.checkpoints._fairseq_config import FAMILIES, read_config, read_family
from speechft_ray.speech.checkpoints._parameters import make_zero_parameters
from speechft_ray.speech.checkpoints._standins import Container, Namespace
from speechft_ray.speech.checkpoints._torch import make_printable
from speechft_ray.speech.checkpoints._wrappers import EncoderPart, read_encoder_part
from speechft_ray.speech.checkpoints.base import (
    FORMATS,
    Checkpoint,
    CheckpointFormat,
    RawCheckpoint,
    atomic,
)
from speechft_ray.speech.checkpoints.s3prl import (
    describe_part,
    describe_zeros_added,
    describe_zeros_removed,
)
from speechft_ray.speech.encoders.base import EncoderWeights

_HISTORY = {
    "criterion_name": "",
    "optimizer_name": "",
    "lr_scheduler_state": {"best": None},
    "num_updates": 0,
}
"""An entry of ``optimizer_history``: fairseq reads the last one before it loads the model."""


def matches(source: RawCheckpoint) -> bool:
    """Whether a ``.pt`` has ``model``, and ``args`` or a ``cfg`` with ``model`` in it."""
    content = source.content
    if not isinstance(content, Mapping) or "model" not in content:
        return False
    config = content.get("cfg")
    parts = config.state.get("_content") if isinstance(config, Container) else config
    return isinstance(content.get("args"), Namespace) or (
        isinstance(parts, Mapping) and "model" in parts
    )


def read(source: RawCheckpoint) -> Checkpoint:
    """Reads a HuBERT or wav2vec 2.0 with ``cfg`` or ``args``; weights are float32, training options
    and the optimizer are left out.

    Of a fine-tuned recogniser (``hubert_ctc``, ``wav2vec_ctc``, ...) the encoder is read, with the
    configuration of its pre-training. Raises ``UserError`` for another model, and for a
    configuration that is not plain data.
    """
    content, path = source.content, source.path
    model, task, tuned_as = read_config(path, content)
    part = read_encoder_part(path, content["model"], "model")
    state = part.state
    notes: tuple[str, ...] = ()
    family = read_family(path, model, state)
    config: dict[str, Any] = {"model_cfg": model, "task_cfg": task}
    if family == "hubert":
        symbols, words = read_symbols(path, content.get("task_state"), model, state)
        config["dictionaries_symbols"] = symbols
        notes += words
    notes += describe_part(part) if tuned_as is None else _describe_head(tuned_as, part)
    own = keep_if_unchanged(
        read_embedded(content.get(KEY), f"`{KEY}` in {path}"), family, config, _render
    )
    zeros = own.zeros if own else ()
    for name in zeros:
        state.pop(name, None)
    weights = EncoderWeights(family=family, config=own.config if own else config, state=state)
    return Checkpoint(
        weights=weights,
        format="fairseq",
        provenance=own.provenance if own else {},
        notes=(*notes, *_describe_omissions(content), *describe_zeros_removed(zeros)),
    )


def write(path: Path, weights: EncoderWeights, provenance: Mapping[str, Any]) -> tuple[str, ...]:
    """Writes a file with ``cfg``. Keys of the configuration that fairseq 0.12.2 does not accept are
    stored under our own key.

    Missing parameters of pre-training become zeros, with a note: fairseq's loader is strict.
    """
    zeros = make_zero_parameters(weights)
    rendered = _render(weights.config)
    model, task = rendered["model_cfg"], rendered["task_cfg"]
    dictionaries = make_dictionaries(weights.config.get("dictionaries_symbols", []))
    content: dict[str, Any] = {
        "args": None,
        "cfg": {
            "common": {"seed": 1},
            "model": model,
            "task": task,
            "criterion": {"_name": names.CRITERION[weights.family]},
        },
        "model": {name: tensor.contiguous() for name, tensor in {**weights.state, **zeros}.items()},
        "criterion": None,
        "optimizer_history": [_HISTORY],
        "task_state": {"dictionaries": dictionaries} if weights.family == "hubert" else {},
        "extra_state": {},
        "last_optimizer_state": None,
        KEY: embed(weights, provenance, sorted(zeros)),
    }
    torch.save(content, path, pickle_module=names.PICKLE)
    return describe_zeros_added(zeros)


def _render(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the configuration with the names of fairseq 0.12.2, without keys that it rejects."""
    family = "hubert" if "dictionaries_symbols" in config else "wav2vec2"
    model = {
        key: config["model_cfg"][key]
        for key in names.list_model_keys(family)
        if key in config["model_cfg"]
    }
    task = {
        key: config["task_cfg"][key]
        for key in names.list_task_keys(family)
        if key in config["task_cfg"]
    }
    rendered = {
        "model_cfg": {**names.MODEL_DEFAULTS[family], **model, "_name": family},
        "task_cfg": {**names.TASK_DEFAULTS[family], **task, "_name": names.TASK[family]},
    }
    return rendered | {key: config[key] for key in ("dictionaries_symbols",) if key in config}


def _describe_head(tuned_as: str, part: EncoderPart) -> tuple[str, ...]:
    names = ", ".join(map(make_printable, sorted(part.beside)[:5]))
    title = f"this is a fine-tuned recogniser (`{make_printable(tuned_as)}`)"
    head = f"its encoder was read, and its head left out ({names or 'there is none'})."
    return (*part.notes, f"{title}: {head}")


def _describe_omissions(content: Mapping[str, Any]) -> tuple[str, ...]:
    omitted = [key for key in ("last_optimizer_state", "ema") if content.get(key)]
    keys = ", ".join(f"`{key}`" for key in omitted)
    return (f"left out: {keys}, which only resumed training needs.",) if omitted else ()


FAIRSEQ = FORMATS.register(
    "fairseq",
    CheckpointFormat(
        name="fairseq",
        title="fairseq checkpoint (.pt)",
        families=FAMILIES,
        is_folder=False,
        matches=matches,
        read=read,
        write=atomic(write),
    ),
)
