"""Builds s3prl's networks and experts without trusting the text of a checkpoint. No other module
imports s3prl.

s3prl's constructors run ``eval`` on ``conv_feature_layers``, and its experts unpickle files without
restriction. Here options are checked, that text is written from parsed numbers, experts wrap
networks that were built here, and weights are loaded as tensors. The only text that s3prl still
evaluates is the path of a layer for its hooks, which this module writes. s3prl also imports
torchaudio, whose compiled extension cannot be loaded on every machine and is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from speechft_ray.core.errors import UserError
from speechft_ray.core.quiet import ignore_warning
from speechft_ray.speech.encoders import _torchaudio  # noqa: F401  # imported before s3prl
from speechft_ray.speech.encoders._front_ends import (
    Convolutions,
    FilterBank,
    FrontEnd,
    apply_masks,
)

# isort: off
from s3prl.upstream.hubert import expert as hubert_expert
from s3prl.upstream.hubert.hubert_model import HubertConfig, HubertModel, HubertPretrainingConfig
from s3prl.upstream.interfaces import UpstreamBase
from s3prl.upstream.wav2vec2 import expert as wav2vec2_expert
from s3prl.upstream.wav2vec2.wav2vec2_model import TransformerEncoder, Wav2Vec2Config, Wav2Vec2Model
from s3prl.upstream.wavlm import expert as wavlm_expert
from s3prl.upstream.wavlm.modules import MultiheadAttention
from s3prl.upstream.wavlm.WavLM import WavLM, WavLMConfig

ignore_warning(DeprecationWarning, r"`torch\.jit\.")  # which the next imports use
from s3prl.upstream.decoar2 import expert as decoar2_expert  # noqa: E402
from s3prl.upstream.decoar2.audio import FeatureExtractor  # noqa: E402
from s3prl.upstream.decoar2.decoar2 import Decoar2  # noqa: E402

# isort: on

_FIXED = {"encoder_layerdrop": 0.0, "feature_grad_mult": 1.0}
"""A dropped layer would change the number of hidden states (s3prl's experts set 0 as well).
Gradient flows into the learned front end exactly when one of its parameters requires it. s3prl's
experts never let it (``feature_grad_mult`` 0), which is the same for a frozen front end: no graph
is built there."""


class Expert:
    """One of s3prl's experts with its own forward pass, around a network that was built here."""

    def __init__(
        self, kind: type[Any], model: nn.Module, front_end: FrontEnd, **attributes: Any
    ) -> None:
        self.model, self._front_end = model, front_end
        self._expert: Any = object.__new__(kind)
        # Not the constructor of ``kind``, which reads a file with an unrestricted unpickler.
        UpstreamBase.__init__(self._expert)
        for name, value in {"model": model, "hook_postprocess": _trim, **attributes}.items():
            setattr(self._expert, name, value)
        self._expert.eval()

    def conv_features(self, waves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Returns the output of the front end for waveforms of any lengths, ``(frames, channels)``
        each, float32 (float64 where the network is)."""
        return [
            output.to(torch.promote_types(output.dtype, torch.float32)).contiguous()
            for output in self._front_end(waves)
        ]

    def hidden_states_from(
        self, features: Sequence[torch.Tensor], masks: Sequence[torch.Tensor] | None
    ) -> tuple[torch.Tensor, ...]:
        """Returns the input of each layer and the output of the encoder, each ``(batch, frames,
        dim)``, from outputs of ``conv_features``, with the mask embedding at masked frames."""
        with self._front_end.replace(features) as inputs, apply_masks(self.model, masks):
            return self._forward(inputs)

    def _forward(self, waves: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Runs s3prl's forward pass, which pads by itself: exactly behind a front end that was
        replaced, but not before it.

        The hooks that s3prl's constructor registers for good are registered for this call only:
        they would keep every state of every other forward pass in memory.
        """
        expert = self._expert
        for index in range(len(self.model.encoder.layers)):  # type: ignore[union-attr,arg-type]
            expert.add_hook(
                f"self.model.encoder.layers[{index}]",
                lambda input, output: input[0].transpose(0, 1),
            )
        expert.add_hook("self.model.encoder", lambda input, output: output[0])
        # WavLM passes a boolean padding mask beside its float position bias, which torch converts.
        ignore_warning(UserWarning, "Support for mismatched key_padding_mask and attn_mask")
        try:
            return tuple(expert(list(waves))["hidden_states"])
        finally:
            expert.remove_all_hooks()
            expert._hook_hiddens.clear()


def hubert(
    options: Mapping[str, Any],
    normalize: bool,
    symbols: Sequence[Sequence[str] | None],
    device: str,
) -> Expert:
    """Returns a HuBERT with s3prl's initial weights, drawn from torch's global random state. On
    ``meta`` the weights have no values."""
    task = HubertPretrainingConfig(normalize=normalize)
    # The label rate only shifts targets in a loss that is not used.
    config = HubertConfig(**{**options, **_FIXED}, label_rate=50.0)
    model = _build(lambda: HubertModel(config, task, symbols), device)
    return Expert(
        hubert_expert.UpstreamExpert, model, Convolutions(model, normalize), task_cfg=task
    )


def wav2vec2(options: Mapping[str, Any], normalize: bool, device: str) -> Expert:
    """Returns a wav2vec 2.0 with s3prl's initial weights, like ``hubert``."""
    config = Wav2Vec2Config(**{**options, **_FIXED})
    switches = {
        "wav_normalize": normalize,
        "apply_padding_mask": True,
        "numpy_wav_normalize": False,
        "feature_selection": None,
    }
    model = _build(lambda: Wav2Vec2Model(config), device)
    return Expert(wav2vec2_expert.UpstreamExpert, model, Convolutions(model, normalize), **switches)


def wavlm(options: Mapping[str, Any], normalize: bool, device: str) -> Expert:
    """Returns a WavLM with s3prl's initial weights, like ``hubert``."""
    config = WavLMConfig({**options, **_FIXED, "normalize": normalize})
    model = _build(lambda: WavLM(config), device)
    for part in model.modules():
        if isinstance(part, MultiheadAttention):
            part.__class__ = _WavLMAttention
    return Expert(wavlm_expert.UpstreamExpert, model, Convolutions(model, normalize), cfg=config)


def decoar2(options: Mapping[str, Any], device: str) -> Expert:
    """Returns a DeCoAR 2.0 with s3prl's initial weights, like ``hubert``."""
    bands = options["input_feat"]
    front_end = FilterBank(FeatureExtractor(num_mel_bins=bands), bands)
    model = _build(lambda: _SizedDecoar2(options), device)
    return Expert(
        decoar2_expert.UpstreamExpert, model, front_end, preprocessor=front_end.preprocessor
    )


class _WavLMAttention(MultiheadAttention):  # type: ignore[misc]  # s3prl has no type information
    """s3prl's attention of WavLM, which finds the bucket of each distance once instead of for all
    pairs of frames: on the CPU, in every forward pass, and then copied to the device."""

    def compute_bias(self, query_length: int, key_length: int) -> torch.Tensor:
        """Returns s3prl's bias ``(heads, query, key)``, to the bit."""
        device = self.relative_attention_bias.weight.device
        distances = torch.arange(1 - query_length, key_length)
        buckets = self._relative_positions_bucket(distances, bidirectional=True).to(device)
        query, key = (torch.arange(length, device=device) for length in (query_length, key_length))
        of_pairs = buckets[key[None, :] - query[:, None] + query_length - 1]
        bias: torch.Tensor = self.relative_attention_bias(of_pairs).permute([2, 0, 1])
        return bias


class _SizedDecoar2(Decoar2):  # type: ignore[misc]  # s3prl has no type information
    """s3prl's DeCoAR 2.0 of any size, with its own forward pass. Its constructor builds 12 layers
    of 768 only."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        nn.Module.__init__(self)
        config = Wav2Vec2Config(
            **{key: value for key, value in options.items() if key != "input_feat"} | _FIXED
        )
        self.post_extract_proj = nn.Linear(options["input_feat"], config.encoder_embed_dim)
        self.dropout_input = nn.Dropout(config.dropout_input)
        self.encoder = TransformerEncoder(config)


class _StaysOnMeta(TorchFunctionMode):
    """Lets WavLM's initialisation run on meta tensors: it moves weights to the CPU and back, which
    raises for those."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.cpu and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def _build(make: Callable[[], nn.Module], device: str) -> nn.Module:
    # torch.nn.utils.weight_norm is deprecated, but has the parameter names of checkpoints
    # (weight_g, weight_v).
    ignore_warning(FutureWarning, r"`torch\.nn\.utils\.weight_norm` is deprecated")
    try:
        with torch.device(device), _StaysOnMeta():
            return make()
    except (AssertionError, RuntimeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"the configuration describes no network that can be built: {error}"
        ) from error


def _trim(states: list[tuple[str, torch.Tensor]]) -> list[tuple[str, torch.Tensor]]:
    """Cuts every state to the shortest one: the sequence is padded to a multiple inside the layers,
    not in the encoder's output."""
    frames = min(state.size(1) for _, state in states)
    return [(name, state[:, :frames]) for name, state in states]
