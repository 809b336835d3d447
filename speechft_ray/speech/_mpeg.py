"""Finds the frames of MPEG audio (mp3), where a header does not tell the length.

An encoder that cannot go back in its output (into a pipe) writes no Xing, Info or VBRI tag, and
libsndfile then estimates the length from the bit rate of the first frame. Of files joined to one it
reads as much as the first tag counts. The frames themselves tell both: each names its own length.

Layout of frame headers: ISO/IEC 11172-3, 2.4.1.3, and 13818-3; tags: the Xing SDK and
Fraunhofer's VBRI, as LAME and Fraunhofer's encoders write them.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from speechft_ray.speech._damage import DamagedStream

_KBIT_RATES = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Bit rates in kbit/s by version of MPEG (2 stands for 2.5, too) and layer; of index 1 to 14."""
_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
"""Sample rates by the version bits: 3 is MPEG 1, 2 is MPEG 2, 0 is MPEG 2.5."""

_MONO = 3
_TAG_BYTES = 64
"""A tag begins within these first bytes of its frame."""
_TRAILERS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"3DI")
"""How the tags begin that stand behind the frames: ID3v1, APE, Lyrics3, the foot of an ID3v2."""
_BEGINNINGS = re.compile(rb"\xff|ID3|" + b"|".join(_TRAILERS))
"""Where a frame or a tag may begin."""


class Kind(NamedTuple):
    """What all frames of one recording share."""

    version: int
    layer: int
    rate_hz: int
    is_mono: bool

    @property
    def samples(self) -> int:
        """Samples of each channel that a frame holds."""
        if self.layer == 1:
            return 384
        return 576 if self.layer == 3 and self.version != 3 else 1152


class Tag(NamedTuple):
    """What the first frame of a recording says instead of holding audio: the number of frames that
    follow it, 0 where it leaves that out. ``is_xing``: Xing or Info, which libsndfile reads."""

    frames: int
    is_xing: bool


class Frame(NamedTuple):
    """One frame: where it begins, its bytes, and its tag, if it holds one."""

    start: int
    size: int
    tag: Tag | None


def split_mpeg(content: bytes) -> list[bytes] | None:
    """Returns the recordings that follow each other in a stream, each with its tag, if any, and
    nothing else than frames; ``None`` for a single one whose tag counts all frames, or where no
    frame is found (a free bit rate).

    Raises ``DamagedStream`` for a stream that ends within a frame or has fewer frames than its tag
    counts, for other bytes between frames, and for a change of the rate or the channels.
    """
    parts: list[list[Frame]] = []
    missing = -1
    """Frames of the current part that its tag still announces; below 0 where it has no number."""
    for frame in _list_frames(content):
        if frame.tag is not None or missing == 0 or not parts:
            _check_count(parts, missing)
            parts.append([])
            missing = (frame.tag and frame.tag.frames) or -1
        else:
            missing -= 1
        parts[-1].append(frame)
    _check_count(parts, missing)
    if len(parts) == 1 and (tag := parts[0][0].tag) and tag.is_xing and tag.frames:
        return None
    # libsndfile takes a frame with a VBRI tag for audio.
    own = [[one for one in part if one.tag is None or one.tag.is_xing] for part in parts]
    own = [part for part in own if any(one.tag is None for one in part)]
    return [
        b"".join(content[one.start : one.start + one.size] for one in part) for part in own
    ] or None


def _check_count(parts: list[list[Frame]], missing: int) -> None:
    if missing > 0:
        tag = parts[-1][0].tag
        counted = tag.frames if tag else 0
        raise DamagedStream(
            f"holds {counted - missing} of the {counted} frames that its header counts: its end is "
            "missing. Copy or convert it again"
        )


def _list_frames(content: bytes) -> list[Frame]:
    frames: list[Frame] = []
    kind: Kind | None = None
    place, junk = 0, -1
    while place + 4 <= len(content):
        if (after := _skip_tag(content, place)) > place:
            junk = -1 if not content[junk:place].strip(b"\0") else junk
            place = after
            continue
        own, size = _read_header(content[place : place + 4])
        is_frame = own is not None and (own == kind or _is_followed(content, place + size, own))
        if not is_frame or own is None:
            junk = place if junk < 0 else junk
            beginning = _BEGINNINGS.search(content, place + 1)
            place = beginning.start() if beginning else len(content)
            continue
        if kind is not None and own != kind:
            raise DamagedStream(
                "joins recordings of different rates or channels (from byte "
                f"{place:,} on). Cut it there, or convert it again"
            )
        if frames and junk >= 0 and content[junk:place].strip(b"\0"):
            raise DamagedStream(
                f"is damaged: bytes {junk:,} to {place:,} are no audio. Copy or convert it again"
            )
        if place + size > len(content):
            raise DamagedStream("ends within a frame: its end is missing. Copy or convert it again")
        kind, junk = own, -1
        frames.append(Frame(place, size, _read_tag(content[place : place + _TAG_BYTES], own)))
        place += size
    return frames


@lru_cache(maxsize=4096)
def _read_header(head: bytes) -> tuple[Kind | None, int]:
    """Returns kind and bytes of the frame that begins so; ``None`` where none does."""
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    index, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    is_header = head[0] == 0xFF and head[1] >> 5 == 7 and version != 1 and layer != 4
    if not is_header or index in (0, 15) or rate == 3:
        return None, 0
    kind = Kind(version, layer, _RATES_HZ[version][rate], head[3] >> 6 == _MONO)
    bit_rate = 1000 * _KBIT_RATES[1 if version == 3 else 2, layer][index - 1]
    slot = 4 if layer == 1 else 1  # bytes
    return kind, slot * (kind.samples // 8 // slot * bit_rate // kind.rate_hz + padding)


def _is_followed(content: bytes, place: int, kind: Kind) -> bool:
    """Whether the stream ends at a place or goes on with a frame of the same kind or a tag: a
    header of four bytes may also occur by chance."""
    rest = content[place : place + 4]
    if len(rest) < 4 or rest.startswith((b"ID3", b"TAG", b"APET", b"LYRI")):
        return True
    return _read_header(rest)[0] == kind


def _read_tag(head: bytes, kind: Kind) -> Tag | None:
    if kind.layer != 3:
        return None
    side = (9 if kind.is_mono else 17) if kind.version != 3 else (17 if kind.is_mono else 32)
    xing = head[4 + side :]
    if xing.startswith((b"Xing", b"Info")):
        has_number = bool(xing[7:8]) and xing[7] & 1
        return Tag(int.from_bytes(xing[8:12], "big") if has_number else 0, True)
    return Tag(int.from_bytes(head[50:54], "big"), False) if head[36:40] == b"VBRI" else None


def _measure_id3(head: bytes) -> int:
    """Returns the bytes of an ID3v2 tag (id3.org, 2.4.0, 3.1): seven bits of each byte count."""
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size + (10 if len(head) > 5 and head[5] & 0x10 else 0)


def _skip_tag(content: bytes, place: int) -> int:
    """Returns the place behind a tag that is no frame; the same place where none begins."""
    if content[place : place + 3] == b"ID3":
        return place + _measure_id3(content[place : place + 10])
    if not content.startswith(_TRAILERS, place):
        return place
    if content[place : place + 3] == b"TAG":
        return place + 128
    if content[place : place + 3] == b"3DI":
        return place + 10
    if content[place : place + 8] == b"APETAGEX":
        size = int.from_bytes(content[place + 12 : place + 16], "little")
        return (
            place + 32 + (size if len(content) > place + 23 and content[place + 23] & 0x20 else 0)
        )
    end = max(content.find(b"LYRICSEND", place), content.find(b"LYRICS200", place))
    return len(content) if end < 0 else end + 9
