"""Reads a search space file, and names the line of every mistake in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from speechft_ray.core.errors import SpecError, SweepError, UserError
from speechft_ray.core.expansion import expand
from speechft_ray.core.space import old_field_names, parse_space
from speechft_ray.core.specs import SweepSpec
from speechft_ray.sweep.space_changes import Change, apply_changes
from speechft_ray.sweep.yaml_text import YamlError, YamlSyntaxError, YamlText, read_yaml

LARGEST_FILE = 4 * 2**20
"""Bytes; the longest space that ships has 5,000."""

_ENTRY = re.compile(r"(finetune|merge|evaluate)\[(\d+)\]")


@dataclass(frozen=True)
class SpaceFile:
    """A search space with the text that it was read from."""

    path: Path
    text: YamlText
    spec: SweepSpec
    content: str = ""
    """The text as it was given."""

    @contextmanager
    def name_lines(self) -> Iterator[None]:
        """Gives the mistakes that are found in the expanded sweep the entries and lines of the
        file."""
        try:
            yield
        except SweepError as error:
            mistakes = [(self._path_in_file(path), text) for path, text in error.mistakes]
            raise _locate(self.path, self.text, mistakes) from None

    def _path_in_file(self, path: str) -> str:
        entry = _ENTRY.match(path)
        if entry is None:
            return path
        section, number = entry[1], int(entry[2])
        for index, item in enumerate(self.text.data[section]):
            number -= sum(1 for _ in expand(item))
            if number < 0:
                return f"{section}[{index}]{path[entry.end() :]}"
        return path


def read_space(path: Path, note: Callable[[str], None] | None = None) -> SweepSpec:
    """Reads a search space file; see ``open_space``."""
    return open_space(path, note).spec


def open_space(
    path: Path,
    note: Callable[[str], None] | None = None,
    changes: Sequence[Change] = (),
) -> SpaceFile:
    """Reads a search space file. ``note`` gets a sentence for each field with an old name.

    ``changes`` are made before it is checked. Raises ``UserError`` (unreadable, or a change that
    leads nowhere) or ``SpecError`` (every mistake with its line and path).
    """
    content = _read(path)
    try:
        text = read_yaml(content)
    except YamlError as error:
        what = "YAML" if isinstance(error, YamlSyntaxError) else "YAML of plain values"
        raise UserError(
            f"the search space `{path}:{error.line}:{error.column}` is not {what}: {error.sentence}"
        ) from None
    if changes and isinstance(text.data, dict):
        text.changed.extend(apply_changes(text.data, changes))
    try:
        spec = parse_space(text.data, where=str(path))
    except SpecError as error:
        raise _locate(path, text, error.mistakes) from None
    if note is not None:
        for name, sentence in old_field_names(text.data):
            line, column = text.place_of(name) or (1, 1)
            note(f"{path}:{line}:{column}: {sentence}")
    return SpaceFile(path, text, spec, content)


def _read(path: Path) -> str:
    """Returns the text of a file, which is opened once: it may be a pipe."""
    advice = "give a YAML file, for example search_spaces/alpha.yaml."
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise UserError(f"there is no search space `{path}`: {advice}") from None
    except IsADirectoryError:
        raise UserError(f"the search space `{path}` is a folder: {advice}") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"the search space `{path}` cannot be read ({reason}): {advice}") from None
    if len(content) > LARGEST_FILE:
        raise UserError(
            f"`{path}` has more than {LARGEST_FILE // 2**20} MB and is no search space: {advice}"
        )
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(
            f"the search space `{path}` cannot be read (it is UTF-16): save it as UTF-8."
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"the search space `{path}:{line}` cannot be read (byte 0x{content[error.start]:02x} "
            "is not UTF-8): give a UTF-8 YAML file."
        ) from None


def _locate(path: Path, text: YamlText, mistakes: Sequence[tuple[str, str]]) -> SpecError:
    """Returns the mistakes in the order of the file, each with its line and column.

    An anchor brings one mistake to every place that uses it; it is told once.
    """
    rows: dict[tuple[tuple[int, int], str], str] = {}
    for name, sentence in mistakes:
        rows.setdefault((text.place_of(name) or (1, 1), sentence), name)
    ordered = sorted(rows.items(), key=lambda row: row[0][0])
    return SpecError(
        str(path),
        [(name, sentence) for (_, sentence), name in ordered],
        [
            "--set" if text.is_changed(name) else f"{path}:{line}:{column}"
            for ((line, column), _), name in ordered
        ],
    )
