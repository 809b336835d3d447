"""The documentation: the site builds without a warning, every command in it is one that the command
line takes, and its reference pages have every verb, option and field."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.docs_pages import (
    SECTIONS,
    list_commands,
    make_cli_page,
    make_fields_page,
    read_field_docs,
)
from speechft_ray.core.specs import EvalSpec, FinetuneSpec

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = dict(list_commands())
_BLOCK = re.compile(r"^```(?:bash|sh|console)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(speechft [^`]+)`")


def find_commands(text: str) -> list[str]:
    """Returns the command lines of our own tools in the code blocks of a page, without comments."""
    lines = [
        line.strip()
        for block in _BLOCK.findall(text)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    parts = [part.strip() for line in lines for part in line.partition("#")[0].split(";")]
    return [part for part in parts if part.startswith(("speechft ", "python launch/"))]


def parse_command(line: str) -> None:
    """Parses a command line as typer does, without running it."""
    words = shlex.split(line, comments=True)
    if words[0] == "python":
        script = (ROOT / words[1]).read_text(encoding="utf-8")
        verb = "run"
        assert f'"{verb}"' in script
        rest = words[2:]
    else:
        verb = next(
            (name for name in (" ".join(words[1:3]), words[1]) if name in COMMANDS), words[1]
        )
        rest = words[1 + len(verb.split()) :]
    assert verb in COMMANDS, f"no verb `{verb}`"
    context = COMMANDS[verb].make_context(verb, list(rest))
    changes: Any = context.params.get("change")
    if changes:
        from speechft_ray.sweep.space_changes import parse_changes

        parse_changes(changes)


EXAMPLES = [
    pytest.param(line, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, line in enumerate(find_commands(page.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize("line", EXAMPLES)
def test_every_command_is_one_that_the_command_line_takes(line: str) -> None:
    parse_command(line)


def test_a_faulty_command_would_be_seen() -> None:
    assert len(EXAMPLES) > 40
    for line in ("speechft runn", "speechft run --spce alpha", "speechft evaluate --task sid"):
        with pytest.raises(Exception):  # noqa: B017  # of click, which typer brings its own copy of
            parse_command(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_verbs_and_options_in_the_text_exist(page: Path) -> None:
    for quote in _INLINE.findall(" ".join(page.read_text(encoding="utf-8").split())):
        words = quote.split()[1:]
        verb = next((name for name in (" ".join(words[:2]), words[0]) if name in COMMANDS), None)
        if words[0] in ("corpora",) or words[0].startswith("-"):
            continue
        assert verb is not None, f"{page.name}: `{quote}`"
        options = {name for param in COMMANDS[verb].params for name in param.opts}
        for word in words:
            if word.startswith("--") and word != "--help":
                assert word.split("=")[0] in options, f"{page.name}: `{quote}`"


def test_the_reference_has_every_verb_and_option() -> None:
    page = make_cli_page()
    for name, command in COMMANDS.items():
        (section,) = re.findall(rf"^## speechft {name}$(.*?)(?=^## |\Z)", page, re.M | re.S)
        for param in command.params:
            assert f"`{', '.join(param.opts)}`" in section or str(param.name).upper() in section
            assert (param.help or "").replace("|", r"\|") in section


def test_the_reference_has_every_field_with_its_text() -> None:
    page = make_fields_page()
    for place, model in SECTIONS:
        (section,) = re.findall(rf"^## `{re.escape(place)}`$(.*?)(?=^## |\Z)", page, re.M | re.S)
        for name in model.model_fields:
            assert f"| `{name}` |" in section, (place, name)
    assert "`updates` | whole number, ≥ 1 | needed" in page
    assert read_field_docs(FinetuneSpec)["clip_norm"] == "Global gradient norm (official configs)."
    docs = read_field_docs(EvalSpec)
    assert docs["seeds"].startswith("Number of probes")


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the site needs Python 3.11.5")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    # mkdocs-material prints a banner about mkdocs 2, which the variable turns off.
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, env=quiet)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    pages = {path.name for path in tmp_path.glob("*.html")}
    assert {"index.html", "reference_cli.html", "reference_fields.html", "faq.html"} <= pages
    text = (tmp_path / "reference_python.html").read_text(encoding="utf-8")
    assert "one series for each set of other parameters" in text
