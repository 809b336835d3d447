"""What jobs start from, while its files change between two calls of one process."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import soundfile

from speechft_ray.core.records import Place
from speechft_ray.core.specs import CorpusSpec
from speechft_ray.speech.checkpoints.base import FORMATS
from speechft_ray.speech.checkpoints.safetensors_dir import write_encoder
from speechft_ray.stages.sources import open_corpus, plan_corpus, start_encoder
from tests.speech.toy_models import toy_encoder


def write_corpus(folder: Path, speakers: str) -> None:
    folder.mkdir(exist_ok=True)
    lines = ["path\tsplit\tspeaker"]
    for index, speaker in enumerate(speakers):
        lines.append(f"{index}.wav\t{('train', 'dev', 'test')[index % 3]}\t{speaker}")
        if not (folder / f"{index}.wav").exists():
            soundfile.write(folder / f"{index}.wav", np.full(4000, 0.1 + index / 100), 16_000)
    (folder / "manifest.tsv").write_text("\n".join(lines))


def test_an_encoder_file_that_was_written_again_is_read_again(tmp_path: Path) -> None:
    """A notebook that trains, evaluates, trains and evaluates got the first scores twice."""
    file = tmp_path / "mine.safetensors"
    write_encoder(file, toy_encoder("hubert", seed=0), {})
    first = start_encoder(str(file))
    assert start_encoder(str(file)) is first
    write_encoder(file, toy_encoder("hubert", seed=1), {})
    assert start_encoder(str(file)).fingerprint != first.fingerprint


def test_a_folder_whose_files_were_written_again_is_read_again(tmp_path: Path) -> None:
    prints = []
    for seed in (0, 1):
        shutil.rmtree(tmp_path / "mine", ignore_errors=True)
        FORMATS.get("hf").write(tmp_path / "mine", toy_encoder("hubert", seed=seed), {})
        prints.append(start_encoder(str(tmp_path / "mine")).fingerprint)
    assert prints[0] != prints[1]


def test_a_corpus_that_changed_is_indexed_again_by_the_next_plan(tmp_path: Path) -> None:
    notes: list[str] = []
    place = Place(
        storage=str(tmp_path / "runs"), encoder="fbank", manifest=str(tmp_path / "speech")
    )
    write_corpus(tmp_path / "speech", "abc")
    spec = CorpusSpec(name="manifest")
    first = plan_corpus(spec, place, None, notes.append)
    assert plan_corpus(spec, place, None, notes.append).fingerprint == first.fingerprint
    assert notes == []
    write_corpus(tmp_path / "speech", "abcd")
    assert len(open_corpus(spec, place).utterances) == 3  # a job takes what was planned
    second = plan_corpus(spec, place, None, notes.append)
    assert len(second.utterances) == 4 and second.fingerprint != first.fingerprint
    assert len(notes) == 1 and "indexed again" in notes[0]
    assert len(open_corpus(spec, place, identity=second.fingerprint).utterances) == 4
