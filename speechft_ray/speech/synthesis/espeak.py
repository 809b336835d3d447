"""Calls the espeak-ng library by ctypes: text in, waveform and phone onsets out.

The library keeps one global state, is not thread-safe, and seeds its random generator from the
clock. So ``start`` may be called once per process. Two processes that call ``start`` with one seed
and then ``speak`` with the same arguments in the same order get identical samples (measured for 68
of 68 voices with espeak-ng 1.52). Worker processes import this module: it needs numpy and the wheel
``espeakng-loader`` only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

SOURCE_RATE_HZ = 22_050
"""The rate that ``espeak_Initialize`` returns."""

# Constants of espeak-ng's speak_lib.h: output mode and initialisation flags, espeak_PARAMETER,
# espeak_EVENT_TYPE.
_SYNCHRONOUS, _PHONEME_EVENTS, _DO_NOT_EXIT, _UTF8 = 2, 0x1, 0x8000, 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_LIST_END, _PHONEME = 0, 7


class _Payload(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):  # espeak_EVENT of speak_lib.h: 40 bytes
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("payload", _Payload),
    ]


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


@dataclass(frozen=True, kw_only=True)
class Speech:
    """A synthesised text.

    ``wave``: int16 ``(samples,)`` at 22,050 Hz. ``onsets``: ``(sample, phone name)`` in time order.
    """

    wave: np.ndarray
    onsets: tuple[tuple[int, str], ...]


Speak = Callable[[str, str, int, int, int], Speech]
"""``speak(text, voice, rate_wpm, pitch, pitch_range)``: a voice like ``en-us+max``, pitch and range
from 0 to 100 (50 is neutral)."""

_started = False


def start(seed: int) -> Speak:
    """Initialises the library of this process and returns its ``speak`` function.

    Raises ``RuntimeError`` at a second call in one process, and when the library or its voice data
    cannot be used.
    """
    global _started
    if _started:
        raise RuntimeError("espeak-ng has one global state: start it once per process")
    _started = True
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = espeakng_loader.get_data_path().encode()
    rate_hz = library.espeak_Initialize(_SYNCHRONOUS, 0, data, _PHONEME_EVENTS | _DO_NOT_EXIT)
    if rate_hz != SOURCE_RATE_HZ:
        raise RuntimeError(
            f"espeak-ng must run at {SOURCE_RATE_HZ} Hz, but initialisation returned {rate_hz}"
        )
    library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
    return _make_speak(library)


def _make_speak(library: Any) -> Speak:
    blocks: list[np.ndarray] = []
    onsets: list[tuple[int, str]] = []

    def collect(wave: Any, samples: int, events: Any) -> int:
        if wave and samples > 0:
            blocks.append(np.ctypeslib.as_array(wave, (samples,)).copy())
        index = 0
        while events[index].type != _LIST_END:
            if events[index].type == _PHONEME:
                onsets.append(
                    (events[index].sample, events[index].payload.string.decode("utf-8", "replace"))
                )
            index += 1
        return 0

    callback = _Callback(collect)  # `speak` below keeps it alive: the library holds a bare pointer
    library.espeak_SetSynthCallback(callback)

    def speak(
        text: str, voice: str, rate_wpm: int, pitch: int, pitch_range: int, _keep: Any = callback
    ) -> Speech:
        blocks.clear()
        onsets.clear()
        # Choosing a voice resets the parameters, so it comes first. Every call sets all of them, so
        # none depends on the call before.
        _expect_zero(library.espeak_SetVoiceByName(voice.encode()), f"voice {voice}")
        for parameter, value in ((_RATE, rate_wpm), (_PITCH, pitch), (_RANGE, pitch_range)):
            _expect_zero(
                library.espeak_SetParameter(parameter, value, 0), f"parameter {parameter} = {value}"
            )
        encoded = text.encode()
        code = library.espeak_Synth(
            encoded, ctypes.c_size_t(len(encoded) + 1), 0, 1, 0, _UTF8, None, None
        )
        _expect_zero(code, f"text {text!r}")
        if not blocks:
            raise RuntimeError(f"espeak-ng made no sound for the text {text!r}")
        return Speech(wave=np.concatenate(blocks), onsets=tuple(onsets))

    return speak


def _expect_zero(code: int, what: str) -> None:
    if code != 0:
        raise RuntimeError(f"espeak-ng refused {what} (code {code})")
