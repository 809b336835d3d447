"""Corpus ``synthetic``: synthesised offline with espeak-ng, with exact labels for every task.

Phones, words, speakers, emotions and slots are known by construction. Reverberation, channels and
noise make the tasks hard enough that filter banks alone do not solve them. The audio of one set of
options is the same on every run and for any number of worker processes. It is published once as one
packed file, which later opens map into memory.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from speechft_ray.core.fingerprint import file_sha256, fingerprint
from speechft_ray.speech.corpora._mixtures import mix_pairs
from speechft_ray.speech.corpora._queries import add_matches
from speechft_ray.speech.corpora.base import (
    CORPORA,
    SPLITS,
    Corpus,
    CorpusKind,
    Estimate,
    Progress,
    Utterance,
)
from speechft_ray.speech.synthesis.parts import PARTS, Item, Part, make_items, max_speakers
from speechft_ray.speech.synthesis.phones import join_phones
from speechft_ray.speech.synthesis.workers import synthesise, usable_cores

GENERATOR_VERSION = 1
"""Raised whenever the audio or the labels of the same options would change."""

_AUDIO, _ITEMS, _MANIFEST = "audio.npy", "items.jsonl", "manifest.json"
_FULL_SCALE = np.float32(1 / 32768)

MEAN_SECONDS = {
    "pretrain": 3.29,
    "phones": 2.58,
    "pr": 1.97,
    "sid": 1.23,
    "er": 1.30,
    "sf": 2.18,
    "ks": 0.64,
    "ic": 1.36,
    "zh": 2.18,
    "sd": 3.75,
    "qbe": 1.64,
}
"""Mean length of an utterance of each part, measured over at least 120 of them. Of ``qbe`` at its
default sizes: documents have 2.3 s, queries 0.7."""

PartName = Literal["pretrain", "phones", "pr", "sid", "er", "sf", "ks", "ic", "zh", "sd", "qbe"]


class SyntheticOptions(BaseModel):
    """Part, seed and sizes. Sizes that are left out get the part's defaults before the identity is
    computed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: PartName
    """Texts and labels; see ``synthesis.parts.PARTS``."""
    seed: int = Field(default=0, ge=0)
    """Of all draws: sentences, speakers, rooms and noise."""
    train: int = Field(ge=0, le=100_000)
    dev: int = Field(ge=0, le=100_000)
    test: int = Field(ge=0, le=100_000)
    """Utterances per split; of ``sd`` recordings of two speakers."""
    speakers: int = Field(ge=2)
    """Training speakers. ``sid`` and ``pretrain`` have them in all splits; other parts have other
    speakers in dev and test."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_sizes(cls, options: Any) -> Any:
        if not isinstance(options, dict):
            return options
        # A part that is missing or unknown is one mistake: its sizes are not missing too.
        name = options.get("part")
        part = PARTS[name if isinstance(name, str) and name in PARTS else "pr"]
        sizes = {
            "train": part.train,
            "dev": part.dev,
            "test": part.test,
            "speakers": part.speakers,
        }
        chosen = {name: value for name, value in options.items() if value is not None}
        return {**sizes, **chosen}

    @model_validator(mode="after")
    def _check(self) -> SyntheticOptions:
        most = max_speakers(self.part)
        if self.speakers > most:
            raise ValueError(
                f"`speakers` must be within [2, {most}] for the part `{self.part}`, but is "
                f"{self.speakers} instead"
            )
        if not self.train + self.dev + self.test:
            raise ValueError(
                "`train`, `dev` and `test` are all 0: at least one split needs utterances"
            )
        return self


def open_synthetic(
    options: SyntheticOptions, root: Path | None, cache: Path, progress: Progress | None = None
) -> Corpus:
    """Returns the corpus of these options: synthesised on the first call, then read from ``cache``.

    ``root`` is not used. A cached corpus whose bytes do not have their recorded sha256 is made
    again.
    """
    identity = fingerprint({"options": options, "generator": GENERATOR_VERSION})
    folder = cache / f"synthetic-{options.part}-{identity}"
    manifest = _read_intact_manifest(folder)
    if manifest is None:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=cache) as scratch:
            make_corpus(options, Path(scratch) / "corpus", usable_cores(), progress)
            manifest = _publish(Path(scratch) / "corpus", folder)
    corpus = _open_folder(options, folder, manifest)
    part = PARTS[options.part]
    if part.is_mixed:
        return mix_pairs(corpus, options.seed)
    return corpus if part.draw_query is None else add_matches(corpus)


def estimate_size(options: SyntheticOptions) -> Estimate:
    """Returns the number of utterances, their mean length to about 3 %, and their columns."""
    counts = {split: int(getattr(options, split)) for split in SPLITS}
    return Estimate(
        utterances=counts,
        mean_seconds=MEAN_SECONDS[options.part],
        columns=_list_columns(PARTS[options.part]),
    )


def _list_columns(part: Part) -> frozenset[str]:
    if part.is_mixed:
        return frozenset({"segments", "speaker"})
    drawn = part.draw_prompt(0, random.Random(0)).labels
    of_queries = {"matches"} if part.draw_query else set()
    return frozenset({"speaker", "text", "phones", *drawn, *of_queries})


def make_corpus(
    options: SyntheticOptions, folder: Path, workers: int, progress: Progress | None = None
) -> None:
    """Writes a corpus to a new folder: packed audio, a line per utterance, and a manifest.

    The manifest has the sha256 of both files.
    """
    # Synthesis: a file of samples and a file of lines per chunk.
    folder.mkdir(parents=True)
    each = 2 if PARTS[options.part].is_mixed else 1
    items = make_items(
        options.part,
        options.seed,
        {split: each * getattr(options, split) for split in SPLITS},
        options.speakers,
    )
    prefixes = synthesise(items, folder, workers, progress)
    lines = [
        json.loads(line)
        for prefix in prefixes
        for line in prefix.with_suffix(".jsonl").read_text().splitlines()
    ]
    # Packing: one audio file and one file of records; the chunks go.
    _pack_audio(folder / _AUDIO, prefixes, sum(line["samples"] for line in lines))
    with (folder / _ITEMS).open("w", encoding="utf-8") as file:
        for item, line in zip(items, lines, strict=True):
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
    labels = {**item.labels, "phones": join_phones(line["alignment"])}
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


def _publish(scratch: Path, folder: Path) -> dict[str, Any]:
    try:
        scratch.rename(folder)
    except OSError:  # it exists: another process was faster, or its bytes are damaged
        if _read_intact_manifest(folder) is None:
            folder.rename(scratch.with_name("damaged"))
            scratch.rename(folder)
    manifest = _read_intact_manifest(folder)
    if manifest is None:
        raise RuntimeError(f"{folder} does not hold the corpus that was just written there")
    return manifest


def _read_intact_manifest(folder: Path) -> dict[str, Any] | None:
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


def _open_folder(options: SyntheticOptions, folder: Path, manifest: dict[str, Any]) -> Corpus:
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
        audio_ids={utterance.key: _make_audio_id(options, utterance) for utterance in utterances},
        speaker_namespace="synthetic",
        is_in_memory=True,
    )


def _make_audio_id(options: SyntheticOptions, utterance: Utterance) -> str:
    """Returns the identity of an utterance's audio: its draws by seed and key, speaker and text."""
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
        layout="needs no files: it is synthesised; name its `part`",
        version=GENERATOR_VERSION,
        estimate=estimate_size,
    ),
)
