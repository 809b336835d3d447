"""Paths and sizes that nothing can be made of: one sentence and exit code 2, never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechft_ray.cli import main

LONG = "x" * 300
NOBODY = "~nobody-of-that-name/x"


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "--encoder", LONG],
        ["plan", "--encoder", NOBODY],
        ["plan", "--storage", NOBODY],
        ["plan", "--cache", NOBODY],
        ["plan", "--cache-gb", "inf"],
        ["plan", "--cache-gb", "-1"],
        ["plan", "--set", "search.seed=9223372036854775807"],
        ["plan", "--set", f"evaluate[{'9' * 5000}].updates=1"],
        ["inspect", LONG],
        ["ls", "--storage", NOBODY],
        ["evaluate", "--encoder", "fbank", "--task", "pr", "--corpus", LONG],
        ["list", "--cluster", "http://[::1"],
        ["list", "--cluster", f"http://{'a' * 64}.b:80"],
    ],
)
def test_one_sentence_and_code_2(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(("speechft: ", "Usage: "))


def test_a_report_folder_that_is_a_file_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    assert main(["run", "--in-process", "--storage", "runs", "--report", "file"]) == 2
    error = capsys.readouterr().err
    assert "the report folder `file` cannot be written" in error and "--report" in error
    assert not list((tmp_path / "runs").glob("corpus/*"))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_password_of_a_cluster_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--cluster", "http://u:secret@127.0.0.1:1"]) == 2
    assert "secret" not in capsys.readouterr().err
