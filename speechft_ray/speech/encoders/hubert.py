"""HuBERT (Hsu et al. 2021, arXiv 2106.07447) as s3prl's expert runs it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.units import FRAME_FIELD_SAMPLES, frame_count
from speechft_ray.speech.encoders._s3prl import build_expert, parse_conv_layers
from speechft_ray.speech.encoders.base import FAMILIES, EncoderFamily, EncoderWeights, HiddenStates, Shape

FRONT_END = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))
"""Kernel and stride of the seven convolutions (HuBERT paper, section III-A): 25 ms field, 20 ms hop. Other geometries would
silently shift every frame label, so they are refused."""


def build(weights: EncoderWeights) -> HubertEncoder:
    """Returns a HuBERT in eval mode holding a copy of the weights.

    Raises ``UserError`` for a configuration that is no HuBERT and for missing, unexpected or misshapen parameters.
    """
    model_cfg = weights.config.get("model_cfg")
    if isinstance(model_cfg, Mapping):
        _check_geometry(model_cfg)
        _check_depth(model_cfg, weights.state)
    with torch.random.fork_rng(devices=[]):
        expert = build_expert(weights.config)
    check_state(expected=expert.model.state_dict(), given=weights.state)
    copy = {name: tensor.detach().to("cpu", torch.float32, copy=True) for name, tensor in weights.state.items()}
    expert.model.load_state_dict(copy, assign=True)
    return HubertEncoder(expert)


def initial(config: Mapping[str, Any], seed: int) -> EncoderWeights:
    """Returns a HuBERT that has learnt nothing, the same for the same seed; torch's global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_expert(config, device="cpu").model
        if hasattr(model, "label_embs_concat"):
            # s3prl draws them from [0, 1), all within some degrees of each other; cosine logits then start almost equal.
            # As small as other weights, they turn as fast under Adam, whose steps do not scale with the weights.
            torch.nn.init.normal_(model.label_embs_concat, std=0.1)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return EncoderWeights(family="hubert", config=dict(config), state=state)


def check_state(*, expected: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> None:
    """Raises ``UserError`` naming the first five parameters that are missing, unexpected or misshapen."""
    missing = [f"{name} is missing" for name in expected if name not in given]
    unexpected = [f"{name} is not part of the model" for name in given if name not in expected]
    misshapen = [
        f"{name} is {tuple(given[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in given and given[name].shape != tensor.shape
    ]
    faults = missing + unexpected + misshapen
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise UserError(
            f"the weights do not fit the HuBERT of their own configuration: {'; '.join(faults[:5])}{more}. "
            "Load the file with the configuration that it was saved with."
        )


def _check_geometry(model_cfg: Mapping[str, object]) -> None:
    if "conv_feature_layers" in model_cfg:
        layers = parse_conv_layers(model_cfg["conv_feature_layers"])
        if tuple((kernel, stride) for _, kernel, stride in layers) != FRONT_END:
            raise UserError(
                f"`conv_feature_layers` must have kernels and strides {FRONT_END} (25 ms field, 20 ms hop), "
                f"but is {layers} instead."
            )


def _check_depth(model_cfg: Mapping[str, object], names: Iterable[str]) -> None:
    """The configured depth must be the stored one, so that no file can ask for a million layers."""
    found = {name.split(".")[2] for name in names if name.startswith("encoder.layers.")}
    if model_cfg.get("encoder_layers", 12) != len(found):
        raise UserError(f"`model_cfg.encoder_layers` must be {len(found)}, the number of layers in the weights.")


class HubertEncoder:
    """A built HuBERT. Hidden states: the input of each transformer layer, then the output of the encoder.

    Gradient reaches the convolutional front end exactly when one of its parameters asks for it. Stock s3prl never lets it
    through (``feature_grad_mult = 0``); with a front end that is frozen the two are the same, and the frozen one builds no
    graph.
    """

    def __init__(self, expert: torch.nn.Module) -> None:
        self._expert = expert.eval()
        self.dim = int(expert.model.encoder.embedding_dim)  # type: ignore[union-attr,arg-type]
        self.state_count = len(expert.model.encoder.layers) + 1  # type: ignore[union-attr,arg-type]

    def hidden_states(self, waves: Sequence[torch.Tensor]) -> HiddenStates:
        """Encodes waveforms, each ``(samples,)`` float32 at 16 kHz, padded together to the longest.

        With the ``default`` extractor (one GroupNorm over time, as in HuBERT Base) the padding takes part in the statistics of
        shorter utterances; batches of equal length are exact. The transformer does not attend to padded frames.
        Raises ``UserError`` for an empty batch and for a waveform shorter than 400 samples.
        """
        lengths = [wave.shape[0] for wave in waves]
        if not lengths or min(lengths) < FRAME_FIELD_SAMPLES:
            raise UserError(
                f"a waveform has {min(lengths, default=0)} samples, but HuBERT needs at least "
                f"{FRAME_FIELD_SAMPLES} (25 ms at 16 kHz). Leave such recordings out."
            )
        model = self.module()
        front_end: torch.nn.Module = model.feature_extractor  # type: ignore[assignment]
        learns = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in front_end.parameters())
        model.feature_grad_mult = 1.0 if learns else 0.0  # type: ignore[assignment]
        states = self._expert(list(waves))["hidden_states"]
        return HiddenStates(states=tuple(states), frames=torch.tensor([frame_count(length) for length in lengths]))

    def module(self) -> torch.nn.Module:
        """s3prl's ``HubertModel``; its parameter names are those of the checkpoints."""
        return self._expert.model  # type: ignore[return-value]


def describe(config: Mapping[str, Any]) -> Shape:
    model = config["model_cfg"]
    layers = int(model.get("encoder_layers", 12))
    return Shape(layers=layers, dim=int(model.get("encoder_embed_dim", 768)), state_count=layers + 1)


def example_config(layers: int, dim: int, large: bool) -> dict[str, Any]:
    channels = 512 if dim >= 768 else dim // 2
    model = {
        "label_rate": 50.0,
        "encoder_layers": layers,
        "encoder_embed_dim": dim,
        "encoder_ffn_embed_dim": 4 * dim,
        "encoder_attention_heads": max(2, dim // 64),
        "conv_feature_layers": f"[({channels},10,5)] + [({channels},3,2)] * 4 + [({channels},2,2)] * 2",
        "layer_norm_first": large,
        "extractor_mode": "layer_norm" if large else "default",
    }
    return {
        "model_cfg": model,
        "task_cfg": {"sample_rate": 16_000, "normalize": large},
        "dictionaries_symbols": [[str(n) for n in range(20)]],
    }


HUBERT = FAMILIES.register(
    "hubert",
    EncoderFamily(
        name="hubert",
        title="HuBERT",
        recognises=lambda config: "model_cfg" in config and "dictionaries_symbols" in config,
        describe=describe,
        initial=initial,
        example_config=example_config,
        front_end_prefixes=("feature_extractor.",),
        # The official merge protects exactly final_proj* and label_embs_concat (nervjack2/Speech-FT, 6631ab5). mask_emb and
        # target_glu serve masked prediction alone as well: supervised tuning gives them no gradient, so they keep the base
        # value under either rule.
        pretraining_only_prefixes=("final_proj.", "label_embs_concat", "mask_emb", "target_glu."),
        build=build,
    ),
)
