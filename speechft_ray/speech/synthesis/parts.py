"""The parts of the synthetic world: who says what, how, with which labels. Plain data from seeded
draws; no audio here.

Utterance i of a split depends on (part, seed, split, i) alone, so a larger corpus of the same seed
begins with the smaller one. Every utterance carries the columns ``speaker``, ``text`` and
``phones`` (the last from its alignment) and those of its part.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from speechft_ray.speech.synthesis import sentences as say
from speechft_ray.speech.synthesis.commands import HOME_COMMANDS, mandarin_sentence, request
from speechft_ray.speech.synthesis.speakers import (
    Manner,
    Speaker,
    Take,
    jittered,
    pools,
    population,
    take,
    varied,
)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One utterance before synthesis."""

    key: str
    split: str
    labels: Mapping[str, str]
    scene: Take


@dataclass(frozen=True, kw_only=True)
class Line:
    """What one utterance says: text, labels beyond speaker and text, manner (``None``: an everyday
    one)."""

    text: str
    labels: Mapping[str, str] = field(default_factory=dict)
    manner: Manner | None = None


CLEAN_SNR_DB, CLEAN_REVERBERATION_SECONDS = 50.0, 0.02
"""A quiet, dead room."""

STEP_SAMPLES = 1600
"""Lengths are multiples of 0.1 s, so that many utterances are equally long and can be encoded
together without padding."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part: default utterance counts, default training speakers, whether all splits share them,
    and the line writer.

    ``write(index, draw)`` returns the line of utterance ``index`` of a split.
    """

    train: int
    dev: int
    test: int
    speakers: int
    shared_speakers: bool = False
    language: str = "en-us"
    step_samples: int = STEP_SAMPLES
    clean: bool = False
    """Whether rooms and noise are left to whoever listens."""
    write: Callable[[int, random.Random], Line]


EMOTIONS = {
    "neutral": Manner(range_factor=0.9, tilt_db_per_octave=-0.5),
    "happy": Manner(
        pitch_shift=20, range_factor=1.9, rate_factor=1.1, gain_db=2, tilt_db_per_octave=1.5
    ),
    "sad": Manner(
        pitch_shift=-12,
        range_factor=0.25,
        rate_factor=0.72,
        gain_db=-5,
        tilt_db_per_octave=-3.5,
        tremor_fraction=0.35,
        breath_fraction=0.5,
    ),
    "angry": Manner(
        pitch_shift=4,
        range_factor=1.3,
        rate_factor=1.25,
        gain_db=5,
        tilt_db_per_octave=3.0,
        tremor_fraction=0.5,
        tremor_hz=38,
    ),
}
"""The four emotions of SUPERB's ER as contrasts of pitch, range, rate, loudness, tilt, tremor and
breath. Prosody alone spreads too little; the fast tremor of anger is a rough voice."""


def _balanced(index: int, classes: int) -> int:
    """Returns a class for utterance ``index``: each class once per block of ``classes``, in a new
    random order in every block.

    Speakers go round robin, so a plain ``index % classes`` would give every speaker the same few
    classes.
    """
    return random.Random(f"block {index // classes}").sample(range(classes), classes)[
        index % classes
    ]


def _pretrain(index: int, draw: random.Random) -> Line:
    return Line(text=say.sentence(draw, clauses=draw.choice((1, 1, 2))))


def _phones(index: int, draw: random.Random) -> Line:
    return Line(text=say.sentence(draw))


def _brief(index: int, draw: random.Random) -> Line:
    return Line(text=say.brief_sentence(draw))


def _short(index: int, draw: random.Random) -> Line:
    return Line(text=say.short_sentence(draw))


def _emotion(index: int, draw: random.Random) -> Line:
    emotion = sorted(EMOTIONS)[_balanced(index, len(EMOTIONS))]
    return Line(
        text=say.short_sentence(draw),
        labels={"emotion": emotion},
        manner=jittered(EMOTIONS[emotion], draw),
    )


def _slots(index: int, draw: random.Random) -> Line:
    asked = request(draw)
    return Line(text=asked.text, labels={"slots": asked.slots, "intent": asked.intent})


def _keyword(index: int, draw: random.Random) -> Line:
    keyword = say.KEYWORDS[_balanced(index, len(say.KEYWORDS))]
    return Line(text=keyword, labels={"keyword": keyword})


def _home(index: int, draw: random.Random) -> Line:
    action, thing, location, phrasings = HOME_COMMANDS[_balanced(index, len(HOME_COMMANDS))]
    return Line(
        text=draw.choice(phrasings),
        labels={"action": action, "object": thing, "location": location},
    )


def _mandarin(index: int, draw: random.Random) -> Line:
    return Line(text=mandarin_sentence(draw))


PARTS: dict[str, Part] = {
    # About 2.7 hours: 2,900 utterances of mostly 2 to 6 s, unlabelled speech of everyone in the
    # world, in English only.
    "pretrain": Part(
        train=2700,
        dev=100,
        test=100,
        speakers=192,
        shared_speakers=True,
        clean=True,
        write=_pretrain,
    ),
    "phones": Part(train=840, dev=80, test=200, speakers=60, write=_phones),
    "pr": Part(train=400, dev=80, test=200, speakers=60, write=_brief),
    "sid": Part(train=800, dev=200, test=1000, speakers=48, shared_speakers=True, write=_short),
    "er": Part(train=800, dev=200, test=1500, speakers=60, write=_emotion),
    "sf": Part(train=500, dev=100, test=250, speakers=60, write=_slots),
    "ks": Part(train=800, dev=200, test=1000, speakers=60, write=_keyword),
    "ic": Part(train=800, dev=200, test=1000, speakers=60, write=_home),
    "zh": Part(train=400, dev=80, test=200, speakers=60, language="cmn", write=_mandarin),
}
"""Sizes: tests of at least 1,000 items where an utterance counts once, fewer where every phone or
word counts."""


def most_speakers(name: str) -> int:
    """Returns how many training speakers a part can have."""
    return len(population()) if PARTS[name].shared_speakers else len(pools()["train"])


def items(name: str, seed: int, counts: Mapping[str, int], speakers: int) -> list[Item]:
    """Returns the utterances of a part, split by split."""
    part = PARTS[name]
    voices = _voices(part, name, seed, speakers)
    found = []
    for split, count in counts.items():
        for index in range(count):
            draw = random.Random(f"{name} {seed} {split} {index}")
            line = part.write(index, draw)
            # Round robin in training keeps few speakers equally frequent; the shuffle of the voices
            # is the part's own.
            speaker = voices[split][index % len(voices[split])]
            scene = take(line.text, part.language, speaker, line.manner or varied(draw), draw)
            scene = replace(scene, step_samples=part.step_samples)
            if part.clean:
                scene = replace(
                    scene, snr_db=CLEAN_SNR_DB, reverberation_seconds=CLEAN_REVERBERATION_SECONDS
                )
            labels = {"speaker": speaker.name, "text": line.text.upper(), **line.labels}
            found.append(
                Item(key=f"{name}-{split}-{index:05d}", split=split, labels=labels, scene=scene)
            )
    return found


def _voices(part: Part, name: str, seed: int, speakers: int) -> dict[str, list[Speaker]]:
    draw = random.Random(f"{name} {seed} speakers")
    if part.shared_speakers:
        chosen = draw.sample(population(), speakers)
        return {"train": chosen, "dev": chosen, "test": chosen}
    known = pools()
    chosen = draw.sample(known["train"], len(known["train"]))[:speakers]
    return {
        "train": chosen,
        **{split: draw.sample(known[split], len(known[split])) for split in ("dev", "test")},
    }
