"""The one door to s3prl: its networks and experts, built without trusting a word of a checkpoint.

s3prl's constructors run ``eval`` on ``conv_feature_layers`` and its experts unpickle files without
restriction. Here options come in checked and that text written anew from parsed numbers, experts
are put around networks that were built elsewhere, and weights come in as tensors. The one text that
s3prl still evaluates is the path of a layer for its hooks: a constant of ours. s3prl imports
``torchaudio`` on the way, whose compiled extension cannot be loaded on every machine; none of it is
used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from speechft_ray.core.errors import UserError
from speechft_ray.speech.encoders import _torchaudio  # noqa: F401  # makes torchaudio importable before s3prl asks for it
from speechft_ray.speech.encoders._fronts import (
    Convolutions,
    FilterBank,
    FrontEnd,
    mask_embedding_at,
)

from s3prl.upstream.hubert import expert as hubert_expert  # isort: skip

# isort: skip
from s3prl.upstream.hubert.hubert_model import HubertConfig, HubertModel, HubertPretrainingConfig

from s3prl.upstream.interfaces import UpstreamBase  # isort: skip
from s3prl.upstream.wav2vec2 import expert as wav2vec2_expert  # isort: skip

# isort: skip
from s3prl.upstream.wav2vec2.wav2vec2_model import TransformerEncoder, Wav2Vec2Config, Wav2Vec2Model

from s3prl.upstream.wavlm import expert as wavlm_expert  # isort: skip
from s3prl.upstream.wavlm.WavLM import WavLM, WavLMConfig  # isort: skip

with warnings.catch_warnings():
    warnings.simplefilter(
        "ignore", DeprecationWarning
    )  # torch.jit, which s3prl uses for one normalisation
    from s3prl.upstream.decoar2 import expert as decoar2_expert
    from s3prl.upstream.decoar2.audio import FeatureExtractor
    from s3prl.upstream.decoar2.decoar2 import Decoar2

_FIXED = {"encoder_layerdrop": 0.0, "feature_grad_mult": 1.0}
"""A dropped layer would change the number of hidden states (s3prl's experts force 0 as well).
Gradient reaches the learned front end exactly when one of its parameters asks for it; s3prl's
experts never let it through (``feature_grad_mult`` 0), which is the same for a front end that is
frozen: there no graph is built."""


class Expert:
    """One of s3prl's experts, its forward pass as it is, around a network that was built
    elsewhere."""

    def __init__(
        self, kind: type[Any], model: nn.Module, front: FrontEnd, **attributes: Any
    ) -> None:
        self.model, self._front = model, front
        self._expert: Any = object.__new__(kind)
        UpstreamBase.__init__(
            self._expert
        )  # not the kind's own: that one reads a file with an unrestricted unpickler
        for name, value in {"model": model, "hook_postprocess": _trim, **attributes}.items():
            setattr(self._expert, name, value)
        self._expert.eval()

    def __call__(self, waves: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Returns the input of each layer and the output of the encoder, each ``(batch, frames,
        dim)``."""
        return self._states(waves)

    def conv_features(self, waves: Sequence[torch.Tensor]) -> torch.Tensor:
        """Returns what the front end says of waveforms of equal length, ``(batch, frames,
        channels)``."""
        return self._front(torch.stack(list(waves))).float().contiguous()

    def states_of(
        self, fronts: Sequence[torch.Tensor], masked: Sequence[torch.Tensor] | None
    ) -> tuple[torch.Tensor, ...]:
        """Returns the same as a call, from outputs of ``front``, with the mask embedding at
        ``masked`` frames."""
        with self._front.given(fronts) as waves, mask_embedding_at(self.model, masked):
            return self._states(waves)

    def _states(self, waves: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Runs s3prl's forward pass.

        The hooks that s3prl's constructor would leave on the network for good live for this call
        only: left there, they would keep every state of every other use of the network in memory.
        """
        expert = self._expert
        for index in range(len(self.model.encoder.layers)):  # type: ignore[union-attr,arg-type]
            expert.add_hook(
                f"self.model.encoder.layers[{index}]",
                lambda input, output: input[0].transpose(0, 1),
            )
        expert.add_hook("self.model.encoder", lambda input, output: output[0])
        try:
            with warnings.catch_warnings():
                # WavLM passes a boolean padding mask beside its position bias; torch makes it a
                # number, as it always did.
                warnings.filterwarnings(
                    "ignore", "Support for mismatched key_padding_mask and attn_mask", UserWarning
                )
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
    """Returns a HuBERT with s3prl's initial weights, drawn from torch's global random state; on
    ``meta`` mostly shapes."""
    task = HubertPretrainingConfig(normalize=normalize)
    config = HubertConfig(
        **{**options, **_FIXED}, label_rate=50.0
    )  # the rate only shifts targets in a loss that is not used
    model = _built(lambda: HubertModel(config, task, symbols), device)
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
    model = _built(lambda: Wav2Vec2Model(config), device)
    return Expert(wav2vec2_expert.UpstreamExpert, model, Convolutions(model, normalize), **switches)


def wavlm(options: Mapping[str, Any], normalize: bool, device: str) -> Expert:
    """Returns a WavLM with s3prl's initial weights, like ``hubert``."""
    config = WavLMConfig({**options, **_FIXED, "normalize": normalize})
    model = _built(lambda: WavLM(config), device)
    return Expert(wavlm_expert.UpstreamExpert, model, Convolutions(model, normalize), cfg=config)


def decoar2(options: Mapping[str, Any], device: str) -> Expert:
    """Returns a DeCoAR 2.0 with s3prl's initial weights, like ``hubert``."""
    bands = options["input_feat"]
    front = FilterBank(FeatureExtractor(num_mel_bins=bands), bands)
    model = _built(lambda: _SizedDecoar2(options), device)
    return Expert(decoar2_expert.UpstreamExpert, model, front, preprocessor=front.preprocessor)


class _SizedDecoar2(Decoar2):  # type: ignore[misc]  # s3prl has no type information
    """s3prl's DeCoAR 2.0, its forward pass as it is, of any size: its own constructor knows only 12
    layers of 768."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        nn.Module.__init__(self)
        config = Wav2Vec2Config(
            **{key: value for key, value in options.items() if key != "input_feat"} | _FIXED
        )
        self.post_extract_proj = nn.Linear(options["input_feat"], config.encoder_embed_dim)
        self.dropout_input = nn.Dropout(config.dropout_input)
        self.encoder = TransformerEncoder(config)


class _StaysOnMeta(TorchFunctionMode):
    """Lets WavLM's initialisation run on tensors without values: it moves weights to the CPU and
    back, which those cannot."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.cpu and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def _built(make: Callable[[], nn.Module], device: str) -> nn.Module:
    try:
        with torch.device(device), _StaysOnMeta(), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # weight_norm keeps the names weight_g and weight_v of checkpoints
            return make()
    except (AssertionError, RuntimeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"the configuration describes no network that can be built: {error}"
        ) from error


def _trim(named: list[tuple[str, torch.Tensor]]) -> list[tuple[str, torch.Tensor]]:
    """Cuts every state to the shortest: layers see a sequence padded to a multiple, the encoder's
    output does not."""
    frames = min(state.size(1) for _, state in named)
    return [(name, state[:, :frames]) for name, state in named]
