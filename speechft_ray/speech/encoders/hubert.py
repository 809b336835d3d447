"""HuBERT (Hsu et al. 2021, arXiv 2106.07447) as s3prl's expert runs it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.units import SAMPLE_RATE_HZ
from speechft_ray.speech.encoders import _layouts
from speechft_ray.speech.encoders._examples import (
    PUBLISHED_DIM,
    example_convolutions,
    example_final_dim,
    example_transformer,
)
from speechft_ray.speech.encoders._layouts import (
    Layout,
    Settings,
    build_encoder,
    register,
)
from speechft_ray.speech.encoders._options import (
    CONVOLUTIONS,
    FINAL_DIM,
    LOGIT_TEMPERATURE,
    SEQUENCE_MULTIPLE,
    TRANSFORMER,
    TRANSFORMER_LAYERS,
    boolean,
    read_section,
)
from speechft_ray.speech.encoders._waveform import Network

MAX_LABEL_VALUES = 1 << 26
"""Most values of label embeddings that a configuration may have: 256 MiB. Base has 504 labels of
256 values."""

_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
"""The first entries of every dictionary of fairseq."""


def is_hubert_config(config: Mapping[str, Any]) -> bool:
    """Whether the configuration is a HuBERT's. Pre-training predicts labels, so it has dictionaries
    or a label rate."""
    model = config.get("model_cfg")
    return "dictionaries_symbols" in config or (
        isinstance(model, Mapping) and "label_rate" in model
    )


def example_config(layers: int, dim: int, large: bool) -> dict[str, Any]:
    """Returns a configuration in the s3prl-converted layout (fairseq
    ``config/pretrain/hubert_{base,large}*.yaml``)."""
    labels = 500 if dim >= PUBLISHED_DIM else 20
    model = {
        "_name": "hubert",
        "label_rate": 50.0,
        **example_transformer(layers, dim, large),
        **example_convolutions(dim, large),
        "final_dim": example_final_dim(dim, large),
        "untie_final_proj": True,
        "logit_temp": 0.1,
    }
    return {
        "model_cfg": model,
        "task_cfg": {
            "_name": "hubert_pretraining",
            "sample_rate": SAMPLE_RATE_HZ,
            "normalize": large,
        },
        "dictionaries_symbols": [[*_SPECIAL, *map(str, range(labels))]],
    }


def _check(settings: Settings) -> None:
    symbols = read_section("HuBERT", settings.config, "dictionaries_symbols", list)
    if not all(
        each is None or (isinstance(each, list) and all(isinstance(name, str) for name in each))
        for each in symbols
    ):
        raise UserError(
            "`dictionaries_symbols` must be a list of lists of label names, "
            "or null for a dictionary not at hand."
        )
    values = sum(len(each or ()) for each in symbols) * max(
        settings.options["final_dim"], settings.shape.dim
    )
    if values > MAX_LABEL_VALUES:
        raise UserError(
            f"`dictionaries_symbols` ask for {values} values of label embeddings, "
            f"more than {MAX_LABEL_VALUES}."
        )


def _build_network(settings: Settings, device: str) -> Network:
    from speechft_ray.speech.encoders import _s3prl  # slow, and not needed for configurations

    symbols = settings.config["dictionaries_symbols"]
    return _s3prl.hubert(settings.options, settings.shape.normalizes_waveform, symbols, device)


def _reset_label_embeddings(model: torch.nn.Module) -> None:
    """Draws label embeddings from a normal distribution. s3prl draws them from [0, 1), so that all
    point in almost the same direction and cosine logits start almost equal. They are as small as
    other weights, because the steps of Adam do not scale with the weights."""
    if hasattr(model, "label_embs_concat"):
        torch.nn.init.normal_(model.label_embs_concat, std=0.1)  # type: ignore[arg-type]


LAYOUT = Layout(
    name="hubert",
    title="HuBERT",
    model_section="model_cfg",
    task_section="task_cfg",
    options={
        **TRANSFORMER,
        **CONVOLUTIONS,
        "final_dim": FINAL_DIM,
        "untie_final_proj": boolean(False),
        "target_glu": boolean(False),
        "logit_temp": LOGIT_TEMPERATURE,
        "required_seq_len_multiple": SEQUENCE_MULTIPLE,
        "layer_type": TRANSFORMER_LAYERS,
    },
    front_end_prefixes=("feature_extractor.",),
    # The official merge protects exactly final_proj* and label_embs_concat (nervjack2/Speech-FT,
    # 6631ab5). mask_emb and target_glu are used by masked prediction alone too: supervised tuning
    # gives them no gradient, so they keep the base value under either rule. Continued pre-training
    # trains mask_emb, which is then merged, as there (compatibility.find_protected_prefixes).
    pretraining_only_prefixes=("final_proj.", "label_embs_concat", "mask_emb", "target_glu."),
    matches=is_hubert_config,
    build_network=_build_network,
    example_config=example_config,
    check=_check,
    correct_init=_reset_label_embeddings,
)
register(LAYOUT)
build, init_weights = partial(build_encoder, LAYOUT), partial(_layouts.init_weights, LAYOUT)
