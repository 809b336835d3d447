"""Compares the sizes that the header of an uncompressed file names with the file.

libsndfile opens a truncated WAV, AIFF, AU, CAF, Wave64 or SPHERE file as a shorter recording, and a
WAV file whose writer was stopped before it could correct the header as an empty or short one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

_UNKNOWN_BYTES = 0x7FFF_F000
"""Programs that cannot correct the header later (sox, ffmpeg in a pipe) write at least this as the
size of the data chunk, or 0."""
_MOST_BYTES_BEHIND = 1024
"""Bytes behind the last chunk that are taken for a tag (ID3v1 has 128)."""
_SPHERE_HEADER_BYTES = 1024
"""Length of a NIST SPHERE header: text lines, padded."""


class _Layout(NamedTuple):
    """Chunks of a format: where the first begins, bytes of a name and of a size, their order, the
    multiple to which chunks are padded, and whether a size includes name and size."""

    first: int
    name_bytes: int
    size_bytes: int
    order: Literal["little", "big"]
    padding: int = 2
    includes_head: bool = False


_LAYOUTS = {
    **dict.fromkeys(("WAV", "WAVEX", "RF64"), _Layout(12, 4, 4, "little")),
    **dict.fromkeys(("AIFF", "SVX"), _Layout(12, 4, 4, "big")),
    "CAF": _Layout(8, 4, 8, "big", 1),
    "W64": _Layout(40, 16, 8, "little", 8, True),
}
_DATA = (b"data", b"SSND", b"BODY")
"""How the name of the chunk with the samples begins."""

_CODECS = {0x01, 0x02, 0x03, 0x06, 0x07, 0x11, 0x31, 0x40, 0x45, 0x55, 0xFFFE}
"""Codecs of WAV files that libsndfile knows (``WAVE_FORMAT_*`` of Windows): PCM, two ADPCM, floats,
A-law, mu-law, GSM 6.10, G.721, NMS ADPCM, mp3, and those that a second field names."""


class _Chunk(NamedTuple):
    name: bytes
    start: int
    size: int
    """Bytes that the header names."""


def describe_wrong_size(path: Path, format_: str, frames: int) -> str | None:
    """Returns how much of a truncated file is missing, or how much follows the samples that the
    header does not name; ``None`` for a whole file and for a format that names no size.

    ``format_`` and ``frames`` are what libsndfile sees.
    """
    with path.open("rb") as file:
        if format_ == "NIST":
            return _describe_sphere(file.read(_SPHERE_HEADER_BYTES), frames)
        size = file.seek(0, 2)
        data = _find_data(file, format_, size)
        if data is None or data.size == 0:
            return None
        present = size - data.start
        if data.size > present:
            is_named = data.size < _UNKNOWN_BYTES
            return _describe_missing(present, data.size) if is_named else None
        behind = _count_bytes_behind(file, data, size) if format_.startswith("WAV") else 0
    if behind <= _MOST_BYTES_BEHIND:
        return None
    return (
        f"holds {behind} bytes behind the {data.size} bytes of audio that its header names: its "
        "writer was stopped, or something was joined to it. Convert it again"
    )


def describe_unread_wav(path: Path) -> str | None:
    """Returns why libsndfile cannot open a WAV file: its codec, or its size; ``None`` for another
    reason."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        for chunk in _list_chunks(file, _LAYOUTS["WAV"], _LAYOUTS["WAV"].first, size):
            if chunk.name == b"fmt ":
                file.seek(chunk.start)
                codec = int.from_bytes(file.read(2), "little")
                if codec not in _CODECS:
                    return (
                        f"is a WAV file with the codec 0x{codec:04x}, which is not read. Convert "
                        "it to wav with samples of 16 bits, or to flac"
                    )
    return describe_wrong_size(path, "WAV", 0)


def find_samples(path: Path, format_: str) -> slice:
    """Returns where the samples of a file are in it; all of it where that is not known."""
    with path.open("rb") as file:
        data = _find_data(file, format_, file.seek(0, 2))
    if data is None:
        return slice(None)
    return slice(data.start, data.start + data.size if data.size else None)


def name_data_size(path: Path) -> bytes | None:
    """Returns a WAV file with the size of its samples in the header, where that is 0 although
    samples follow; ``None`` for every other file."""
    content = path.read_bytes()
    with path.open("rb") as file:
        data = _find_data(file, "WAV", len(content))
        if data is None or data.size or not _count_bytes_behind(file, data, len(content)):
            return None
    size = (len(content) - data.start).to_bytes(4, "little")
    return content[: data.start - 4] + size + content[data.start :]


def _describe_missing(present: int, named: int) -> str:
    return f"holds {present} of the {named} bytes of audio that its header names. Copy it again"


def _describe_sphere(head: bytes, frames: int) -> str | None:
    match = re.search(rb"\nsample_count -i (\d+)\s", head)
    if match is None or frames >= int(match[1]):
        return None
    return f"holds {frames} of the {int(match[1])} samples that its header names. Copy it again"


def _find_data(file: BinaryIO, format_: str, size: int) -> _Chunk | None:
    """Returns the chunk with the samples; ``None`` for another format or without such a chunk."""
    file.seek(0)
    if format_ == "AU":
        head = file.read(12)
        order: Literal["little", "big"] = "big" if head[:4] == b".snd" else "little"
        start, named = (int.from_bytes(head[at : at + 4], order) for at in (4, 8))
        return _Chunk(b"data", start, named)
    if format_ not in _LAYOUTS:
        return None
    layout = _LAYOUTS[format_]
    if file.read(4) == b"RIFX":
        layout = layout._replace(order="big")
    long_size = None
    for chunk in _list_chunks(file, layout, layout.first, size):
        if chunk.name == b"ds64":  # the sizes of an RF64 file, whose data chunk has none
            file.seek(chunk.start + 8)
            long_size = int.from_bytes(file.read(8), "little")
        if chunk.name.startswith(_DATA):
            return chunk if long_size is None else chunk._replace(size=long_size)
    return None


def _list_chunks(file: BinaryIO, layout: _Layout, start: int, size: int) -> Iterator[_Chunk]:
    head_bytes = layout.name_bytes + layout.size_bytes
    while start + head_bytes <= size:
        file.seek(start)
        name = file.read(layout.name_bytes)
        named = int.from_bytes(file.read(layout.size_bytes), layout.order)
        if layout.includes_head:
            named = max(0, named - head_bytes)
        yield _Chunk(name, start + head_bytes, named)
        start += head_bytes + named
        start += -start % layout.padding


def _count_bytes_behind(file: BinaryIO, data: _Chunk, size: int) -> int:
    """Returns how many bytes behind the samples of a WAV file are neither a chunk nor zero."""
    stop = data.start + data.size
    for padded in {stop, stop + stop % 2}:  # not every writer pads
        end = padded
        for chunk in _list_chunks(file, _LAYOUTS["WAV"], padded, size):
            is_name = chunk.name.isascii() and chunk.name.decode().isprintable()
            if not is_name or chunk.name == b"RIFF":
                break
            end = chunk.start + chunk.size
        if size <= end <= size + 1 or padded == size:
            return 0
    file.seek(stop)
    behind = file.read()
    return len(behind) if behind.strip(b"\0") else 0
