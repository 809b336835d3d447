"""Reads YAML as plain values with the line of each. Nothing in it is evaluated as code.

Values are those of YAML 1.1, as most Python tools read them (``yes`` is true, ``0755`` is octal),
with two changes: ``1e-4`` is a number, as in YAML 1.2, and ``y`` and ``n`` are text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from speechft_ray.core.errors import printable
from speechft_ray.core.validation import Steps, path_text

if TYPE_CHECKING:
    from ruamel.yaml import YAML
    from ruamel.yaml.nodes import Node, ScalarNode

DEEPEST_NESTING = 50
"""Lists and mappings inside each other; a search space has about ten."""
MOST_VALUES = 100_000
"""Values of one text with every alias written out, which keeps memory bounded."""
LARGEST_WHOLE_NUMBER = 2**63 - 1
"""Whole numbers beyond 64 bits are refused: no number here needs them, and arrays cannot hold
them."""

_TOO_DEEP = f"lists and mappings are nested more than {DEEPEST_NESTING} deep"
_CORE = "tag:yaml.org,2002:"
_SCALARS = frozenset({"null", "bool", "int", "float", "timestamp"})


_PLAIN_WORDS = {
    "expected '<document start>'": "this line is indented unlike the lines before it, or has no "
    "key: a file is one mapping",
    "expected <block end>": "this line is indented unlike the lines that it belongs to",
    "mapping values are not allowed": "no `:` is allowed here: check the indentation, and put text "
    "with `: ` in quotes",
    "could not find expected ':'": "a key has no `:` behind it",
    "cannot start any token": "a value cannot begin like this: indent with spaces, not with tabs, "
    "and put text with special characters in quotes",
    "maximum depth": f"{_TOO_DEEP}: write it flat",
}
"""What the library's sentences mean, by a part of them."""


class YamlError(ValueError):
    """What is wrong with a YAML text, in one sentence; line and column count from 1."""

    def __init__(self, line: int, column: int, sentence: str) -> None:
        super().__init__(f"line {line}, column {column}: {sentence}")
        self.line, self.column, self.sentence = line, column, sentence


class YamlSyntaxError(YamlError):
    """A text that is not YAML; other errors concern YAML that has more than plain values."""


@dataclass(frozen=True)
class YamlText:
    """The values of a YAML text."""

    data: Any
    """Plain values; an alias gives a copy."""
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Line and column by path (``merge[0].alpha``): of the key for what stands in a mapping. What
    an alias or a merge key brings has the place where it is written."""

    changed: list[str] = field(default_factory=list)
    """Paths whose values were changed after the text was read."""

    def is_changed(self, path: str) -> bool:
        """Whether the value at a path, or one that it is in, was changed."""
        return any(
            path == changed or path.startswith((f"{changed}.", f"{changed}["))
            for changed in self.changed
        )

    def place_of(self, path: str) -> tuple[int, int] | None:
        """Returns the line and column of a path, or of what is nearest above it; ``None`` for an
        empty text."""
        while path and path not in self.places:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.places.get(path)


def load_yaml(text: str) -> Any:
    """Returns the plain values of a YAML text. Raises ``YamlError``."""
    return read_yaml(text).data


def read_yaml(text: str) -> YamlText:
    """Returns the values of a YAML text and their places.

    Raises ``YamlError`` for a text that is not one YAML document, tags other than those of plain
    values, a key that stands twice, keys that are lists or mappings, and more or deeper values than
    ``MOST_VALUES`` and ``DEEPEST_NESTING``.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    parser = YAML(typ="safe", pure=True)
    parser.version = (1, 1)
    parser.max_depth = DEEPEST_NESTING
    parser.composer.warn_double_anchors = False
    try:
        root = parser.compose(text)
    except YAMLError as error:
        raise _explain(error, text) from None
    if root is None:
        return YamlText(None)
    builder = _Builder(parser)
    builder.places[""] = _place(root)
    return YamlText(builder.build(root, ()), builder.places)


class _Builder:
    """Builds plain values from nodes. Aliases are written out, with a limit on the result."""

    def __init__(self, parser: YAML) -> None:
        self.constructor: Any = parser.constructor
        self.places: dict[str, tuple[int, int]] = {}
        self.values = 0

    def build(self, node: Node, path: Steps) -> Any:
        from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

        self.count(node, len(path))
        tag = str(node.tag)
        if isinstance(node, ScalarNode):
            return self.scalar(node, tag)
        if isinstance(node, SequenceNode) and tag == f"{_CORE}seq":
            items = []
            for index, item in enumerate(node.value):
                self.places.setdefault(path_text((*path, index)), _place(item))
                items.append(self.build(item, (*path, index)))
            return items
        if isinstance(node, MappingNode) and tag == f"{_CORE}map":
            result = {}
            for key, (key_node, value) in self.pairs(node, len(path)).items():
                self.places.setdefault(path_text((*path, key)), _place(key_node))
                result[key] = self.build(value, (*path, key))
            return result
        raise _refuse_tag(node, tag)

    def pairs(self, node: Node, depth: int) -> dict[Any, tuple[Node, Node]]:
        """Returns the nodes of keys and values of a mapping by key.

        A merge key adds those that are not there; of several merged mappings the first wins.
        """
        own: dict[Any, tuple[Node, Node]] = {}
        merges: list[Node] = []
        for key_node, value in node.value:
            key = "<<" if str(key_node.tag) == f"{_CORE}merge" else self.key(key_node)
            if key in own:
                first, _ = _place(own[key][0])
                name = _short(str(key_node.value))
                raise _refuse(
                    key_node,
                    f"the key `{name}` stands twice in one mapping, first in line {first}: keep "
                    "one of them",
                )
            own[key] = (key_node, value)
            if key == "<<" and str(key_node.tag) == f"{_CORE}merge":
                merges = list(_iter_merged(value))
        if not merges:
            return own
        del own["<<"]
        inherited: dict[Any, tuple[Node, Node]] = {}
        for item in merges:
            self.count(item, depth + 1)
            for key, pair in self.pairs(item, depth + 1).items():
                self.count(item, depth)
                inherited.setdefault(key, pair)
        return inherited | own

    def key(self, node: Node) -> Any:
        from ruamel.yaml.nodes import ScalarNode

        if isinstance(node, ScalarNode):
            return self.scalar(node, str(node.tag))
        raise _refuse(
            node, "a key is a list or a mapping, but must be text: write it in quotes, or as `KEY:`"
        )

    def scalar(self, node: ScalarNode, tag: str) -> Any:
        text = node.value
        kind = tag.removeprefix(_CORE)
        if kind in ("str", "merge", "value") or (kind == "bool" and text in ("y", "Y", "n", "N")):
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise _refuse(node, "half of a surrogate pair is no text: write the character")
            return text
        if kind not in _SCALARS or not tag.startswith(_CORE):
            raise _refuse_tag(node, tag)
        try:
            if kind == "float" and "." not in text and ":" not in text:
                return float(text.replace("_", ""))  # 1e-4, of which the library warns
            value = self.constructor.construct_object(node)
        except (ValueError, KeyError, IndexError):
            name = {"timestamp": "date", "int": "whole number", "float": "number"}.get(kind, kind)
            raise _refuse(
                node, f"`{_short(text)}` is no {name}: write another value, or text in quotes"
            ) from None
        if isinstance(value, int) and abs(value) > LARGEST_WHOLE_NUMBER:
            raise _refuse(
                node, f"the whole number `{_short(text)}` is too large: write at most 2^63 - 1"
            )
        return value

    def count(self, node: Node, depth: int) -> None:
        self.values += 1
        if depth > DEEPEST_NESTING:
            raise _refuse(
                node,
                f"{_TOO_DEEP}, or an alias is part of itself: write it flat",
            )
        if self.values > MOST_VALUES:
            raise _refuse(
                node,
                f"more than {MOST_VALUES} values with all aliases written out: make it smaller",
            )


def _iter_merged(node: Node) -> Iterator[Node]:
    from ruamel.yaml.nodes import MappingNode, SequenceNode

    for item in node.value if isinstance(node, SequenceNode) else [node]:
        if not isinstance(item, MappingNode):
            raise _refuse(item, "`<<` must be a mapping or a list of mappings, given by aliases")
        yield item


def _place(node: Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _refuse(node: Node, sentence: str) -> YamlError:
    return YamlError(*_place(node), f"{sentence}.")


def _refuse_tag(node: Node, tag: str) -> YamlError:
    name = tag.replace(_CORE, "!!", 1)
    return _refuse(
        node,
        f"the tag `{_short(name)}` is not allowed, since nothing here is evaluated: write text, "
        "numbers, lists and mappings without tags",
    )


def _explain(error: Any, text: str) -> YamlSyntaxError:
    """Words an error of the library: what was expected, and what it stands in."""
    problem = str(getattr(error, "problem", None) or "")
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:  # a character that YAML does not allow, at a position of the text
        position = int(getattr(error, "position", 0))
        before = text[:position]
        letter = getattr(error, "character", 0)
        code = letter if isinstance(letter, int) else ord(letter[:1] or "\0")
        return YamlSyntaxError(
            before.count("\n") + 1,
            position - (before.rfind("\n") + 1) + 1,
            f"the character U+{code:04X} is not allowed: remove it, or write it as an escape in "
            "double quotes.",
        )
    problem = next((words for part, words in _PLAIN_WORDS.items() if part in problem), problem)
    context, begin = getattr(error, "context", None), getattr(error, "context_mark", None)
    where = ""
    if context and begin is not None:
        where = f" ({_one_line(context)} that begins in line {begin.line + 1})"
    return YamlSyntaxError(mark.line + 1, mark.column + 1, f"{_one_line(problem)}{where}.")


def _one_line(text: str) -> str:
    return printable(" ".join(text.split())).rstrip(".")


def _short(text: str) -> str:
    line = printable(text)
    return line if len(line) <= 60 else f"{line[:57]}..."
