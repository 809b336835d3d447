"""Checks on identifiers: functions are imperative verbs, names are those of the field.

Prose is not checked here. The words are those that the code used before they were replaced by the
words of PyTorch, s3prl, Ray Tune and Optuna.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FOLDERS = ("speechft_ray", "tests", "benchmarks", "launch")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

MOST_COLUMNS = 100
MOST_PARTICIPLES = 0.02
"""Share of function names that may begin with a past participle."""
VAGUE_VALUES = {"found", "known", "wanted", "given", "told", "mine"}
"""Names that do not say what a value is."""
REPLACED_NAMES = {
    *("Teacher", "Lesson", "Material", "taught", "Listener", "Sound", "heard", "keep_fronts"),
    *("Learner", "_Learner", "learnable", "pulse", "beat", "_Known", "quiet", "_halve"),
    *("Recordings", "Taught", "Draw", "_asked", "with_names", "Problem", "pose", "posed", "Stack"),
    *("Kept", "Filed", "Reencoded", "Heard", "Keeping", "Sharing", "_learned", "_searched"),
    *("_unseen", "better_of", "Piece", "in_pieces", "Flow", "Watch", "lacking", "Judge"),
    *("Standard", "hopeless", "Verdict", "lag", "grace", "keep_one_of", "corners", "_Noted"),
    *("_told_apart", "_tell_news", "champion", "_Board", "_Feed", "_Ends", "NeverSaved"),
    *("gathered", "_opened_aloud", "_TOLD", "say_result", "bring", "_told", "check_free"),
    *("One", "Source", "survey", "twins", "moved", "census", "people", "absent", "contents"),
    *("Treatment", "Extra", "_pauses", "in_rooms", "Take", "Manner"),
}
"""Names of functions, classes and fields that were replaced."""
NO_PARTICIPLES = {
    "need",
    "seed",
    "feed",
    "speed",
    "embed",
    "exceed",
    "proceed",
    "succeed",
    "bed",
    "shed",
    "red",
}
IRREGULAR = {
    *("begun", "bent", "bought", "broken", "brought", "built", "caught", "chosen", "done"),
    *("drawn", "driven", "eaten", "fallen", "felt", "fed", "fought", "found", "forgotten"),
    *("given", "gone", "grown", "heard", "held", "kept", "known", "laid", "learnt", "left"),
    *("lent", "lost", "made", "meant", "met", "paid", "said", "seen", "sent", "shown", "shut"),
    *("slept", "sought", "sold", "spent", "spoken", "stood", "stolen", "stuck", "taken"),
    *("taught", "thought", "thrown", "told", "understood", "won", "woken", "worn", "written"),
}


class Name(NamedTuple):
    """An identifier at the place that defines it."""

    path: Path
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} {self.text}"


def find_names(path: Path) -> Iterator[Name]:
    """Yields every function, class, argument, field and assigned name of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Name(path, node.lineno, "function", node.name)
        elif isinstance(node, ast.ClassDef):
            yield Name(path, node.lineno, "class", node.name)
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    yield Name(path, item.lineno, "field", item.target.id)
        elif isinstance(node, ast.arg):
            yield Name(path, node.lineno, "value", node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield Name(path, node.lineno, "value", node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield Name(path, node.lineno, "value", node.attr)


def is_participle(word: str) -> bool:
    """Whether a word is a past participle, by its ending or by the list of irregular ones."""
    return word in IRREGULAR or (word.endswith("ed") and word not in NO_PARTICIPLES)


NAMES = [name for path in FILES for name in find_names(path)]


def test_functions_are_named_by_verbs() -> None:
    functions = [name for name in NAMES if name.kind == "function"]
    participles = [name for name in functions if is_participle(name.text.strip("_").split("_")[0])]
    share = len(participles) / len(functions)
    assert share < MOST_PARTICIPLES, f"{share:.1%}: " + "\n".join(map(str, participles))


def test_values_are_named_by_what_they_are() -> None:
    vague = [str(name) for name in NAMES if name.text.strip("_") in VAGUE_VALUES]
    assert not vague, "\n".join(vague)


def test_replaced_names_are_gone() -> None:
    kinds = ("function", "class", "field")
    left = [str(name) for name in NAMES if name.kind in kinds and name.text in REPLACED_NAMES]
    assert not left, "\n".join(left)


def test_lines_are_short() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > MOST_COLUMNS
    ]
    assert not long, "\n".join(long)


def test_participles_are_recognised() -> None:
    assert all(map(is_participle, ("merged", "found", "kept")))
    assert not any(map(is_participle, ("seed", "need", "load", "read", "build")))
