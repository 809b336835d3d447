"""Finds an encoder's parameters in a state dict that was saved with other modules around it.

Training tools save the module that they run, so names begin with those of its wrappers
(``module.hubert.encoder...``). Where the encoder is follows from the one parameter that every
family has, not from a list of tools; the list only says who wrote a prefix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.speech.checkpoints._torch import make_printable, validate_state_dict

_ANCHOR = "encoder.layers.0.final_layer_norm.weight"
"""In every family, under fairseq's names and under those of transformers."""

_INNER = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FullyShardedDataParallel",
    "_checkpoint_wrapped_module": "torch's activation checkpointing",
    "_forward_module": "Lightning Fabric",
}
"""Wrappers that may be around any submodule, and what made them (their sources in torch 2 and
Lightning 2)."""

_OUTER = {
    "module": "DataParallel or DistributedDataParallel",
    "model": "a module that holds the encoder as `model`, as those of Lightning and SpeechBrain do",
    "base_model": "PEFT",
}
_BASES = ("hubert", "wav2vec2", "wavlm")
"""Attributes under which transformers' models with a head hold their base: no wrapper."""

_PEFT = re.compile(
    r"(.*\.)?(base_layer|lora_\w+|modules_to_save|original_module|hada_\w+|ia3_\w+|vera_\w+)"
    r"(\..*)?"
)
"""Names of PEFT (``peft/tuners``) inside a layer whose adapter was not merged."""

_WEIGHT_NORM = re.compile(r"(.*\.)parametrizations\.weight\.original([01])")
"""``torch.nn.utils.parametrizations.weight_norm`` (torch 2.1): the magnitude is ``original0``, the
direction ``original1``. Before, they were ``weight_g`` and ``weight_v``."""

_POSITION = re.compile(r"encoder\.(pos_conv\.0|pos_conv_embed\.conv)\.weight")
_NESTED = ("state_dict", "model_state_dict", "model", "module")
"""Keys of training checkpoints that hold a state dict (Lightning, torch's tutorials, DeepSpeed)."""


@dataclass(frozen=True, kw_only=True)
class EncoderPart:
    """The encoder in a state dict. ``state``: its parameters, float32, without prefix. ``beside``:
    what is saved beside it, under its whole name, not checked. ``notes``: sentences for people."""

    state: dict[str, torch.Tensor]
    beside: dict[str, Any]
    prefix: str
    notes: tuple[str, ...]


def read_encoder_part(path: Path, table: Any, where: str, parts: Iterable[str] = ()) -> EncoderPart:
    """Returns the encoder in a state dict of ``where``, whatever modules were saved around it.

    Weight norm gets the names ``weight_g`` and ``weight_v``; a positional convolution whose weight
    norm was removed gets it again. Integer buffers, which no encoder has, are left out. ``parts``:
    first components of an encoder's names; where the encoder has no prefix, names that begin
    otherwise are beside it (all are the encoder's when it is empty). Raises ``UserError`` for
    adapters of PEFT that were not merged, for two encoders in one state dict, and as
    ``validate_state_dict`` does.
    """
    is_table = isinstance(table, Mapping) and bool(table)
    if not is_table or not all(isinstance(name, str) for name in table):
        validate_state_dict(path, table, where)
    plain, inner = _strip_inner(path, table)
    prefix = _find_prefix(path, plain)
    own = [name for name in plain if name.startswith(prefix)]
    if prefix == "" and parts:
        own = [name for name in own if name.split(".")[0] in parts]
    _check_merged(path, own if has_encoder(plain) else plain)
    if not own:
        raise UserError(
            f"{path} has no parameters of an encoder in its `{where}`, which begin with "
            f"{', '.join(f'`{part}`' for part in parts)}: the first is "
            f"`{make_printable(next(iter(plain), ''))}`. Give the weights of an encoder."
        )
    inside = set(own)
    beside = {name: plain[name] for name in plain if name not in inside}
    tensors = {
        name.removeprefix(prefix): plain[name] for name in own if not is_buffer(name, plain[name])
    }
    state = _add_weight_norm(validate_state_dict(path, _rename_weight_norm(path, tensors), where))
    return EncoderPart(
        state=state, beside=beside, prefix=prefix, notes=_describe_wrappers(prefix, inner)
    )


def find_state_dict(content: Any) -> Any:
    """Returns the state dict in the content of a training checkpoint: the content itself, or what
    it has under one of the usual keys."""
    for _ in range(3):
        if not isinstance(content, Mapping) or any(
            isinstance(value, torch.Tensor) for value in content.values()
        ):
            return content
        inner = [content[key] for key in _NESTED if isinstance(content.get(key), Mapping)]
        if not inner:
            return content
        content = inner[0]
    return content


def describe_adapters(folder: Path) -> str:
    """Returns the sentence for a folder of PEFT's ``save_pretrained``, adapters without a model."""
    return (
        f"{folder} holds adapters of PEFT and no encoder. Merge them into the model that they were "
        "trained for, and save the result: `model.merge_and_unload().save_pretrained(FOLDER)`."
    )


def has_encoder(table: Any) -> bool:
    """Whether a state dict holds an encoder of a family, under any prefix."""
    return isinstance(table, Mapping) and any(
        isinstance(name, str) and f".{name}".endswith(f".{_ANCHOR}") for name in table
    )


def is_buffer(name: str, tensor: Any) -> bool:
    """Whether it is a whole-number buffer (``position_ids``, ``num_batches_tracked``) rather than
    quantised weights."""
    return (
        isinstance(tensor, torch.Tensor)
        and not tensor.dtype.is_floating_point
        and not tensor.dtype.is_complex
        and not name.endswith(("weight", "bias"))
    )


def _strip_inner(path: Path, table: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns the table without the wrappers that may be anywhere in a name, and those wrappers."""
    wrappers = [part for part in _INNER if any(part in name.split(".") for name in table)]
    if not wrappers:
        return dict(table), []
    renamed = {
        name: ".".join(part for part in name.split(".") if part not in _INNER) for name in table
    }
    return _rename(path, table, renamed), wrappers


def _find_prefix(path: Path, table: Mapping[str, Any]) -> str:
    prefixes = sorted(
        name.removesuffix(_ANCHOR) for name in table if f".{name}".endswith(f".{_ANCHOR}")
    )
    if len(prefixes) > 1 and prefixes[0] != "":
        raise UserError(
            f"{path} holds {len(prefixes)} encoders, with names that begin with "
            f"{', '.join(f'`{make_printable(prefix)}`' for prefix in prefixes[:5])}. Save the "
            "state dict of the one that you mean."
        )
    return prefixes[0] if prefixes else ""


def _check_merged(path: Path, names: Iterable[str]) -> None:
    adapters = [name for name in names if _PEFT.fullmatch(name)]
    if adapters:
        raise UserError(
            f"{path} holds adapters of PEFT that are not merged into the weights, first "
            f"`{make_printable(adapters[0])}`. Merge them and save the result: "
            "`model.merge_and_unload().save_pretrained(FOLDER)`."
        )


def _rename_weight_norm(path: Path, tensors: Mapping[str, Any]) -> dict[str, Any]:
    renamed = {
        name: f"{match[1]}weight_{'gv'[int(match[2])]}"
        if (match := _WEIGHT_NORM.fullmatch(name))
        else name
        for name in tensors
    }
    return _rename(path, tensors, renamed)


def _rename(path: Path, table: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    result = {names[name]: tensor for name, tensor in table.items()}
    if len(result) != len(table):
        counts = list(names.values())
        twice = next(name for name in counts if counts.count(name) > 1)
        raise UserError(
            f"{path} has two tensors for `{make_printable(twice)}`, under an older and a newer "
            "name or with and without a wrapper. Save the state dict of one model."
        )
    return result


def _add_weight_norm(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Splits the weight of a positional convolution without weight norm, ``(dim, dim / groups,
    kernel)``, into magnitude and direction: their product is that weight."""
    for name in [name for name in state if _POSITION.fullmatch(name)]:
        if state[name].dim() != 3 or f"{name}_g" in state or f"{name}_v" in state:
            continue
        weight = state.pop(name)
        magnitude = torch.linalg.vector_norm(weight, dim=(0, 1), keepdim=True)
        state[f"{name}_g"] = magnitude
        state[f"{name}_v"] = torch.where(magnitude == 0, torch.ones_like(weight), weight)
    return state


def _describe_wrappers(prefix: str, inner: Iterable[str]) -> tuple[str, ...]:
    prefix = prefix.removesuffix("w2v_encoder.w2v_model.").removesuffix("encoder.w2v_model.")
    outer = [part for part in prefix.split(".") if part and part not in _BASES]
    wrappers = {
        **{part: _OUTER.get(part, "a module of the training program") for part in outer},
        **{part: _INNER[part] for part in inner},
    }
    if not wrappers:
        return ()
    reasons = ", ".join(f"`{make_printable(part)}.` ({maker})" for part, maker in wrappers.items())
    return (f"taken out of the parameter names: {reasons}.",)
