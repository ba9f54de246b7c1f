"""Which parts of a JPEG, PNG or WebP are its picture and nothing else, found without decoding it."""

import os
import re
from collections.abc import Iterator
from typing import BinaryIO, Final

Ranges = tuple[tuple[int, int], ...]
"""Parts of a file, each (offset, length) in bytes, in order."""

_NEXT_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_SCAN_BLOCK_BYTES: Final = 1 << 20
_PNG_PICTURE: Final = frozenset({b"IHDR", b"IDAT", b"IEND"})


def picture_ranges(file: BinaryIO, form: str) -> Ranges | None:
    """The parts that hold an 8-bit RGB picture and nothing else, or None where they cannot be told from the rest."""
    position = file.tell()
    try:
        kept = _find_ranges(file, form)
        # A PNG may decode although its very last bytes are missing.
        whole = kept is None or sum(kept[-1]) <= file.seek(0, os.SEEK_END)
        return kept if whole else None
    finally:
        # Pillow goes on reading where it was.
        file.seek(position)


def _find_ranges(file: BinaryIO, form: str) -> Ranges | None:
    match form:
        case "JPEG":
            return _jpeg_ranges(file)
        case "PNG":
            return _png_ranges(file)
        case "WEBP":
            return _webp_ranges(file)
        case _:
            return None


def _joined(ranges: Iterator[tuple[int, int]]) -> Ranges:
    joined: list[tuple[int, int]] = []
    for start, length in ranges:
        if joined and sum(joined[-1]) == start:
            joined[-1] = joined[-1][0], joined[-1][1] + length
        else:
            joined.append((start, length))
    return tuple(joined)


def _jpeg_ranges(file: BinaryIO) -> Ranges | None:
    """Everything up to the end-of-image marker but comments and application segments.

    JFIF's APP0 without a thumbnail and Adobe's APP14 stay: they tell how the colours are coded. What follows the end
    marker (a second picture, a film, anything) goes.
    """
    try:
        return _joined(_jpeg_parts(file))
    except EOFError:
        return None


def _jpeg_parts(file: BinaryIO) -> Iterator[tuple[int, int]]:
    yield 0, 2
    position = 2
    while True:
        position, marker = _next_jpeg_marker(file, position)
        if marker == 0xD9:
            yield position, 2
            return
        file.seek(position + 2)
        field = _read_exactly(file, 2)
        length = int.from_bytes(field, "big")
        if length < 2:
            raise EOFError
        if _is_jpeg_picture(marker, length, file):
            yield position, 2 + length
        position += 2 + length
        if marker == 0xDA:
            # Coded pixels run up to the next marker that is neither a restart nor a stuffed byte.
            end, _ = _next_jpeg_marker(file, position)
            yield position, end - position
            position = end


def _is_jpeg_picture(marker: int, length: int, file: BinaryIO) -> bool:
    if marker == 0xFE:
        return False
    if marker == 0xE0:
        return length == 16 and _read_exactly(file, 5) == b"JFIF\x00"
    if marker == 0xEE:
        return length == 14 and _read_exactly(file, 5) == b"Adobe"
    return not 0xE0 <= marker <= 0xEF


def _next_jpeg_marker(file: BinaryIO, position: int) -> tuple[int, int]:
    while True:
        file.seek(position)
        block = file.read(_SCAN_BLOCK_BYTES)
        if len(block) < 2:
            raise EOFError
        if found := _NEXT_MARKER.search(block):
            return position + found.start(), found[0][1]
        # The last byte may be the first half of a marker.
        position += len(block) - 1


def _png_ranges(file: BinaryIO) -> Ranges | None:
    """Signature, header, pixels and end of an 8-bit RGB PNG; every ancillary chunk and what follows the end goes."""
    try:
        return _joined(_png_parts(file))
    except EOFError:
        return None


def _png_parts(file: BinaryIO) -> Iterator[tuple[int, int]]:
    yield 0, 8
    position = 8
    while True:
        file.seek(position)
        head = _read_exactly(file, 8)
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        # Pillow reads 16 bits a channel as 8 without a word; those are encoded anew.
        if name == b"IHDR" and _read_exactly(file, 10)[8:] != b"\x08\x02":
            raise EOFError
        if name in _PNG_PICTURE:
            yield position, 12 + length
        position += 12 + length
        if name == b"IEND":
            return


def _webp_ranges(file: BinaryIO) -> Ranges | None:
    """A WebP that is one simple lossy or lossless picture. The extended form is encoded anew."""
    file.seek(0)
    head = file.read(20)
    if len(head) < 20 or head[12:16] not in (b"VP8 ", b"VP8L"):
        return None
    whole = 8 + int.from_bytes(head[4:8], "little")
    chunk = int.from_bytes(head[16:20], "little")
    # Anything in the container behind the one picture would be metadata.
    return ((0, whole),) if whole == 20 + chunk + chunk % 2 else None


def _read_exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise EOFError
    return data
