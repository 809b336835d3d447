"""Corpus ``synthetic``: speech that makes itself, offline, with exact labels for every task.

espeak-ng speaks sentences with known phones, words, speakers, emotions and slots; rooms, channels
and noise make it hard enough that filter banks alone do not solve it. The audio of one set of
options is the same on every run and for any number of worker processes; it is published once,
packed, and later only mapped into memory.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from speechft_ray.core.fingerprint import file_sha256, fingerprint
from speechft_ray.speech.corpora.base import (
    CORPORA,
    SPLITS,
    Corpus,
    CorpusKind,
    Progress,
    Utterance,
)
from speechft_ray.speech.synthesis import workers as _chunks
from speechft_ray.speech.synthesis.parts import PARTS, Item, items, most_speakers
from speechft_ray.speech.synthesis.phones import spoken

GENERATOR_VERSION = 1
"""Raised whenever the same options would sound or read differently."""

_AUDIO, _ITEMS, _MANIFEST = "audio.npy", "items.jsonl", "manifest.json"
_FULL_SCALE = np.float32(1 / 32768)

PartName = Literal["pretrain", "phones", "pr", "sid", "er", "sf", "ks", "ic", "zh"]


class SyntheticOptions(BaseModel):
    """Which part of the synthetic world. Sizes left out take the part's own defaults and are then
    part of the identity."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: PartName
    """What is spoken and labelled; see ``_parts.PARTS``."""
    seed: int = Field(default=0, ge=0)
    """Another seed, other sentences, speakers and rooms."""
    train: int = Field(ge=0, le=100_000)
    dev: int = Field(ge=0, le=100_000)
    test: int = Field(ge=0, le=100_000)
    """Utterances per split."""
    speakers: int = Field(ge=2)
    """Training speakers. ``sid`` and ``pretrain`` use them in all splits; other parts test on
    speakers unheard in training."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("part") in PARTS:
            part = PARTS[given["part"]]
            sizes = {
                "train": part.train,
                "dev": part.dev,
                "test": part.test,
                "speakers": part.speakers,
            }
            return {**sizes, **{name: value for name, value in given.items() if value is not None}}
        return given

    @model_validator(mode="after")
    def _check(self) -> SyntheticOptions:
        most = most_speakers(self.part)
        if self.speakers > most:
            raise ValueError(
                f"`speakers` must be within [2, {most}] for the part `{self.part}`, but is {self.speakers} instead"
            )
        if not self.train + self.dev + self.test:
            raise ValueError(
                "`train`, `dev` and `test` are all 0: at least one split needs utterances"
            )
        return self


def open_synthetic(
    options: SyntheticOptions, root: Path | None, cache: Path, progress: Progress | None = None
) -> Corpus:
    """Returns the corpus of these options, made on the first call and found in ``cache``
    afterwards. ``root`` is not used.

    A cached corpus whose bytes do not have their recorded sha256 is made again.
    """
    folder = (
        cache
        / f"synthetic-{options.part}-{fingerprint({'options': options, 'generator': GENERATOR_VERSION})}"
    )
    manifest = _intact(folder)
    if manifest is None:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=cache) as made:
            make(options, Path(made) / "corpus", _chunks.usable_cores(), progress)
            manifest = _publish(Path(made) / "corpus", folder)
    return _corpus(options, folder, manifest)


def make(
    options: SyntheticOptions, folder: Path, workers: int, progress: Progress | None = None
) -> None:
    """Makes a corpus in a new folder: packed audio, one line per utterance, and a manifest with the
    sha256 of both."""
    folder.mkdir(parents=True)
    todo = items(
        options.part,
        options.seed,
        {split: getattr(options, split) for split in SPLITS},
        options.speakers,
    )
    prefixes = _chunks.synthesise(todo, folder, workers, progress)
    spoken_lines = [
        json.loads(line)
        for prefix in prefixes
        for line in prefix.with_suffix(".jsonl").read_text().splitlines()
    ]
    _pack_audio(folder / _AUDIO, prefixes, sum(line["samples"] for line in spoken_lines))
    with (folder / _ITEMS).open("w", encoding="utf-8") as file:
        for item, line in zip(todo, spoken_lines, strict=True):
            file.write(json.dumps(_record(item, line), ensure_ascii=False) + "\n")
    for prefix in prefixes:
        prefix.with_suffix(".pcm").unlink()
        prefix.with_suffix(".jsonl").unlink()
    manifest = {
        "generator": GENERATOR_VERSION,
        "options": options.model_dump(),
        "audio_sha256": file_sha256(folder / _AUDIO),
        "items_sha256": file_sha256(folder / _ITEMS),
    }
    (folder / _MANIFEST).write_text(
        json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )


def _record(item: Item, line: dict[str, Any]) -> dict[str, Any]:
    labels = {**item.labels, "phones": spoken(line["alignment"])}
    return {
        "key": item.key,
        "split": item.split,
        "samples": line["samples"],
        "labels": labels,
        "alignment": line["alignment"],
    }


def _pack_audio(path: Path, prefixes: list[Path], samples: int) -> None:
    header = {"descr": "<i2", "fortran_order": False, "shape": (samples,)}
    with path.open("wb") as packed:
        np.lib.format.write_array_header_1_0(packed, header)
        for prefix in prefixes:
            with prefix.with_suffix(".pcm").open("rb") as chunk:
                shutil.copyfileobj(chunk, packed, 1 << 20)


def _publish(made: Path, folder: Path) -> dict[str, Any]:
    try:
        made.rename(folder)
    except OSError:  # it exists: another process was faster, or its bytes are damaged
        if _intact(folder) is None:
            folder.rename(made.with_name("damaged"))
            made.rename(folder)
    manifest = _intact(folder)
    if manifest is None:
        raise RuntimeError(f"{folder} does not hold the corpus that was just written there")
    return manifest


def _intact(folder: Path) -> dict[str, Any] | None:
    """Returns the manifest when every byte is as recorded, else ``None``."""
    try:
        manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        good = (
            file_sha256(folder / _AUDIO) == manifest["audio_sha256"]
            and file_sha256(folder / _ITEMS) == manifest["items_sha256"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return manifest if good else None


def _corpus(options: SyntheticOptions, folder: Path, manifest: dict[str, Any]) -> Corpus:
    packed = np.load(folder / _AUDIO, mmap_mode="r", allow_pickle=False)
    utterances: list[Utterance] = []
    starts: dict[str, int] = {}
    start = 0
    with (folder / _ITEMS).open(encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            aligned = tuple((begin, label) for begin, label in record.pop("alignment"))
            utterances.append(Utterance(alignment=aligned, **record))
            starts[record["key"]] = start
            start += record["samples"]

    def read(utterance: Utterance) -> np.ndarray:
        begin = starts[utterance.key]
        wave: np.ndarray = (
            packed[begin : begin + utterance.samples].astype(np.float32) * _FULL_SCALE
        )
        return wave

    return Corpus(
        name=f"synthetic/{options.part}",
        fingerprint=fingerprint([manifest["audio_sha256"], manifest["items_sha256"]]),
        utterances=utterances,
        read=read,
        columns=frozenset(utterances[0].labels),
        audio_ids={utterance.key: _content(options, utterance) for utterance in utterances},
        speaker_namespace="synthetic",
    )


def _content(options: SyntheticOptions, utterance: Utterance) -> str:
    """What decides an utterance's audio: its own draws, by seed and key, who speaks and what."""
    labels = utterance.labels
    return fingerprint(
        [
            GENERATOR_VERSION,
            options.part,
            options.seed,
            utterance.key,
            labels["speaker"],
            labels["text"],
        ]
    )


CORPORA.register(
    "synthetic",
    CorpusKind(
        options=SyntheticOptions,
        open=open_synthetic,
        needs_root=False,
        layout="needs no files: it makes itself; name its `part`",
        version=GENERATOR_VERSION,
    ),
)
