"""Finds the length of a FLAC file that does not name it, and files joined to one.

An encoder that cannot go back in its output (into a pipe) leaves the number of samples 0. The
header of the last frame has its place, from which the number follows; decoding then proves it.
Layout: RFC 9639, sections 8 and 9.
"""

from __future__ import annotations

import re

from speechft_ray.speech._damage import DamagedStream

_BEGINNING = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22", re.DOTALL)
"""The mark of a file and the header of STREAMINFO, the only first block."""
_INFO = slice(8, 42)
"""STREAMINFO in a file."""
_SYNC = re.compile(rb"\xff[\xf8\xf9]")
_COMMON_SIZES = {1: 192} | {code: 144 << code for code in range(2, 6)}
_COMMON_SIZES |= {code: 1 << code for code in range(8, 16)}
"""Block sizes by their code in a frame header; codes 6 and 7 name it in one or two bytes."""


def split_flac(content: bytes) -> list[bytes] | None:
    """Returns the recordings that follow each other in a file, each with its number of samples;
    ``None`` for a single one that has it.

    Raises ``DamagedStream`` where no last frame is found.
    """
    starts = [match.start() for match in _BEGINNING.finditer(content)]
    stops = [*starts[1:], len(content)]
    parts = [content[start:stop] for start, stop in zip(starts, stops, strict=False)]
    if len(parts) < 2 and all(map(_read_total, parts)):  # or where no header is found
        return None
    return [part if _read_total(part) else _write_total(part, _find_total(part)) for part in parts]


def _read_total(part: bytes) -> int:
    """Returns the samples of a channel that STREAMINFO names: its bits 108 to 143."""
    return int.from_bytes(part[_INFO][13:18], "big") & (1 << 36) - 1


def _write_total(part: bytes, total: int) -> bytes:
    bits = int.from_bytes(part[_INFO][13:18], "big") | total
    return part[:21] + bits.to_bytes(5, "big") + part[26:]


def _find_total(part: bytes) -> int:
    """Returns the number of samples before the end of the last frame."""
    block_size = int.from_bytes(part[_INFO][2:4], "big")  # the largest; of all frames, if fixed
    places = [match.start() for match in _SYNC.finditer(part, _INFO.stop)]
    for place in reversed(places):
        if (frame := _read_frame(part[place : place + 16])) is not None:
            number, size = frame
            is_fixed = part[place + 1] == 0xF8
            return (number * block_size if is_fixed else number) + size
    raise DamagedStream("holds no audio behind its header. Copy or convert it again")


def _read_frame(head: bytes) -> tuple[int, int] | None:
    """Returns the number and the block size of the frame with this header; ``None`` for bytes that
    are none."""
    if len(head) < 6 or head[3] & 1 or head[2] >> 4 == 0 or head[2] & 15 == 15:
        return None
    # The number is coded as in UTF-8, up to seven bytes.
    ones = 8 - (~head[4] & 0xFF).bit_length()
    count = max(1, ones)
    if ones in (1, 8):
        return None
    number = head[4] & (0x7F >> ones)
    for byte in head[5 : 4 + count]:
        number = number << 6 | byte & 0x3F
    code, place = head[2] >> 4, 4 + count
    width = {6: 1, 7: 2}.get(code, 0)
    size = _COMMON_SIZES.get(code) or 1 + int.from_bytes(head[place : place + width], "big")
    place += width + {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    is_whole = len(head) > place and _compute_crc8(head[:place]) == head[place]
    return (number, size) if is_whole else None


def _compute_crc8(head: bytes) -> int:
    crc = 0
    for byte in head:
        crc ^= byte
        for _ in range(8):
            crc = crc << 1 ^ (0x107 if crc & 0x80 else 0)
    return crc
