"""DeCoAR 2.0 (Ling and Liu 2020, arXiv 2012.06659) as s3prl's expert runs it: a transformer on
filter-bank energies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speechft_ray.speech.encoders._examples import example_transformer
from speechft_ray.speech.encoders._layouts import Layout, Settings, register
from speechft_ray.speech.encoders._options import TRANSFORMER, integer, probability
from speechft_ray.speech.encoders._waveform import Network

_PARTS = {"input_feat", *TRANSFORMER, "encoder_layerdrop"}


def is_decoar2_config(config: Mapping[str, Any]) -> bool:
    """Whether the configuration is a DeCoAR 2.0's: one table ``cfg`` with its own options only, or
    empty, since the published file has none."""
    model = config.get("cfg")
    return isinstance(model, Mapping) and _PARTS.issuperset(model)


def example_config(layers: int, dim: int, large: bool) -> dict[str, Any]:
    """Returns a configuration with the option names of s3prl's ``upstream/decoar2/decoar2.py``.

    Only Base was published.
    """
    return {"cfg": {"input_feat": 80, **example_transformer(layers, dim, large)}}


def _build_network(settings: Settings, device: str) -> Network:
    from speechft_ray.speech.encoders import _s3prl  # slow, and not needed for configurations

    return _s3prl.decoar2(settings.options, device)


register(
    Layout(
        name="decoar2",
        title="DeCoAR 2.0",
        model_section="cfg",
        task_section=None,
        options={
            **TRANSFORMER,
            "input_feat": integer(80, 4, 128),
            "dropout_input": probability(0.1),
        },
        # The front end takes every second frame of filter-bank energies. It has no parameters, so
        # nothing is frozen.
        front_end_prefixes=(),
        # s3prl's module lacks the vector quantisation of pre-training.
        pretraining_only_prefixes=(),
        matches=is_decoar2_config,
        build_network=_build_network,
        example_config=example_config,
    )
)
