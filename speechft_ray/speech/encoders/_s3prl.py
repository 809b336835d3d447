"""The one door to s3prl: its HuBERT, built without trusting a word of the configuration.

s3prl's ``HubertModel`` runs ``eval`` on ``conv_feature_layers`` and its expert unpickles the checkpoint without restriction.
Here the text is parsed with a strict grammar and written anew before s3prl sees it, and weights come in as tensors.
s3prl imports ``torchaudio`` on the way, whose compiled extension cannot be loaded on every machine; none of it is used.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.speech.encoders import _torchaudio  # noqa: F401  # makes torchaudio importable before s3prl asks for it

from s3prl.upstream.hubert.expert import UpstreamExpert  # isort: skip
from s3prl.upstream.hubert.hubert_model import HubertConfig, HubertModel, HubertPretrainingConfig  # isort: skip
from s3prl.upstream.interfaces import UpstreamBase  # isort: skip

MAX_CONV_LAYERS = 32
"""No published speech encoder has more than 7 (wav2vec 2.0, HuBERT, WavLM); the bound keeps ``* 10**9`` from being obeyed."""

_INT = r"\s*\d{1,6}\s*"
_TRIPLE = re.compile(rf"\s*\(({_INT}),({_INT}),({_INT}),?\s*\)\s*")
_REPEAT = re.compile(rf"\s*\[([^\[\]]*)\]\s*(?:\*({_INT}))?")

ConvLayers = tuple[tuple[int, int, int], ...]


def parse_conv_layers(text: Any) -> ConvLayers:
    """Reads ``[(dim, kernel, stride), ...] * n + ...``, the only form that checkpoints use, without evaluating it.

    Raises ``UserError`` for anything else, for a zero, and for more than ``MAX_CONV_LAYERS`` layers.
    """
    if not isinstance(text, str) or len(text) > 2000:
        raise _conv_error(text)
    layers: list[tuple[int, int, int]] = []
    for term in text.split("+"):
        match = _REPEAT.fullmatch(term.strip())
        if match is None:
            raise _conv_error(text)
        repeats = int(match[2] or 1)
        if repeats > MAX_CONV_LAYERS:
            raise _conv_error(text)
        layers += _triples(match[1], text) * repeats
    if not 1 <= len(layers) <= MAX_CONV_LAYERS or min(min(layer) for layer in layers) < 1:
        raise _conv_error(text)
    return tuple(layers)


def build_expert(config: Mapping[str, Any], device: str = "meta") -> _Expert:
    """Returns s3prl's HuBERT expert around a model with s3prl's initial weights; on ``meta`` mostly shapes without values.

    The initial weights come from torch's global random state, two of them on ``meta`` as well. ``config`` has the keys of an
    s3prl-converted checkpoint: ``model_cfg``, ``task_cfg``, ``dictionaries_symbols``. Raises ``UserError`` naming the key that
    is missing or has the wrong type.
    """
    parts = {key: _section(config, key, dict) for key in ("model_cfg", "task_cfg")}
    symbols = _section(config, "dictionaries_symbols", list)
    layers = parse_conv_layers(parts["model_cfg"].get("conv_feature_layers", HubertConfig.conv_feature_layers))
    model_values = _known(HubertConfig, "model_cfg", parts["model_cfg"])
    # Layer dropping would change the number of hidden states; the gradient of the front end follows its parameters instead.
    model_values |= {"conv_feature_layers": repr(list(layers)), "encoder_layerdrop": 0.0, "feature_grad_mult": 0.0}
    model_values.setdefault("label_rate", 50.0)  # only shifts targets in s3prl's own pre-training loss, which is not used
    task = HubertPretrainingConfig(**_known(HubertPretrainingConfig, "task_cfg", parts["task_cfg"]))
    try:
        with torch.device(device), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # weight_norm keeps the names weight_g and weight_v of checkpoints
            return _Expert(HubertModel(HubertConfig(**model_values), task, symbols), task)
    except (AssertionError, RuntimeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"the HuBERT configuration describes no model that can be built: {error}") from error


def _triples(text: str, whole: str) -> list[tuple[int, int, int]]:
    triples, position = [], 0
    while match := _TRIPLE.match(text, position):
        triples.append((int(match[1]), int(match[2]), int(match[3])))
        position = match.end()
        if position == len(text):
            return triples
        if text[position] != ",":
            break
        position += 1
        if not text[position:].strip():
            return triples
    raise _conv_error(whole)


def _conv_error(text: Any) -> UserError:
    return UserError(
        f"`conv_feature_layers` must read like `[(512, 10, 5)] + [(512, 3, 2)] * 4` (dim, kernel, stride; at most "
        f"{MAX_CONV_LAYERS} layers), but is {str(text)[:80]!r} instead. Nothing in it was evaluated."
    )


def _section(config: Mapping[str, Any], key: str, kind: type) -> Any:
    value = config.get(key)
    if not isinstance(value, kind):
        raise UserError(f"a HuBERT configuration needs `{key}` ({kind.__name__}), but it is {type(value).__name__} instead.")
    return value


def _known(schema: type, where: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that s3prl's dataclass knows, each of the type of its default; others belong to fairseq's training loop."""
    defaults = {field.name: field.default for field in fields(schema)}
    kept = {key: value for key, value in values.items() if key in defaults}
    for key, value in kept.items():
        like = defaults[key]
        number = isinstance(like, int | float) and not isinstance(like, bool)
        if (number and (isinstance(value, bool) or not isinstance(value, int | float))) or (
            isinstance(like, bool | str) and type(value) is not type(like)
        ):
            raise UserError(f"`{where}.{key}` must be like {like!r}, but is {value!r} instead.")
    return kept


class _Expert(UpstreamExpert):  # type: ignore[misc]  # s3prl has no type information
    """s3prl's expert, its forward pass and hooks as they are, around a model that was built elsewhere."""

    def __init__(self, model: HubertModel, task: HubertPretrainingConfig) -> None:
        UpstreamBase.__init__(self)  # not UpstreamExpert's: that one reads a file with an unrestricted unpickler
        self.model = model
        self.task_cfg = task
        self.hook_postprocess = _trim

    def __call__(self, wavs: list[torch.Tensor]) -> dict[str, Any]:
        """Runs the expert with the hooks that s3prl's constructor would leave on the model for good.

        They live for this call only: left there, they would keep every state of every other use of the model in memory.
        """
        for index in range(len(self.model.encoder.layers)):
            self.add_hook(f"self.model.encoder.layers[{index}]", lambda input, output: input[0].transpose(0, 1))
        self.add_hook("self.model.encoder", lambda input, output: output[0])
        try:
            found: dict[str, Any] = super().__call__(wavs)
            return found
        finally:
            self.remove_all_hooks()
            self._hook_hiddens.clear()


def _trim(named: list[tuple[str, torch.Tensor]]) -> list[tuple[str, torch.Tensor]]:
    """Cuts every state to the shortest: layers see a sequence padded to a multiple, the encoder's output does not."""
    frames = min(state.size(1) for _, state in named)
    return [(name, state[:, :frames]) for name, state in named]
