"""From how a family writes its configuration to a registered family: what the families of s3prl's
networks share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.units import SAMPLE_RATE_HZ
from speechft_ray.speech.encoders._conv_layers import PUBLISHED, ConvLayers, front_end
from speechft_ray.speech.encoders._options import Option, read_options, section
from speechft_ray.speech.encoders._waveform import Network, WaveformEncoder
from speechft_ray.speech.encoders.base import FAMILIES, EncoderFamily, EncoderWeights, Shape


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A configuration after every check. ``options`` are ready for s3prl."""

    config: Mapping[str, Any]
    options: Mapping[str, Any]
    shape: Shape


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a family writes its configuration and names its parameters; see ``EncoderFamily``.

    ``model_section``: the key under which ``options`` stand. ``task_section``: the one of
    ``normalize``, None where waveforms are never normalised. ``network(settings, device)`` builds
    it with initial weights. ``check(settings)`` raises ``UserError`` for what a look at single
    options does not find. ``settle(model)`` corrects initial weights.
    """

    name: str
    title: str
    model_section: str
    task_section: str | None
    options: Mapping[str, Option]
    front_end_prefixes: tuple[str, ...]
    pretraining_only_prefixes: tuple[str, ...]
    matches: Callable[[Mapping[str, Any]], bool]
    network: Callable[[Settings, str], Network]
    example_config: Callable[[int, int, bool], dict[str, Any]]
    check: Callable[[Settings], None] = lambda settings: None
    settle: Callable[[torch.nn.Module], None] = lambda model: None


def register(layout: Layout) -> EncoderFamily:
    """Registers the family of a layout and returns it."""
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
    )
    return FAMILIES.register(layout.name, family)


def read_settings(layout: Layout, config: Mapping[str, Any]) -> Settings:
    """Checks a configuration. Raises ``UserError`` saying what is wrong in it and what is
    allowed."""
    _check_family(layout, config)
    model = section(layout.title, config, layout.model_section, dict)
    options = read_options(layout.model_section, model, layout.options)
    convolutions: ConvLayers = ()
    if layout.front_end_prefixes:
        convolutions = front_end(model.get("conv_feature_layers", PUBLISHED))
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
        normalizes_waveform=_normalizes(layout, config),
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
    """Returns an encoder in eval mode holding a copy of the weights; see
    ``EncoderFamily.build``."""
    settings = read_settings(layout, weights.config)
    _check_depth(layout, settings, weights.state)
    with torch.random.fork_rng(devices=[]):
        network = layout.network(settings, "meta")
    check_state(layout, expected=network.model.state_dict(), given=weights.state)
    _leave_out(network.model, set(network.model.state_dict()) - set(weights.state))
    copy = {
        name: tensor.detach().to("cpu", torch.float32, copy=True)
        for name, tensor in weights.state.items()
    }
    network.model.load_state_dict(copy, assign=True)
    return WaveformEncoder(network, layout.title, settings.shape)


def init_weights(layout: Layout, config: Mapping[str, Any], seed: int) -> EncoderWeights:
    """Returns an encoder that has learnt nothing; see ``EncoderFamily.init_weights``."""
    settings = read_settings(layout, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = layout.network(settings, "cpu").model
        layout.settle(model)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return EncoderWeights(family=layout.name, config=dict(config), state=state)


def check_state(
    layout: Layout, *, expected: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]
) -> None:
    """Raises ``UserError`` naming the first five parameters that are missing, unexpected or
    misshapen.

    Parameters of pre-training may be missing: formats that only carry what features need do not
    have them.
    """
    optional = layout.pretraining_only_prefixes
    missing = [
        f"{name} is missing"
        for name in expected
        if name not in given and not name.startswith(optional)
    ]
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
            f"the weights do not fit the {layout.title} of their own configuration: {'; '.join(faults[:5])}{more}. "
            "Load the file with the configuration that it was saved with."
        )


def _check_family(layout: Layout, config: Mapping[str, Any]) -> None:
    if layout.matches(config):
        return
    for name, other in FAMILIES.items():
        if config and other.matches(config):
            raise UserError(
                f"this is the configuration of a {other.title}, not of a {layout.title}: load it as `{name}`, "
                f"or give a file of the family `{layout.name}`."
            )


def _check_depth(layout: Layout, settings: Settings, names: Iterable[str]) -> None:
    """The configured depth must be the stored one, so that no file can ask for a million layers."""
    found = {name.split(".")[2] for name in names if name.startswith("encoder.layers.")}
    if settings.shape.layers != len(found):
        raise UserError(
            f"`{layout.model_section}.encoder_layers` must be {len(found)}, the number of layers in the weights, "
            f"but is {settings.shape.layers} instead."
        )


def _normalizes(layout: Layout, config: Mapping[str, Any]) -> bool:
    if layout.task_section is None:
        return False
    task = section(layout.title, config, layout.task_section, dict)
    if task.get("sample_rate", SAMPLE_RATE_HZ) != SAMPLE_RATE_HZ:
        raise UserError(
            f"`{layout.task_section}.sample_rate` must be {SAMPLE_RATE_HZ}: other rates are not supported."
        )
    normalize = task.get("normalize", False)
    if not isinstance(normalize, bool):
        raise UserError(
            f"`{layout.task_section}.normalize` must be true or false, but is {str(normalize)[:80]!r} instead."
        )
    return normalize


def _leave_out(model: torch.nn.Module, names: Iterable[str]) -> None:
    """Takes parameters that the weights lack off the model, so that nothing saves or tunes values
    that were never learnt."""
    for name in names:
        owner, _, leaf = name.rpartition(".")
        delattr(model.get_submodule(owner), leaf)
