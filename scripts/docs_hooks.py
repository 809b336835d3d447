"""Adds the pages to the documentation site that are made from other files: README, CONTRIBUTING and
CHANGELOG, the fields of the specs, and the options of the command line."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from scripts.docs_pages import make_cli_page, make_fields_page  # noqa: E402

COPIES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
_LINK = re.compile(r"\[([^\]]*)\]\((?!https?://|#|mailto:)([^)\s]+)\)")


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Adds the pages (an event of mkdocs)."""
    pages = {
        home: rewrite_links((ROOT / name).read_text(encoding="utf-8"), "docs/")
        for name, home in COPIES.items()
    }
    pages["reference_cli.md"] = make_cli_page()
    pages["reference_fields.md"] = make_fields_page()
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lets pages of docs/ link to the files above it (an event of mkdocs)."""
    return rewrite_links(markdown)


def rewrite_links(text: str, folder: str = "") -> str:
    """Returns a page of the repository with links that hold in the site; what the site does not
    have is named without a link.

    ``folder``: where the pages of docs/ are from the folder of this page.
    """
    return _LINK.sub(lambda link: _rewrite(link[1], link[2], folder), text)


def _rewrite(words: str, target: str, folder: str) -> str:
    path, mark, anchor = target.partition("#")
    name = path.removeprefix("../")
    if name in COPIES:
        return f"[{words}]({COPIES[name]}{mark}{anchor})"
    if not path.startswith(folder) or path.startswith("../"):
        return words
    return f"[{words}]({path.removeprefix(folder)}{mark}{anchor})"
