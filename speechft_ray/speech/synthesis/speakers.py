"""Speakers and manners of speaking of the synthetic world. Plain data from seeded draws; no audio
here.

One utterance is a ``Take``: everything that decides its audio, as plain numbers.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

_VARIANT_NAMES = """
Alex Alicia Andrea Andy Annie Denis Diogo Gene Gene2 Henrique Hugo Jacky Lee Mario Michael Mike Nguyen Reed RicishayMax
RicishayMax2 Storm adam anika antonio aunty belinda benjamin boris david ed edward f1 f2 f3 f4 f5 grandma grandpa
gustave ian iven2 iven3 iven4 john kaukovalta klatt2 klatt3 klatt4 klatt5 linda m1 m2 m3 m4 m7 m8 marcelo max miguel
mike2 paul pedro shelby steph2
"""

VARIANTS = tuple(_VARIANT_NAMES.split())
"""The 64 voice variants of espeak-ng 1.52 that sound like people: no robots, whispers, croaks,
novelty or clipping voices."""

SPEAKERS_PER_VARIANT = 3
POPULATION = len(VARIANTS) * SPEAKERS_PER_VARIANT
POOL_SIZES = {"test": 48, "dev": 24, "train": 120}
"""Speakers per pool. Pools share no voice variant, so a speaker-disjoint test meets voices that
training never heard."""

NEUTRAL_DOWN = 441
"""The denominator that leaves the vocal tract as it is."""
_DOWNS = (400, 405, 416, 420, 432, 440, 441, 448, 450, 455, 462, 468, 480, 486, 490, 495)
"""Resampling by 320/441 brings 22,050 Hz to 16 kHz; by 320/down it also scales the vocal tract by
down/441 = 0.91 to 1.12. All are products of small primes, for fast transforms."""


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """A voice: variant, neutral pitch (0 to 100), pitch range, rate, vocal-tract denominator,
    spectral tilt."""

    name: str
    variant: str
    pitch: int
    pitch_range: int
    rate_wpm: int
    down: int
    tilt_db_per_octave: float


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How something is said, relative to the speaker's neutral voice."""

    pitch_shift: float = 0.0
    range_factor: float = 1.0
    rate_factor: float = 1.0
    gain_db: float = 0.0
    tilt_db_per_octave: float = 0.0
    tremor_fraction: float = 0.0
    tremor_hz: float = 6.0
    breath_fraction: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Take:
    """All that decides the audio of one utterance. ``seed`` draws the room's tail, the channel and
    the noise."""

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
    """The finished audio is lengthened, by what the room still says, to a multiple of this."""


def population() -> list[Speaker]:
    """Returns all speakers of the world, always the same ones: three per voice variant, in variant
    order."""
    speakers = []
    for index in range(POPULATION):
        draw = random.Random(f"speaker {index}")
        variant, turn = VARIANTS[index // SPEAKERS_PER_VARIANT], index % SPEAKERS_PER_VARIANT
        # The three speakers of one variant lie in three bands of pitch and vocal-tract length, so
        # that they can be told apart.
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


def pools() -> dict[str, list[Speaker]]:
    """Returns the speakers of the pools ``train``, ``dev`` and ``test``: disjoint in speakers and
    in voice variants."""
    variants = list(VARIANTS)
    random.Random("pools").shuffle(variants)
    order = {variant: place for place, variant in enumerate(variants)}
    ranked = sorted(population(), key=lambda speaker: (order[speaker.variant], speaker.name))
    found, start = {}, 0
    for pool, size in POOL_SIZES.items():
        found[pool] = ranked[start : start + size]
        start += size
    return found


def take(text: str, language: str, speaker: Speaker, manner: Manner, draw: random.Random) -> Take:
    """Returns a take in a random room: reverberation to 0.4 s, noise at 3 to 20 dB."""
    tilt = speaker.tilt_db_per_octave + manner.tilt_db_per_octave
    # Scaling the vocal tract also changes the tempo; the rate makes up for it, so that tempo says
    # nothing about tract length.
    rate = speaker.rate_wpm * manner.rate_factor * NEUTRAL_DOWN / speaker.down
    return Take(
        text=text,
        voice=f"{language}+{speaker.variant}",
        rate_wpm=_between(rate, 90, 320),
        pitch=_between(speaker.pitch + manner.pitch_shift + draw.uniform(-4, 4), 0, 99),
        pitch_range=_between(speaker.pitch_range * manner.range_factor, 0, 99),
        down=speaker.down,
        tilt_db_per_octave=tilt,
        level_db=-26.0 + draw.uniform(-3, 3) + manner.gain_db,
        tremor_fraction=manner.tremor_fraction,
        tremor_hz=manner.tremor_hz,
        breath_fraction=manner.breath_fraction,
        lead_seconds=draw.uniform(0.04, 0.16),
        trail_seconds=draw.uniform(0.04, 0.14),
        reverberation_seconds=draw.uniform(0.05, 0.4),
        snr_db=draw.uniform(3, 20),
        seed=draw.getrandbits(48),
    )


def varied(draw: random.Random) -> Manner:
    """Returns a random everyday manner of speaking."""
    return Manner(
        pitch_shift=draw.uniform(-8, 8),
        range_factor=draw.uniform(0.5, 1.6),
        rate_factor=draw.uniform(0.85, 1.2),
        tilt_db_per_octave=draw.uniform(-1.5, 1.5),
        breath_fraction=draw.choice((0.0, 0.0, 0.0, draw.uniform(0.0, 0.5))),
    )


def jittered(manner: Manner, draw: random.Random) -> Manner:
    """Returns a manner with human spread around it, so that neighbours overlap."""
    return replace(
        manner,
        pitch_shift=manner.pitch_shift + draw.gauss(0, 4),
        range_factor=manner.range_factor * draw.uniform(0.8, 1.25),
        rate_factor=manner.rate_factor * draw.uniform(0.93, 1.08),
        gain_db=manner.gain_db + draw.gauss(0, 1.5),
        tilt_db_per_octave=manner.tilt_db_per_octave + draw.gauss(0, 0.7),
        tremor_hz=manner.tremor_hz * draw.uniform(0.85, 1.15),
    )


def _between(value: float, low: int, high: int) -> int:
    return max(low, min(high, round(value)))
