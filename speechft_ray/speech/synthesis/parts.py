"""The parts of the synthetic corpora: speakers, texts, styles and labels of every utterance.

All of it is plain data from seeded draws, no audio. Utterance i of a split depends on (part, seed,
split, i) alone, so a larger corpus of the same seed begins with the smaller one. Every utterance
has the columns ``speaker``, ``text`` and ``phones`` (the last from its alignment) and those of its
part.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from speechft_ray.speech.synthesis import sentences
from speechft_ray.speech.synthesis.commands import (
    HOME_COMMANDS,
    draw_mandarin_sentence,
    draw_request,
)
from speechft_ray.speech.synthesis.speakers import (
    Speaker,
    SpeakingStyle,
    UtteranceSpec,
    draw_style,
    jitter_style,
    make_speaker_pools,
    make_speakers,
    make_utterance_spec,
)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One utterance before synthesis: its key, split, labels and specification."""

    key: str
    split: str
    labels: Mapping[str, str]
    spec: UtteranceSpec


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Text of one utterance, labels beyond speaker and text, and style (``None``: drawn)."""

    text: str
    labels: Mapping[str, str] = field(default_factory=dict)
    style: SpeakingStyle | None = None


CLEAN_SNR_DB, CLEAN_REVERBERATION_SECONDS = 50.0, 0.02
"""Nearly no noise and nearly no reverberation."""

STEP_SAMPLES = 1600
"""Lengths are multiples of 0.1 s, so that many utterances are equally long and can be batched
without padding."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part: default numbers of utterances and training speakers, and what draws its prompts.

    ``shared_speakers``: all splits have the training speakers. ``draw_prompt(index, draw)`` returns
    the prompt of utterance ``index`` of a split.
    """

    train: int
    dev: int
    test: int
    speakers: int
    shared_speakers: bool = False
    language: str = "en-us"
    clean: bool = False
    """Whether the audio has no reverberation and noise, for readers that add their own."""
    is_mixed: bool = False
    """Whether a recording of the corpus is two utterances of two speakers at once. Items and
    prompts are the single ones, twice as many."""
    draw_prompt: Callable[[int, random.Random], Prompt]
    draw_query: Callable[[int, random.Random], Prompt] | None = None
    """Draws the prompts of dev and test, where they are queries for words of the training split."""


EMOTIONS = {
    "neutral": SpeakingStyle(range_factor=0.9, tilt_db_per_octave=-0.5),
    "happy": SpeakingStyle(
        pitch_shift=20, range_factor=1.9, rate_factor=1.1, gain_db=2, tilt_db_per_octave=1.5
    ),
    "sad": SpeakingStyle(
        pitch_shift=-12,
        range_factor=0.25,
        rate_factor=0.72,
        gain_db=-5,
        tilt_db_per_octave=-3.5,
        tremor_fraction=0.35,
        breath_fraction=0.5,
    ),
    "angry": SpeakingStyle(
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
breath. Contrasts of prosody alone are too small; the fast tremor of anger is a rough voice."""


def _draw_class(index: int, classes: int) -> int:
    """Returns the class of utterance ``index``: each class once per block of ``classes``.

    Every block has a new random order. Speakers are assigned round robin, so a plain ``index %
    classes`` would give every speaker the same few classes.
    """
    return random.Random(f"block {index // classes}").sample(range(classes), classes)[
        index % classes
    ]


def _pretrain(index: int, draw: random.Random) -> Prompt:
    return Prompt(text=sentences.draw_sentence(draw, clauses=draw.choice((1, 1, 2))))


def _phones(index: int, draw: random.Random) -> Prompt:
    return Prompt(text=sentences.draw_sentence(draw))


def _brief(index: int, draw: random.Random) -> Prompt:
    return Prompt(text=sentences.draw_brief_sentence(draw))


def _short(index: int, draw: random.Random) -> Prompt:
    return Prompt(text=sentences.draw_short_sentence(draw))


def _emotion(index: int, draw: random.Random) -> Prompt:
    emotion = sorted(EMOTIONS)[_draw_class(index, len(EMOTIONS))]
    return Prompt(
        text=sentences.draw_short_sentence(draw),
        labels={"emotion": emotion},
        style=jitter_style(EMOTIONS[emotion], draw),
    )


def _slots(index: int, draw: random.Random) -> Prompt:
    request = draw_request(draw)
    return Prompt(text=request.text, labels={"slots": request.slots, "intent": request.intent})


def _keyword(index: int, draw: random.Random) -> Prompt:
    keyword = sentences.KEYWORDS[_draw_class(index, len(sentences.KEYWORDS))]
    return Prompt(text=keyword, labels={"keyword": keyword})


def _home(index: int, draw: random.Random) -> Prompt:
    action, thing, location, phrasings = HOME_COMMANDS[_draw_class(index, len(HOME_COMMANDS))]
    return Prompt(
        text=draw.choice(phrasings),
        labels={"action": action, "object": thing, "location": location},
    )


def _document(index: int, draw: random.Random) -> Prompt:
    return Prompt(text=sentences.draw_document(draw))


def _query(index: int, draw: random.Random) -> Prompt:
    nouns = sentences.QUERY_NOUNS
    return Prompt(text=nouns[_draw_class(index, len(nouns))])


def _mandarin(index: int, draw: random.Random) -> Prompt:
    return Prompt(text=draw_mandarin_sentence(draw))


PARTS: dict[str, Part] = {
    # About 2.7 hours: 2,900 utterances of mostly 2 to 6 s, unlabelled English of all speakers.
    "pretrain": Part(
        train=2700,
        dev=100,
        test=100,
        speakers=192,
        shared_speakers=True,
        clean=True,
        draw_prompt=_pretrain,
    ),
    "phones": Part(train=840, dev=80, test=200, speakers=60, draw_prompt=_phones),
    "pr": Part(train=400, dev=80, test=200, speakers=60, draw_prompt=_brief),
    "sid": Part(
        train=800, dev=200, test=1000, speakers=48, shared_speakers=True, draw_prompt=_short
    ),
    "er": Part(train=800, dev=200, test=1500, speakers=60, draw_prompt=_emotion),
    "sf": Part(train=500, dev=100, test=250, speakers=60, draw_prompt=_slots),
    "ks": Part(train=800, dev=200, test=1000, speakers=60, draw_prompt=_keyword),
    "ic": Part(train=800, dev=200, test=1000, speakers=60, draw_prompt=_home),
    "zh": Part(train=400, dev=80, test=200, speakers=60, language="cmn", draw_prompt=_mandarin),
    "sd": Part(
        train=240, dev=60, test=200, speakers=60, clean=True, is_mixed=True, draw_prompt=_phones
    ),
    "qbe": Part(train=200, dev=48, test=96, speakers=60, draw_prompt=_document, draw_query=_query),
}
"""Test sets have at least 1,000 utterances where the metric counts utterances, fewer where it
counts phones or words."""


def max_speakers(name: str) -> int:
    """Returns how many training speakers a part can have."""
    return (
        len(make_speakers()) if PARTS[name].shared_speakers else len(make_speaker_pools()["train"])
    )


def make_items(name: str, seed: int, counts: Mapping[str, int], speakers: int) -> list[Item]:
    """Returns the utterances of a part, split by split."""
    part = PARTS[name]
    voices = _voices(part, name, seed, speakers)
    draw_held_out = part.draw_query or part.draw_prompt
    items = []
    for split, count in counts.items():
        for index in range(count):
            draw = random.Random(f"{name} {seed} {split} {index}")
            draw_prompt = part.draw_prompt if split == "train" else draw_held_out
            prompt = draw_prompt(index, draw)
            # Round robin, so that speakers are equally frequent; each part has an order of its own.
            speaker = voices[split][index % len(voices[split])]
            spec = make_utterance_spec(
                prompt.text, part.language, speaker, prompt.style or draw_style(draw), draw
            )
            spec = replace(spec, step_samples=STEP_SAMPLES)
            if part.clean:
                spec = replace(
                    spec, snr_db=CLEAN_SNR_DB, reverberation_seconds=CLEAN_REVERBERATION_SECONDS
                )
            labels = {"speaker": speaker.name, "text": prompt.text.upper(), **prompt.labels}
            items.append(
                Item(key=f"{name}-{split}-{index:05d}", split=split, labels=labels, spec=spec)
            )
    return items


def _voices(part: Part, name: str, seed: int, speakers: int) -> dict[str, list[Speaker]]:
    draw = random.Random(f"{name} {seed} speakers")
    if part.shared_speakers:
        chosen = draw.sample(make_speakers(), speakers)
        return {"train": chosen, "dev": chosen, "test": chosen}
    pools = make_speaker_pools()
    chosen = draw.sample(pools["train"], len(pools["train"]))[:speakers]
    return {
        "train": chosen,
        **{split: draw.sample(pools[split], len(pools[split])) for split in ("dev", "test")},
    }
