"""Completion in a shell: verbs, options and names of search spaces."""

from __future__ import annotations

import pytest

from speechft_ray.cli import main


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("speechft comp", {"compare"}),
        ("speechft run --smo", {"--smoke"}),
        ("speechft plan --space search_", {"search_alpha_lambda", "search_strategy"}),
    ],
)
def test_words_are_completed(
    words: str,
    expected: set[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("_SPEECHFT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert main([]) == 0
    assert expected <= set(capsys.readouterr().out.split())
