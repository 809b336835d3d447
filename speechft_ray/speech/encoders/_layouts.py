"""Builds and checks the families whose networks are s3prl's, from a declaration of each family's
configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.units import SAMPLE_RATE_HZ
from speechft_ray.speech.encoders._conv_layers import PUBLISHED, ConvLayers, read_conv_layers
from speechft_ray.speech.encoders._options import Option, read_options, read_section
from speechft_ray.speech.encoders._waveform import Network, WaveformEncoder
from speechft_ray.speech.encoders.base import FAMILIES, EncoderFamily, EncoderWeights, Shape


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A configuration that passed every check. ``options`` are those of s3prl's network."""

    config: Mapping[str, Any]
    options: Mapping[str, Any]
    shape: Shape


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The configuration keys and parameter names of a family; see ``EncoderFamily``.

    ``model_section``: the key that holds ``options``. ``task_section``: the key that holds
    ``normalize``, None where waveforms are never normalised. ``build_network(settings, device)``
    returns the network with initial weights. ``check(settings)`` raises ``UserError`` for options
    that do not fit each other. ``correct_init(model)`` changes initial weights of s3prl's.
    """

    name: str
    title: str
    model_section: str
    task_section: str | None
    options: Mapping[str, Option]
    front_end_prefixes: tuple[str, ...]
    pretraining_only_prefixes: tuple[str, ...]
    matches: Callable[[Mapping[str, Any]], bool]
    build_network: Callable[[Settings, str], Network]
    example_config: Callable[[int, int, bool], dict[str, Any]]
    check: Callable[[Settings], None] = lambda settings: None
    correct_init: Callable[[torch.nn.Module], None] = lambda model: None


def register(layout: Layout) -> None:
    """Registers the family of a layout."""
    family = EncoderFamily(
        name=layout.name,
        title=layout.title,
        front_end_prefixes=layout.front_end_prefixes,
        pretraining_only_prefixes=layout.pretraining_only_prefixes,
        matches=layout.matches,
        describe=lambda config: read_settings(layout, config).shape,
        build=partial(build_encoder, layout),
        init_weights=partial(init_weights, layout),
        example_config=layout.example_config,
        read_options=lambda config: read_settings(layout, config).options,
    )
    FAMILIES.register(layout.name, family)


def read_settings(layout: Layout, config: Mapping[str, Any]) -> Settings:
    """Returns the settings of a configuration. Raises ``UserError`` that names what is wrong in it
    and what is allowed."""
    _check_family(layout, config)
    model = read_section(layout.title, config, layout.model_section, dict)
    options = read_options(layout.model_section, model, layout.options)
    convolutions: ConvLayers = ()
    if layout.front_end_prefixes:
        convolutions = read_conv_layers(model.get("conv_feature_layers", PUBLISHED))
        options["conv_feature_layers"] = repr(list(convolutions))
    dim, layers = options["encoder_embed_dim"], options["encoder_layers"]
    for divisor in ("encoder_attention_heads", "conv_pos_groups"):
        if dim % options[divisor]:
            raise UserError(
                f"`{layout.model_section}.encoder_embed_dim` must be a multiple of `{divisor}`, "
                f"but {dim} is none of {options[divisor]}."
            )
    shape = Shape(
        layers=layers,
        dim=dim,
        state_count=layers + 1,
        normalizes_waveform=_read_normalize(layout, config),
        heads=options["encoder_attention_heads"],
        feed_forward_dim=options["encoder_ffn_embed_dim"],
        layer_norm_first=options["layer_norm_first"],
        extractor_mode=options.get("extractor_mode"),
        conv_layers=convolutions,
    )
    settings = Settings(config=config, options=options, shape=shape)
    layout.check(settings)
    return settings


def build_encoder(layout: Layout, weights: EncoderWeights) -> WaveformEncoder:
    """Returns an encoder in eval mode with a copy of the weights; see ``EncoderFamily.build``."""
    settings = read_settings(layout, weights.config)
    _check_depth(layout, settings, weights.state)
    with torch.random.fork_rng(devices=[]):
        network = layout.build_network(settings, "meta")
    check_state(layout, network.model.state_dict(), weights.state)
    _remove_parameters(network.model, set(network.model.state_dict()) - set(weights.state))
    copy = {
        name: tensor.detach().to("cpu", torch.float32, copy=True)
        for name, tensor in weights.state.items()
    }
    network.model.load_state_dict(copy, assign=True)
    return WaveformEncoder(network, layout.title, settings.shape)


def init_weights(layout: Layout, config: Mapping[str, Any], seed: int) -> EncoderWeights:
    """Returns randomly initialised weights; see ``EncoderFamily.init_weights``."""
    settings = read_settings(layout, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = layout.build_network(settings, "cpu").model
        layout.correct_init(model)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return EncoderWeights(family=layout.name, config=dict(config), state=state)


def check_state(
    layout: Layout, expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]
) -> None:
    """Raises ``UserError`` that names the first five missing, unexpected or misshapen parameters of
    a state.

    Parameters of pre-training may be missing: some formats hold only what features need.
    """
    optional = layout.pretraining_only_prefixes
    missing = [
        f"{name} is missing"
        for name in expected
        if name not in state and not name.startswith(optional)
    ]
    unexpected = [f"{name} is not part of the model" for name in state if name not in expected]
    misshapen = [
        f"{name} is {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    faults = missing + unexpected + misshapen
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise UserError(
            f"the weights do not fit the {layout.title} of their own configuration: "
            f"{'; '.join(faults[:5])}{more}. "
            "Load the file with the configuration that it was saved with."
        )


def _check_family(layout: Layout, config: Mapping[str, Any]) -> None:
    if layout.matches(config):
        return
    for name, other in FAMILIES.items():
        if config and other.matches(config):
            raise UserError(
                f"this is the configuration of a {other.title}, not of a {layout.title}: "
                f"load it as `{name}`, or give a file of the family `{layout.name}`."
            )


def _check_depth(layout: Layout, settings: Settings, names: Iterable[str]) -> None:
    """Raises unless the depth of the configuration is that of the weights, so that no file can make
    this process build a million layers."""
    layers = {name.split(".")[2] for name in names if name.startswith("encoder.layers.")}
    if settings.shape.layers != len(layers):
        raise UserError(
            f"`{layout.model_section}.encoder_layers` must be {len(layers)}, "
            f"the number of layers in the weights, but is {settings.shape.layers} instead."
        )


def _read_normalize(layout: Layout, config: Mapping[str, Any]) -> bool:
    if layout.task_section is None:
        return False
    task = read_section(layout.title, config, layout.task_section, dict)
    if task.get("sample_rate", SAMPLE_RATE_HZ) != SAMPLE_RATE_HZ:
        raise UserError(
            f"`{layout.task_section}.sample_rate` must be {SAMPLE_RATE_HZ}: "
            "other rates are not supported."
        )
    normalize = task.get("normalize", False)
    if not isinstance(normalize, bool):
        raise UserError(
            f"`{layout.task_section}.normalize` must be true or false, "
            f"but is {str(normalize)[:80]!r} instead."
        )
    return normalize


def _remove_parameters(model: torch.nn.Module, names: Iterable[str]) -> None:
    """Removes parameters that the weights lack from the model, so that their random values are
    neither saved nor trained."""
    for name in names:
        owner, _, leaf = name.rpartition(".")
        delattr(model.get_submodule(owner), leaf)
