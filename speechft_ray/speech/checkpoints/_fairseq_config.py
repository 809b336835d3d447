"""Reads the configuration in a fairseq checkpoint, of a pre-trained model or of one tuned from it.

A fine-tuned recogniser has the configuration of its encoder under ``w2v_args``: a ``cfg`` with
``model`` and ``task``, or a Namespace that has both in one level
(``models/hubert/hubert_asr.py``, ``models/wav2vec/wav2vec2_asr.py`` of fairseq 0.12.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from speechft_ray.core.errors import UserError
from speechft_ray.speech.checkpoints import _fairseq_names as names
from speechft_ray.speech.checkpoints._plain import resolve_references, to_plain_data
from speechft_ray.speech.checkpoints._standins import Container, Namespace

FAMILIES = ("hubert", "wav2vec2")
_TUNED = {
    "hubert_ctc": "hubert",
    "hubert_seq2seq": "hubert",
    "wav2vec_ctc": "wav2vec2",
    "wav2vec_seq2seq": "wav2vec2",
}
"""Recognisers of fairseq, and what they are tuned from where ``w2v_args`` does not say."""

Section = dict[str, Any]


class FairseqConfig(NamedTuple):
    """The configuration of an encoder: ``cfg.model`` and ``cfg.task`` of its pre-training.
    ``tuned_as``: the name of the recogniser around it, None for a pre-trained model."""

    model: Section
    task: Section
    tuned_as: str | None


def read_config(path: Path, content: Mapping[str, Any]) -> FairseqConfig:
    """Returns the configuration of the encoder in a checkpoint with ``cfg`` or ``args``.

    Raises ``UserError`` for a configuration that is not plain data, and for a recogniser that does
    not say what its encoder is.
    """
    model, task = _read_sections(path, content)
    name = model.get("_name")
    if isinstance(model.get("w2v_args"), dict):
        inner, inner_task = _split_sections(model["w2v_args"])
        return FairseqConfig(inner, _add_normalize(inner, inner_task, task, model), str(name))
    if name not in _TUNED:
        return FairseqConfig(model, task, None)
    if "encoder_layers" not in model:
        raise UserError(
            f"{path} is a fine-tuned recogniser (`{name}`) without `w2v_args`, the configuration "
            "of its encoder. Save it once more with fairseq, which adds it when it loads the "
            "pre-trained checkpoint."
        )
    return FairseqConfig({**model, "_name": _TUNED[name]}, task, str(name))


def read_family(path: Path, model: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    """Returns the family of an encoder. Raises ``UserError`` for another model of fairseq's."""
    name = model.get("_name")
    if name is None and "label_embs_concat" in state:
        return "hubert"
    if name not in FAMILIES:
        raise UserError(
            f"{path} holds a fairseq `{str(name)[:60]}`. Allowed: {', '.join(FAMILIES)}, and "
            f"recognisers tuned from them ({', '.join(_TUNED)})."
        )
    return str(name)


def _read_sections(path: Path, content: Mapping[str, Any]) -> tuple[Section, Section]:
    if content.get("cfg") is None:
        return _split_options(_read_options(content["args"], f"`args` in {path}"))
    config = content["cfg"]
    parts = config.state.get("_content") if isinstance(config, Container) else config
    plain = {}
    for key, part in parts.items() if isinstance(parts, Mapping) else ():
        if key in ("model", "task"):
            plain[key] = to_plain_data(part, f"`cfg.{key}` in {path}")
            continue
        try:  # references may lead into the other sections; what is wrong there changes nothing
            plain[str(key)] = to_plain_data(part, "")
        except UserError:
            continue
    inner = plain["model"].pop("w2v_args", None) if isinstance(plain.get("model"), dict) else None
    resolved = resolve_references(plain)
    sections = [resolved.get(key) for key in ("model", "task")]
    if not all(isinstance(section, dict) for section in sections):
        raise UserError(
            f"{path} has a `cfg` without `model` and `task`, so it is no checkpoint of an encoder "
            "of fairseq's."
        )
    model, task = sections
    return ({**model, "w2v_args": inner} if inner is not None else dict(model)), dict(task)


def _read_options(args: Namespace, where: str) -> Section:
    """Returns the options in an ``args`` that are read; others may be anything."""
    names_read = {*names.MODEL_KEYS, *names.TASK_KEYS, "arch", "task", "w2v_args"}
    options = {key: value for key, value in args.state.items() if key in names_read}
    plain: Section = to_plain_data(options, where)
    return plain


def _split_options(options: Mapping[str, Any]) -> tuple[Section, Section]:
    """Returns model and task of options that are all in one level."""
    model = {key: options[key] for key in names.MODEL_KEYS if key in options}
    task = {key: options[key] for key in names.TASK_KEYS if key in options}
    extra = {key: options[key] for key in ("w2v_args",) if key in options}
    return (
        {"_name": options.get("arch"), **model, **extra},
        {"_name": options.get("task"), **task},
    )


def _split_sections(config: Section) -> tuple[Section, Section]:
    """Returns model and task of ``w2v_args``. References in it mean its own sections."""
    if not isinstance(config.get("model"), dict):
        return _split_options(config)
    resolved = resolve_references(config)
    task = resolved.get("task")
    return dict(resolved["model"]), dict(task) if isinstance(task, dict) else {}


def _add_normalize(model: Section, task: Section, *others: Section) -> Section:
    """Returns the task with ``normalize``: where the pre-training does not state it, that of the
    tuning, which fairseq demands to be the same."""
    if "normalize" in task:
        return task
    values = [part["normalize"] for part in (model, *others) if "normalize" in part]
    return {**task, "normalize": values[0]} if values else task
