"""What the tests of the dataset share: files written by hand where Pillow cannot, and one way to pack and compare."""

import struct
import zipfile
import zlib
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageStat

from bfl_mcp.dataset.archive import pack_dataset
from bfl_mcp.dataset.folder import read_dataset
from bfl_mcp.dataset.images import reads_heic
from bfl_mcp.errors import DatasetError

_ADOBE_TO_XYZ = ((0.60974, 0.20528, 0.14919), (0.31111, 0.62567, 0.06322), (0.01947, 0.06087, 0.74457))
_XYZ_TO_SRGB = (
    (3.1338561, -1.6168667, -0.4906146),
    (-0.9787684, 1.9161415, 0.033454),
    (0.0719453, -0.2289914, 1.4052427),
)
_ADOBE_GAMMA = 563 / 256


def pack(folder: Path, max_images: int = 100, max_megapixels: float = 1.0) -> dict[str, bytes]:
    """What lies in the archive of a folder, by name."""
    with read_dataset(folder) as dataset:
        archive = pack_dataset(dataset, max_images=max_images, max_megapixels=max_megapixels)
    with closing(archive), zipfile.ZipFile(archive.file) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def pack_one(folder: Path, name: str, data: bytes, max_megapixels: float = 1.0) -> tuple[str, bytes]:
    """The one entry of a folder that holds nothing but this file."""
    (folder / name).write_bytes(data)
    ((entry, packed),) = pack(folder, max_megapixels=max_megapixels).items()
    return entry, packed


def refusal(folder: Path, max_images: int = 100) -> DatasetError:
    """What packing a folder is refused with."""
    with pytest.raises(DatasetError) as refused:
        pack(folder, max_images)
    return refused.value


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def heic(image: Image.Image, **options: Any) -> bytes:
    """As a phone writes it."""
    assert reads_heic()
    return encode(image, "HEIF", quality=95, **options)


def decode(data: bytes) -> Image.Image:
    image = Image.open(BytesIO(data))
    image.load()
    return image


def difference(one: Image.Image, other: Image.Image) -> float:
    """The mean absolute difference of the worst channel, in steps of 8 bits."""
    assert one.size == other.size
    return max(ImageStat.Stat(ImageChops.difference(one.convert("RGB"), other.convert("RGB"))).mean)


def png(size: tuple[int, int], depth: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG of any header; `rows` are the unfiltered samples, each row behind its filter byte."""
    header = struct.pack(">IIBBBBB", *size, depth, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(name, data) for name, data in chunks)


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_chunks(data: bytes) -> list[bytes]:
    """The names of a PNG's chunks; fails on anything behind the last one."""
    names, position = [], 8
    while position < len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        names.append(name)
        position += 12 + length
    assert position == len(data)
    return names


def adobe_profile(name: bytes = b"Wide gamut of a test") -> bytes:
    """An ICC profile of the wide gamut of Adobe RGB (1998), whatever it calls itself."""
    name += b"\x00"
    tags = {
        b"desc": b"desc" + struct.pack(">II", 0, len(name)) + name + bytes(78),
        b"wtpt": _xyz(0.9642, 1.0, 0.8249),
        b"rTRC": b"curv" + struct.pack(">IIH", 0, 1, 563),
    }
    for column, colour in enumerate("rgb"):
        tags[f"{colour}XYZ".encode()] = _xyz(*(row[column] for row in _ADOBE_TO_XYZ))
        tags[f"{colour}TRC".encode()] = tags[b"rTRC"]
    table, body = struct.pack(">I", len(tags)), b""
    for tag, data in tags.items():
        padded = data + bytes(-len(data) % 4)
        table += struct.pack(">4sII", tag, 132 + 12 * len(tags) + len(body), len(data))
        body += padded
    head = struct.pack(
        ">I4sI4s4s4s12x4s28x", 128 + len(table) + len(body), b"", 0x02100000, b"mntr", b"RGB ", b"XYZ ", b"acsp"
    )
    illuminant = _xyz(0.9642, 1.0, 0.8249)[8:]
    return (head + illuminant).ljust(128, b"\x00") + table + body


def _xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65_536) for value in values))


def adobe_to_srgb(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """The sRGB values of a colour in Adobe RGB, from the two specifications and not from a colour library."""
    linear = [(value / 255) ** _ADOBE_GAMMA for value in colour]
    xyz = [_dot(row, linear) for row in _ADOBE_TO_XYZ]
    red, green, blue = (_srgb_value(_dot(row, xyz)) for row in _XYZ_TO_SRGB)
    return red, green, blue


def _dot(row: tuple[float, ...], values: list[float]) -> float:
    return sum(weight * value for weight, value in zip(row, values, strict=True))


def _srgb_value(linear: float) -> int:
    linear = min(max(linear, 0.0), 1.0)
    return round(255 * (12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055))
