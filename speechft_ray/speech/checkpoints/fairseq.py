"""fairseq's own files, as published and as fairseq 0.12.2 loads them. No fairseq is needed to read
or write them.

Since 2020 ``cfg`` holds the configuration (omegaconf's containers or plain ones, with ``model`` and
``task``) and HuBERT's ``task_state`` its dictionaries, pickled objects of fairseq. Before, ``args``
was one ``argparse.Namespace`` with everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.speech.checkpoints import _fairseq_names as names
from speechft_ray.speech.checkpoints._dictionary import make_dictionaries, read_symbols
from speechft_ray.speech.checkpoints._embedded import KEY, embed, keep_if_unchanged, read_embedded
from speechft_ray.speech.checkpoints._parameters import make_zero_parameters
from speechft_ray.speech.checkpoints._plain import resolve_references, to_plain_data
from speechft_ray.speech.checkpoints._standins import Container, Namespace
from speechft_ray.speech.checkpoints._torch import validate_state_dict
from speechft_ray.speech.checkpoints.base import (
    FORMATS,
    Checkpoint,
    CheckpointFormat,
    RawCheckpoint,
    atomic,
)
from speechft_ray.speech.checkpoints.s3prl import describe_zeros_added, describe_zeros_removed
from speechft_ray.speech.encoders.base import EncoderWeights

_FAMILIES = ("hubert", "wav2vec2")
_TUNED_PREFIXES = ("w2v_encoder.", "encoder.w2v_model.")
_HISTORY = {
    "criterion_name": "",
    "optimizer_name": "",
    "lr_scheduler_state": {"best": None},
    "num_updates": 0,
}
"""fairseq looks at the last entry before it looks at the model."""


def recognises(source: RawCheckpoint) -> bool:
    """Whether a ``.pt`` has ``model`` beside ``args`` or a ``cfg`` with parts."""
    content = source.content
    if not isinstance(content, Mapping) or "model" not in content:
        return False
    config = content.get("cfg")
    parts = config.state.get("_content") if isinstance(config, Container) else config
    return isinstance(content.get("args"), Namespace) or (
        isinstance(parts, Mapping) and "model" in parts
    )


def read(source: RawCheckpoint) -> Checkpoint:
    """Reads a HuBERT or wav2vec 2.0 of either kind; weights come back in float32, training options
    and optimizer stay behind.

    Raises ``UserError`` for another model, one with a head for recognition on top, and a
    configuration that is not plain data.
    """
    content, path = source.content, source.path
    tuned = [name for name in content["model"] if str(name).startswith(_TUNED_PREFIXES)]
    if tuned:
        raise UserError(
            f"{path} is a fine-tuned recogniser with an extra head (`{str(tuned[0])[:60]}`): its encoder has no pre-training "
            "parameters and belongs to no published base. Give the pre-trained checkpoint that it was tuned from."
        )
    model, task = _config(path, content)
    family = _family(path, model, content["model"])
    config: dict[str, Any] = {"model_cfg": model, "task_cfg": task}
    if family == "hubert":
        config["dictionaries_symbols"] = read_symbols(path, content.get("task_state"))
    state = validate_state_dict(path, content["model"], "model")
    own = keep_if_unchanged(
        read_embedded(content.get(KEY), f"`{KEY}` in {path}"), family, config, _render
    )
    for name in own.filled if own else ():
        state.pop(name, None)
    weights = EncoderWeights(family=family, config=own.config if own else config, state=state)
    notes = (*_notes(content), *describe_zeros_removed(own.filled if own else ()))
    return Checkpoint(weights=weights, format="fairseq", made=own.made if own else {}, notes=notes)


def write(path: Path, weights: EncoderWeights, made: Mapping[str, Any]) -> tuple[str, ...]:
    """Writes the kind with ``cfg``. Keys of the configuration that fairseq 0.12.2 does not know are
    kept beside it.

    Parameters of pre-training that are missing become zeros, and a note: fairseq's loader is
    strict.
    """
    filled = make_zero_parameters(weights)
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
        "model": {
            name: tensor.contiguous() for name, tensor in {**weights.state, **filled}.items()
        },
        "criterion": None,
        "optimizer_history": [_HISTORY],
        "task_state": {"dictionaries": dictionaries} if weights.family == "hubert" else {},
        "extra_state": {},
        "last_optimizer_state": None,
        KEY: embed(weights, made, sorted(filled)),
    }
    torch.save(content, path, pickle_module=names.PICKLE)
    return describe_zeros_added(filled)


def _config(path: Path, content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    if content.get("cfg") is None:
        options = to_plain_data(content["args"], f"`args` in {path}")
        model = {key: options[key] for key in names.MODEL_KEYS if key in options}
        task = {key: options[key] for key in names.TASK_KEYS if key in options}
        return {"_name": options.get("arch"), **model}, {"_name": options.get("task"), **task}
    config = resolve_references(to_plain_data(content["cfg"], f"`cfg` in {path}"))
    parts = [config.get(key) if isinstance(config, dict) else None for key in ("model", "task")]
    if not all(isinstance(part, dict) for part in parts):
        raise UserError(
            f"{path} has a `cfg` without `model` and `task`, so it is no checkpoint of an encoder of fairseq's."
        )
    return dict(parts[0] or {}), dict(parts[1] or {})


def _family(path: Path, model: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    name = model.get("_name")
    if name is None and "label_embs_concat" in state:
        return "hubert"
    if name not in _FAMILIES:
        raise UserError(
            f"{path} holds a fairseq `{name}`. Allowed: {', '.join(_FAMILIES)}, pre-trained."
        )
    return str(name)


def _render(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as fairseq 0.12.2 takes it: its names, and no key that it does not know."""
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


def _notes(content: Mapping[str, Any]) -> tuple[str, ...]:
    left = [key for key in ("last_optimizer_state", "ema") if content.get(key)]
    return (
        (f"left out: {', '.join(f'`{key}`' for key in left)}, which only go on with the training.",)
        if left
        else ()
    )


FAIRSEQ = FORMATS.register(
    "fairseq",
    CheckpointFormat(
        name="fairseq",
        title="fairseq checkpoint (.pt)",
        families=_FAMILIES,
        is_folder=False,
        recognises=recognises,
        read=read,
        write=atomic(write),
    ),
)
