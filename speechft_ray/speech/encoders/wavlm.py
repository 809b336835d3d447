"""WavLM (Chen et al. 2021, arXiv 2110.13900) as s3prl's expert runs it: HuBERT with gated relative
positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speechft_ray.core.errors import UserError
from speechft_ray.speech.encoders._examples import example_convolutions, example_transformer
from speechft_ray.speech.encoders._layouts import Layout, Settings, register
from speechft_ray.speech.encoders._options import (
    CONVOLUTIONS,
    TRANSFORMER,
    boolean,
    choice,
    integer,
)
from speechft_ray.speech.encoders._waveform import Network


def is_wavlm_config(config: Mapping[str, Any]) -> bool:
    """Whether the configuration is a WavLM's: one table ``cfg``, with relative positions or a
    convolutional front end."""
    model = config.get("cfg")
    signs = {"relative_position_embedding", "gru_rel_pos", "extractor_mode", "conv_feature_layers"}
    return isinstance(model, Mapping) and not signs.isdisjoint(model)


def example_config(layers: int, dim: int, large: bool) -> dict[str, Any]:
    """Returns a configuration in Microsoft's layout, with the relative positions of the published
    files."""
    model = {
        **example_transformer(layers, dim, large),
        **example_convolutions(dim, large),
        "normalize": large,
        "relative_position_embedding": True,
        "num_buckets": 320,
        "max_distance": 800,
        "gru_rel_pos": True,
    }
    return {"cfg": model}


def _check(settings: Settings) -> None:
    # The first distances on either side have a bucket each. Further ones share buckets by
    # log(distance / exact) / log(max_distance / exact).
    exact = settings.options["num_buckets"] // 4
    if settings.options["max_distance"] <= exact:
        raise UserError(
            f"`cfg.max_distance` must be more than {exact}, a quarter of `cfg.num_buckets`, "
            f"but is {settings.options['max_distance']} instead."
        )


def _build_network(settings: Settings, device: str) -> Network:
    from speechft_ray.speech.encoders import _s3prl  # slow, and not needed for configurations

    return _s3prl.wavlm(settings.options, settings.shape.normalizes_waveform, device)


register(
    Layout(
        name="wavlm",
        title="WavLM",
        model_section="cfg",
        task_section="cfg",
        options={
            **TRANSFORMER,
            **CONVOLUTIONS,
            "activation_fn": choice("gelu", "relu", "gelu_accurate", "tanh", "linear", "glu"),
            "relative_position_embedding": boolean(False),
            "num_buckets": integer(320, 4, 65536),
            "max_distance": integer(1280, 2, 1 << 20),
            "gru_rel_pos": boolean(False),
        },
        front_end_prefixes=("feature_extractor.",),
        # The heads of pre-training are not in the released files.
        pretraining_only_prefixes=("mask_emb",),
        matches=is_wavlm_config,
        build_network=_build_network,
        example_config=example_config,
        check=_check,
    )
)
