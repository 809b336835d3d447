"""Slot filling: F1 of the slot types and character error rate of their values, in percent (s3prl
``ctc/metric.py``).

A decoded text carries its slots as tags, for example ``PLAY B-artist ELTON JOHN E-artist NOW``: the
types are the names in the tags, a value is the text between them. Tags inside a value are dropped
from references, too, where s3prl does so for hypotheses alone (docs/superb.md).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from speechft_ray.core.errors import UserError
from speechft_ray.speech.text import edit_distance
from speechft_ray.superb.measures.error_rate import token_errors

_SLOT = re.compile(r"B-(\S+) (.+?) E-\1")
_OPENING, _CLOSING = re.compile(r"B-\S+ "), re.compile(r" E-\S+")
_WORST_FRACTION = 100
"""A hypothesis whose value has this many times the edits of a missing one counts as missing (s3prl
``ctc/metric.py``)."""


def parse_slots(text: str) -> dict[str, list[str]]:
    """Returns the values of each slot type, both in the order of the text.

    A slot reaches from its opening tag to the nearest closing tag whose name begins with its own
    (so does s3prl's pattern; the SNIPS names ``playlist`` and ``playlist_owner`` are such a pair)
    and must not be empty. A tag without its partner is no slot, and tags inside a value are dropped
    from it.
    """
    slots: dict[str, list[str]] = {}
    for kind, value in _SLOT.findall(re.sub(" +", " ", text)):
        # In this order: tags of garbled output overlap.
        text_only = _CLOSING.sub("", _OPENING.sub("", value))
        slots.setdefault(kind, []).append(text_only)
    return slots


def slot_type_f1(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Returns the F1 over the set of slot types of an utterance, averaged over utterances.

    Two utterances without slots agree (1), with slots on one side only they do not (0).

    Raises ``ValueError`` for lists of different length and ``UserError`` when there is no
    utterance.
    """
    if not references:
        raise UserError(
            "a slot type F1 needs at least one utterance: check the label column of the test split."
        )
    agreement = slot_type_agreement(hypotheses, references)
    return 100.0 * sum(value for value, _ in agreement) / len(references)


def slot_type_agreement(
    hypotheses: Sequence[str], references: Sequence[str]
) -> list[tuple[float, int]]:
    """Returns the F1, from 0 to 1, of each utterance, and 1."""
    pairs = zip(hypotheses, references, strict=True)
    return [(_type_f1(set(parse_slots(one)), set(parse_slots(other))), 1) for one, other in pairs]


def slot_value_cer(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Returns the character error rate over the values of all reference slots.

    Each is compared with the nearest value of the same type in its hypothesis, or with nothing when
    the type is absent there. Slots that only the hypothesis has cost nothing.

    Raises ``ValueError`` for lists of different length and ``UserError`` when no reference has a
    slot.
    """
    pairs = slot_value_errors(hypotheses, references)
    wrong, total = sum(wrong for wrong, _ in pairs), sum(total for _, total in pairs)
    if not total:
        raise UserError(
            "a slot value CER needs at least one slot in the references: check the label column of "
            "the test split."
        )
    return 100.0 * wrong / total


def slot_value_errors(
    hypotheses: Sequence[str], references: Sequence[str]
) -> list[tuple[int, int]]:
    """Returns the edits and the characters of all reference slots of each utterance."""
    counts = []
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        candidates = parse_slots(hypothesis)
        pairs = [
            (value, candidates.get(kind, []))
            for kind, values in parse_slots(reference).items()
            for value in values
        ]
        errors = token_errors(
            [_nearest(value, near) for value, near in pairs], [value for value, _ in pairs]
        )
        counts.append((sum(wrong for wrong, _ in errors), sum(total for _, total in errors)))
    return counts


def _type_f1(hypothesis: set[str], reference: set[str]) -> float:
    if not hypothesis and not reference:
        return 1.0
    return 2 * len(hypothesis & reference) / (len(hypothesis) + len(reference))


def _nearest(value: str, candidates: Sequence[str]) -> str:
    """Returns the first candidate with the fewest edits, or the empty text when all are much worse
    than a missing value."""
    near = min(candidates, key=lambda candidate: edit_distance(candidate, value), default="")
    return near if edit_distance(near, value) < _WORST_FRACTION * len(value) else ""
