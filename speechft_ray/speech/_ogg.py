"""Checks the pages of an Ogg file (Vorbis, Opus) and finds recordings that follow each other.

libsndfile skips pages that are damaged or missing, ends where the file ends, and reads only the
first of several recordings (a chain). The pages tell each of these: they are numbered, have a check
sum, and the last one of every stream is marked (RFC 3533, 6).
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

from speechft_ray.speech._damage import DamagedStream

MAGIC = b"OggS"
_HEADER_BYTES = 27
_FIRST, _LAST = 2, 4
"""Bits of the header type: the first and the last page of a stream."""
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
"""Every byte with its bits in reverse order."""


class _Page(NamedTuple):
    start: int
    kind: int
    stream: int
    number: int


def split_ogg(content: bytes) -> list[bytes] | None:
    """Returns the recordings that follow each other in a file; ``None`` for a single one.

    Raises ``DamagedStream`` where the end of a stream or a page between is missing or damaged.
    """
    starts = [0]
    streams: dict[int, _Page] = {}
    """Last page of each stream of the current recording."""
    for page in _list_pages(content):
        before = streams.get(page.stream)
        if page.kind & _FIRST and any(not one.kind & _FIRST for one in streams.values()):
            _check_ends(streams)
            starts.append(page.start)
            streams = {}
        elif before is not None and page.number != before.number + 1:
            raise DamagedStream(
                f"lacks the pages {before.number + 1} to {page.number - 1} of its audio. "
                "Copy or convert it again"
            )
        streams[page.stream] = page
    _check_ends(streams)
    if len(starts) == 1:
        return None
    return [
        content[start:stop] for start, stop in zip(starts, [*starts[1:], len(content)], strict=True)
    ]


def _check_ends(streams: dict[int, _Page]) -> None:
    if not all(page.kind & _LAST for page in streams.values()):
        raise DamagedStream(
            "ends without its last page: the end is missing, or its writer was stopped. Copy it "
            "again, or accept what is there with `ffmpeg -i FILE -c copy NEW_FILE`"
        )


def _list_pages(content: bytes) -> list[_Page]:
    pages = []
    place = 0
    while content.startswith(MAGIC, place):
        segments = (
            content[place + _HEADER_BYTES - 1] if place + _HEADER_BYTES <= len(content) else 0
        )
        sizes = content[place + _HEADER_BYTES : place + _HEADER_BYTES + segments]
        stop = place + _HEADER_BYTES + segments + sum(sizes)
        if stop > len(content) or len(sizes) < segments:
            raise DamagedStream("ends within a page: its end is missing. Copy or convert it again")
        page = content[place:stop]
        if _compute_checksum(page) != int.from_bytes(page[22:26], "little"):
            raise DamagedStream(
                f"is damaged between the bytes {place:,} and {stop:,}. Copy or convert it again"
            )
        stream, number = (int.from_bytes(page[at : at + 4], "little") for at in (14, 18))
        pages.append(_Page(place, page[5], stream, number))
        place = stop
    if (after := content.find(MAGIC, place)) >= 0:
        raise DamagedStream(
            f"is damaged between the bytes {place:,} and {after:,}. Copy or convert it again"
        )
    return pages


def _compute_checksum(page: bytes) -> int:
    """Returns the check sum of a page: the polynomial of ``zlib.crc32`` with the bits in reverse
    order, and zero as start and in place of the field itself."""
    blank = page[:22] + bytes(4) + page[26:]
    crc = zlib.crc32(blank.translate(_REVERSED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int(f"{crc:032b}"[::-1], 2)
