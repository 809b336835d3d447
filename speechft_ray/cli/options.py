"""Parses command line options of the form ``NAME=VALUE``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from speechft_ray.core.errors import UserError
from speechft_ray.core.records import STAGES, Limits, Stage
from speechft_ray.core.resources import MOST, StageResources


def parse_options(pairs: Sequence[str], flag: str) -> dict[str, Any]:
    """Returns the values of ``NAME=VALUE`` texts by name.

    Values are YAML, read as in a search space: numbers (``1e-3`` among them), true, false, null,
    lists, mappings, JSON, else text. Nothing is evaluated. Raises ``UserError``, which names the
    ``flag``, for a text without name or ``=``, a name that is given twice, and a value that is not
    YAML.
    """
    from speechft_ray.sweep.yaml_text import YamlError, load_yaml

    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.strip()
        if not (name and equals):
            raise UserError(
                f"`{flag} {pair}` has no name or no value: write NAME=VALUE, "
                "for example density=0.2 or weights=[1,2]."
            )
        if name in options:
            raise UserError(f"{flag} `{name}` is given twice: give it once.")
        try:
            options[name] = load_yaml(text)
        except YamlError as error:
            raise UserError(
                f"{flag} `{name}` has a value that is not YAML: `{text}`; "
                f"put text with special characters in quotes, as in {name}=\"'TEXT'\" "
                f"({error.sentence.rstrip('.')})."
            ) from None
    return options


def parse_stall_minutes(texts: Sequence[str]) -> dict[str, dict[Stage, float]]:
    """Returns ``stall_minutes`` of ``Limits`` from texts ``MINUTES`` or ``STAGE=MINUTES``; nothing
    where none is given. Raises ``UserError``."""
    if not texts:
        return {}
    minutes = dict(Limits().stall_minutes)
    for text in sorted(texts, key=lambda text: "=" in text):  # single stages last
        stage, equals, number = text.rpartition("=")
        stages = [name for name in STAGES if name == stage or not equals]
        try:
            value = float(number)
            if not stages or not 0 <= value < float("inf"):
                raise ValueError
        except ValueError:
            raise UserError(
                f"`--stall-minutes {text}` must be a number of minutes that is not negative, or "
                f"STAGE=MINUTES with one of the stages {', '.join(STAGES)}, for example "
                "evaluate=30."
            ) from None
        minutes |= dict.fromkeys(stages, value)
    return {"stall_minutes": minutes}


def read_resources(
    cpus: float | None, gpus: float | None, memory_gb: float | None, labels: Sequence[str]
) -> dict[str, Any]:
    """Returns the options of ``run`` that concern resources as fields of ``StageResources``.

    Raises ``UserError``.
    """
    if cpus is not None and not 0 < cpus <= MOST:
        raise UserError(
            f"--cpus-per-trial must be above 0 and at most {MOST:g}, but is {cpus:g} instead."
        )
    if gpus is not None and (not 0 <= gpus <= MOST or (gpus > 1 and gpus % 1)):
        raise UserError(
            "--gpus-per-trial must be a share of one GPU (0 to 1) or a whole number of GPUs, but "
            f"is {gpus:g} instead."
        )
    if memory_gb is not None and not 0 < memory_gb <= MOST:
        raise UserError(
            f"--memory-per-trial must be above 0 GB and at most {MOST:g}, but is {memory_gb:g} "
            "instead."
        )
    fields = {"cpus": cpus, "gpus": gpus, "memory_gb": memory_gb, "labels": _read_labels(labels)}
    return {name: value for name, value in fields.items() if value is not None}


def _read_labels(pairs: Sequence[str]) -> dict[str, str] | None:
    """Returns node labels of Ray by key, ``None`` for none. A value is no YAML: ``!A100`` is a
    selector."""
    selectors = {key.strip(): value.strip() for key, _, value in (x.partition("=") for x in pairs)}
    try:
        StageResources(labels=selectors)
    except ValueError:
        raise UserError(
            "--label must be a label of nodes of Ray, such as ray.io/accelerator-type=A100, "
            f"'market-type=!spot' or 'zone=in(a, b)', but is `{', '.join(pairs)}` instead."
        ) from None
    return selectors or None
