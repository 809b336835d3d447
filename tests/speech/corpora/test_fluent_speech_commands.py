"""Fluent Speech Commands: three tables, quoted cells and all."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechft_ray.core.errors import SpecError, UserError
from tests.speech.corpora.helpers import open_at, sizes
from tests.speech.layouts import fluent_speech_commands


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return fluent_speech_commands.lay_out(tmp_path / "root")


def test_rows_become_utterances(root: Path) -> None:
    corpus = open_at("fluent_speech_commands", root)
    assert sizes(corpus) == {"train": 8, "dev": 4, "test": 4}
    assert corpus.split("train")[1].labels == {
        "action": "increase",
        "object": "heat",
        "location": "none",
        "text": "Turn up the heat, please",
        "speaker": "2BqVo8kVB2Skwgyb",
    }
    assert corpus.split("dev")[0].key.startswith("wavs/speakers/2ojo7YRL7Gck83Z3/")


def test_blanks_around_cells_are_no_part_of_labels(root: Path) -> None:
    before = open_at("fluent_speech_commands", root)
    table = root / "data/valid_data.csv"
    header, *rows = table.read_text().splitlines()
    table.write_text("\r\n".join([header, *(f"{row} " for row in rows)]) + "\r\n")
    assert open_at("fluent_speech_commands", root).fingerprint == before.fingerprint


def test_tables_that_are_not_the_archive_s_are_reported(root: Path) -> None:
    table = root / "data/valid_data.csv"
    text = table.read_text()
    table.write_text(text.replace("location", "place"))
    with pytest.raises(UserError, match=r"valid_data.csv lacks the columns location"):
        open_at("fluent_speech_commands", root)
    table.write_text(text.replace("bring", ""))
    with pytest.raises(UserError, match="line 4 must be a row with all cells filled"):
        open_at("fluent_speech_commands", root)
    table.write_text(text.replace("wavs/speakers", "../wavs", 1))
    with pytest.raises(SpecError, match="stay inside it"):
        open_at("fluent_speech_commands", root)
    table.write_text(text + text.splitlines()[1] + "\n")
    with pytest.raises(UserError, match="lists 1 recordings twice"):
        open_at("fluent_speech_commands", root)
    table.unlink()
    with pytest.raises(UserError, match="its split dev"):
        open_at("fluent_speech_commands", root)
