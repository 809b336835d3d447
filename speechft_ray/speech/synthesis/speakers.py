"""Speakers and speaking styles of the synthetic corpora: plain data from seeded draws, no audio.

A ``UtteranceSpec`` holds all that determines the audio of one utterance.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

_VARIANT_NAMES = """
Alex Alicia Andrea Andy Annie Denis Diogo Gene Gene2 Henrique Hugo Jacky Lee Mario Michael Mike
Nguyen Reed RicishayMax RicishayMax2 Storm adam anika antonio aunty belinda benjamin boris david ed
edward f1 f2 f3 f4 f5 grandma grandpa gustave ian iven2 iven3 iven4 john kaukovalta klatt2 klatt3
klatt4 klatt5 linda m1 m2 m3 m4 m7 m8 marcelo max miguel mike2 paul pedro shelby steph2
"""

VARIANTS = tuple(_VARIANT_NAMES.split())
"""The 64 voice variants of espeak-ng 1.52 that sound human: no robots, whispers, croaks, novelty or
clipping voices."""

SPEAKERS_PER_VARIANT = 3
POPULATION = len(VARIANTS) * SPEAKERS_PER_VARIANT
POOL_SIZES = {"test": 48, "dev": 24, "train": 120}
"""Speakers per pool. Pools share no voice variant, so a speaker-disjoint test set has voices that
no training utterance has."""

NEUTRAL_DOWN = 441
"""The denominator that leaves the vocal tract as it is."""
_DOWNS = (400, 405, 416, 420, 432, 440, 441, 448, 450, 455, 462, 468, 480, 486, 490, 495)
"""Resampling by 320/441 brings 22,050 Hz to 16 kHz; by 320/down it also scales the vocal tract by
down/441 = 0.91 to 1.12. All are products of small primes, for fast transforms."""


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """A voice of espeak-ng with its neutral parameters.

    ``pitch`` and ``pitch_range`` are within 0 to 100; ``down`` scales the vocal tract (``_DOWNS``).
    """

    name: str
    variant: str
    pitch: int
    pitch_range: int
    rate_wpm: int
    down: int
    tilt_db_per_octave: float


@dataclass(frozen=True, kw_only=True)
class SpeakingStyle:
    """Changes of prosody and voice quality relative to the speaker's neutral voice."""

    pitch_shift: float = 0.0
    range_factor: float = 1.0
    rate_factor: float = 1.0
    gain_db: float = 0.0
    tilt_db_per_octave: float = 0.0
    tremor_fraction: float = 0.0
    tremor_hz: float = 6.0
    breath_fraction: float = 0.0


@dataclass(frozen=True, kw_only=True)
class UtteranceSpec:
    """All that determines the audio of one utterance.

    ``seed`` draws the reverberation, the channel and the noise.
    """

    text: str
    voice: str
    rate_wpm: int
    pitch: int
    pitch_range: int
    down: int
    tilt_db_per_octave: float
    level_db: float
    tremor_fraction: float
    tremor_hz: float
    breath_fraction: float
    lead_seconds: float
    trail_seconds: float
    reverberation_seconds: float
    snr_db: float
    seed: int
    step_samples: int = 1
    """The audio is lengthened, by the decay of the reverberation, to a multiple of this."""


def make_speakers() -> list[Speaker]:
    """Returns all speakers, always the same ones: three per voice variant, in variant order."""
    speakers = []
    for index in range(POPULATION):
        draw = random.Random(f"speaker {index}")
        variant, turn = VARIANTS[index // SPEAKERS_PER_VARIANT], index % SPEAKERS_PER_VARIANT
        # The three speakers of one variant lie in three bands of pitch and vocal-tract length, so
        # that they are distinguishable.
        pitch = 18 + 22 * turn + draw.randrange(18)
        down = _DOWNS[(5 * ((turn + index // SPEAKERS_PER_VARIANT) % 3)) + draw.randrange(6)]
        speakers.append(
            Speaker(
                name=f"s{index:03d}",
                variant=variant,
                pitch=pitch,
                pitch_range=draw.randint(30, 70),
                rate_wpm=draw.randint(150, 190),
                down=down,
                tilt_db_per_octave=draw.uniform(-2.5, 2.5),
            )
        )
    return speakers


def make_speaker_pools() -> dict[str, list[Speaker]]:
    """Returns the speakers of the pools ``train``, ``dev`` and ``test``.

    Pools are disjoint in speakers and in voice variants.
    """
    variants = list(VARIANTS)
    random.Random("pools").shuffle(variants)
    order = {variant: place for place, variant in enumerate(variants)}
    ranked = sorted(make_speakers(), key=lambda speaker: (order[speaker.variant], speaker.name))
    pools, start = {}, 0
    for pool, size in POOL_SIZES.items():
        pools[pool] = ranked[start : start + size]
        start += size
    return pools


def make_utterance_spec(
    text: str, language: str, speaker: Speaker, style: SpeakingStyle, draw: random.Random
) -> UtteranceSpec:
    """Returns an utterance in a random room: reverberation up to 0.4 s, noise at 3 to 20 dB."""
    tilt = speaker.tilt_db_per_octave + style.tilt_db_per_octave
    # Scaling the vocal tract also changes the tempo. The rate compensates for it, so that tempo is
    # independent of tract length.
    rate = speaker.rate_wpm * style.rate_factor * NEUTRAL_DOWN / speaker.down
    return UtteranceSpec(
        text=text,
        voice=f"{language}+{speaker.variant}",
        rate_wpm=_clip_to_int(rate, 90, 320),
        pitch=_clip_to_int(speaker.pitch + style.pitch_shift + draw.uniform(-4, 4), 0, 99),
        pitch_range=_clip_to_int(speaker.pitch_range * style.range_factor, 0, 99),
        down=speaker.down,
        tilt_db_per_octave=tilt,
        level_db=-26.0 + draw.uniform(-3, 3) + style.gain_db,
        tremor_fraction=style.tremor_fraction,
        tremor_hz=style.tremor_hz,
        breath_fraction=style.breath_fraction,
        lead_seconds=draw.uniform(0.04, 0.16),
        trail_seconds=draw.uniform(0.04, 0.14),
        reverberation_seconds=draw.uniform(0.05, 0.4),
        snr_db=draw.uniform(3, 20),
        seed=draw.getrandbits(48),
    )


def draw_style(draw: random.Random) -> SpeakingStyle:
    """Returns a random neutral speaking style."""
    return SpeakingStyle(
        pitch_shift=draw.uniform(-8, 8),
        range_factor=draw.uniform(0.5, 1.6),
        rate_factor=draw.uniform(0.85, 1.2),
        tilt_db_per_octave=draw.uniform(-1.5, 1.5),
        breath_fraction=draw.choice((0.0, 0.0, 0.0, draw.uniform(0.0, 0.5))),
    )


def jitter_style(style: SpeakingStyle, draw: random.Random) -> SpeakingStyle:
    """Returns a style with random changes, so that neighbouring styles overlap."""
    return replace(
        style,
        pitch_shift=style.pitch_shift + draw.gauss(0, 4),
        range_factor=style.range_factor * draw.uniform(0.8, 1.25),
        rate_factor=style.rate_factor * draw.uniform(0.93, 1.08),
        gain_db=style.gain_db + draw.gauss(0, 1.5),
        tilt_db_per_octave=style.tilt_db_per_octave + draw.gauss(0, 0.7),
        tremor_hz=style.tremor_hz * draw.uniform(0.85, 1.15),
    )


def _clip_to_int(value: float, low: int, high: int) -> int:
    return max(low, min(high, round(value)))
