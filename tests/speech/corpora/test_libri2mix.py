"""Libri2Mix: turns in samples, and absolute paths of another machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from speechft_ray.core.errors import UserError
from tests.speech.corpora.helpers import open_at, sizes
from tests.speech.layouts import libri2mix


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return libri2mix.lay_out(tmp_path_factory.mktemp("libri2mix") / "root")


@pytest.fixture
def root(tree: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tree, tmp_path / "root"))


def test_turns_are_reported_in_samples(tree: Path) -> None:
    corpus = open_at("libri2mix", tree)
    assert sizes(corpus) == {"train": 4, "dev": 2, "test": 2}
    turns = {
        line.split()[0]: line.split()[1:]
        for line in (tree / "data/dev/segments").read_text().splitlines()
    }
    mixture = corpus.split("dev")[0]
    assert mixture.key == "dev/100-1-0001_20-2-0002" and mixture.labels["speaker"] == "100 20"
    one, other = (part.split(":") for part in mixture.labels["segments"].split())
    assert one[:2] == ["100", "0"] and other[:2] == ["20", "8000"]
    for speaker, start, end in (one, other):
        times = turns[f"{speaker}_{mixture.key[4:]}_0"][1:]
        assert [int(start) / 16_000, int(end) / 16_000] == [float(time) for time in times]
        assert np.abs(corpus.read(mixture)[int(start) : int(end)]).max() > 0.1


def test_paths_may_be_absolute_here_elsewhere_or_relative(root: Path) -> None:
    first = open_at("libri2mix", root).fingerprint
    file = root / "data/train/wav.scp"
    text = file.read_text()
    for place in (f"{root}/", ""):
        file.write_text(text.replace(f"{libri2mix.ELSEWHERE}/", place))
        assert open_at("libri2mix", root).fingerprint == first
    file.write_text(text.replace("train-100", "nowhere"))
    with pytest.raises(UserError, match="no end of that path is below"):
        open_at("libri2mix", root)
    file.write_text("x sox a.wav -t wav - |\n")
    with pytest.raises(UserError, match="a command; only paths"):
        open_at("libri2mix", root)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("segments", "a no_mixture 0.0 1.0\n", "which wav.scp lacks"),
        ("segments", "a {mixture} 0.0 1.0\n", "which utt2spk lacks"),
        ("segments", "{turn} {mixture} 0.0\n", "TURN MIXTURE START END"),
        ("segments", "{turn} {mixture} 0.0 inf\n", "TURN MIXTURE START END"),
        ("segments", "{turn} {mixture} 2.0 1.0\n", "a turn that ends after it starts"),
        ("segments", "{turn} {mixture} 0.0 1.0\n", r"1 speakers \(100\), but 2 are needed"),
        ("utt2spk", "lonely\n", "line 1 must be a name of its own and a value"),
    ],
)
def test_folders_that_do_not_fit_together_are_reported(
    root: Path, name: str, text: str, words: str
) -> None:
    turn, mixture = (root / "data/dev/segments").read_text().split()[:2]
    (root / "data/dev" / name).write_text(text.format(turn=turn, mixture=mixture))
    with pytest.raises(UserError, match=words):
        open_at("libri2mix", root)


def test_a_missing_file_or_split_is_reported(root: Path) -> None:
    (root / "data/test/utt2spk").unlink()
    with pytest.raises(UserError, match=r"lacks .*data/test/utt2spk"):
        open_at("libri2mix", root)
    shutil.rmtree(root / "data/test")
    with pytest.raises(UserError, match="its split test"):
        open_at("libri2mix", root)
