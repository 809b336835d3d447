"""Task ``sf``: the words of a request with its slots marked (SUPERB on Audio SNIPS; s3prl
``ctc/snips.yaml``, ``ctc/text.py``).

One token sequence has both: characters, and a tag ``B-<slot>`` before and ``E-<slot>`` after each
run of words of one slot. Slots stand in the column ``slots``, one name or ``O`` per word, without
B- and I- marks, so neighbours of one slot merge. As in s3prl, words made of punctuation are skipped
and ``&`` is spelled AND. slot_type_f1 selects the best validation.

Quirk of ``protocol: superb``: with a skipped word, s3prl also skips what it would write there: the
opening tag of a slot that begins with the word, the closing tag of one that ends with it, and
``<eos>`` at the end of a sentence, which then ends with a blank. ``protocol: clean`` always writes
them; without punctuation the two are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from speechft_ray.core.errors import UserError
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.superb.measures.slots import (
    slot_type_agreement,
    slot_type_f1,
    slot_value_cer,
    slot_value_errors,
)
from speechft_ray.superb.tasks._ctc import (
    BATCH_SIZE,
    CLIP_NORM,
    EOS,
    Counts,
    RecurrentCtcOptions,
    make_ctc_builder,
)
from speechft_ray.superb.tasks._pooled import format_first
from speechft_ray.superb.tasks.base import (
    TASKS,
    Protocol,
    Published,
    Task,
    TaskData,
    get_label,
    select_splits,
)

NO_SLOT = "O"
SKIPPED = "?!.,;-"
"""A word that is a part of this text is skipped (s3prl ``ctc/text.py``)."""


class SfOptions(RecurrentCtcOptions):
    """Options of slot filling; the defaults are s3prl's ``ctc/snips.yaml``."""

    protocol: Protocol = "superb"
    """``superb``: tags and ends at skipped punctuation are missing, as in s3prl. ``clean``: all are
    written."""


def read_slots(utterance: Utterance, columns: Sequence[str]) -> list[tuple[str, str]]:
    """Returns ``(word, slot)`` pairs. Raises ``UserError`` unless there is one slot per word."""
    words, slots = (get_label(utterance, column).split() for column in columns)
    if len(words) != len(slots):
        raise UserError(
            f"the utterance `{utterance.key}` has {len(words)} words in `{columns[0]}` but "
            f"{len(slots)} slots in `{columns[1]}`: write one slot name or `{NO_SLOT}` per word."
        )
    return list(zip(words, slots, strict=True))


def spell(utterance: Utterance, columns: Sequence[str]) -> list[str]:
    """Returns the characters and slot tags of an utterance and the end, as s3prl writes them
    (``ctc/text.py``)."""
    words = read_slots(utterance, columns)
    slots = [NO_SLOT, *(slot for _, slot in words), NO_SLOT]
    tokens: list[str] = []
    for position, (word, slot) in enumerate(words, start=1):
        if word not in SKIPPED:
            opening = [f"B-{slot}"] if slot not in (NO_SLOT, slots[position - 1]) else []
            closing = [f"E-{slot}"] if slot not in (NO_SLOT, slots[position + 1]) else []
            tokens += [
                *opening,
                *_spell_word(word),
                *closing,
                EOS if position == len(words) else " ",
            ]
    return tokens


def spell_cleanly(utterance: Utterance, columns: Sequence[str]) -> list[str]:
    """Returns the characters and slot tags of an utterance and the end, with every tag."""
    tokens: list[str] = []
    for slot, pairs in groupby(read_slots(utterance, columns), key=lambda pair: pair[1]):
        words = [_spell_word(word) for word, _ in pairs if word not in SKIPPED]
        if words:
            characters = list(" ".join(words))
            if slot != NO_SLOT:
                characters = [f"B-{slot}", *characters, f"E-{slot}"]
            tokens += [" ", *characters] if tokens else characters
    return [*tokens, EOS]


def join_tokens(tokens: Sequence[str]) -> str:
    """Joins tokens to the text that the measures parse: a blank separates tags from the value."""
    return "".join(
        f"{token} " if token[:2] == "B-" else f" {token}" if token[:2] == "E-" else token
        for token in tokens
    )


def build(corpus: Corpus, columns: Sequence[str], options: SfOptions) -> TaskData:
    """Builds the task. Raises ``UserError`` if dev or test have slots that train does not have."""
    slots_of = {
        split: {slot for utterance in utterances for _, slot in read_slots(utterance, columns)}
        for split, utterances in select_splits(corpus).items()
    }
    for split, slots in slots_of.items():
        if unknown := sorted(slots - slots_of["train"] - {NO_SLOT}):
            raise UserError(
                f"the column `{columns[1]}` has {len(unknown)} slots in {split} that train does "
                f"not have ({format_first(unknown)}): correct them, or add training utterances "
                "that have them."
            )
    return _BUILDERS[options.protocol](corpus, columns, options)


def _spell_word(word: str) -> str:
    return "AND" if word == "&" else word


_MEASURES: dict[str, Counts] = {
    "sf.slot_type_f1": (slot_type_f1, slot_type_agreement),
    "sf.slot_value_cer": (slot_value_cer, slot_value_errors),
}
_BUILDERS = {
    "superb": make_ctc_builder(spell, _MEASURES, join_tokens),
    "clean": make_ctc_builder(spell_cleanly, _MEASURES, join_tokens),
}

TASKS.register(
    "sf",
    Task(
        name="sf",
        columns=("text", "slots"),
        metrics=("sf.slot_type_f1", "sf.slot_value_cer"),
        pooled=False,
        sampling="windows",
        learning_rate=1e-4,
        batch_size=BATCH_SIZE,
        clip_norm=CLIP_NORM,
        options=SfOptions,
        build=build,
        published=Published("snips", 200_000, 2_000),
    ),
)
