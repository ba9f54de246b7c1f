"""Pictures to look at: a contact sheet of numbered tiles, or one image large. JPEG, small enough for any host."""

import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from bfl_mcp.dataset.findings import Severity
from bfl_mcp.dataset.images import open_upright
from bfl_mcp.errors import DatasetError

if TYPE_CHECKING:
    from PIL import Image

TILES_A_PAGE: Final = 12
MAX_BYTES: Final = 700_000
"""Hosts drop or move larger images."""

_COLUMNS: Final = 4
_TILE_PX: Final = 384
_LABEL_PX: Final = 34
_GAP_PX: Final = 10
_LARGE_PX: Final = 1400
_PAPER: Final = (246, 246, 244)
_INK: Final = (28, 28, 30)
# Pillow's own font lacks even umlauts. These come with systems, widest first; of others names are written plainly.
_FONTS: Final = (
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
    "msyh.ttc",
    "PingFang.ttc",
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "segoeui.ttf",
    "Arial.ttf",
    "Helvetica.ttc",
)
_IN_NO_FONT: Final = "\U0010fffe"

_FRAME: Final[dict[Severity | None, tuple[int, int, int]]] = {
    None: (206, 206, 202),
    "info": (206, 206, 202),
    "warning": (224, 148, 22),
    "fault": (206, 42, 42),
}


@dataclass(frozen=True, slots=True)
class Tile:
    """An image of the sheet: its number in the dataset, its name, and the worst that was found about it."""

    number: int
    name: str
    worst: Severity | None


def draw_sheet(tiles: Sequence[Tile], sources: Sequence[BinaryIO | None]) -> bytes:
    """A contact sheet as JPEG. A source that is None, or does not decode, shows as an empty tile.

    Args:
        tiles: At most `TILES_A_PAGE`, in the order they are shown.
        sources: The open files of the tiles' images.
    """
    from PIL import Image, ImageDraw

    columns = min(_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    width = columns * (_TILE_PX + _GAP_PX) + _GAP_PX
    height = rows * (_TILE_PX + _LABEL_PX + _GAP_PX) + _GAP_PX
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, (tile, source) in enumerate(zip(tiles, sources, strict=True)):
        row, column = divmod(place, columns)
        left = _GAP_PX + column * (_TILE_PX + _GAP_PX)
        top = _GAP_PX + row * (_TILE_PX + _LABEL_PX + _GAP_PX)
        _draw_tile(sheet, draw, tile, source, (left, top))
    return _as_jpeg(sheet)


def draw_large(source: BinaryIO) -> bytes:
    """One image, as large as a host takes it, as JPEG.

    Raises:
        DatasetError: It does not decode. The message has no file name.
    """
    return _as_jpeg(open_upright(source, _LARGE_PX))


def _draw_tile(sheet: "Image.Image", draw: Any, tile: Tile, source: BinaryIO | None, corner: tuple[int, int]) -> None:
    left, top = corner
    box = (left, top, left + _TILE_PX - 1, top + _TILE_PX - 1)
    draw.rectangle(box, fill=(255, 255, 255))
    try:
        if source is None:
            raise DatasetError("it cannot be read")
        picture = open_upright(source, _TILE_PX)
        sheet.paste(picture, (left + (_TILE_PX - picture.width) // 2, top + (_TILE_PX - picture.height) // 2))
    except DatasetError:
        draw.line(box, fill=_FRAME["fault"], width=3)
        draw.line((box[0], box[3], box[2], box[1]), fill=_FRAME["fault"], width=3)
    draw.rectangle(box, outline=_FRAME[tile.worst], width=6 if tile.worst in ("warning", "fault") else 1)
    number = str(tile.number)
    font = _font(24)
    badge = draw.textlength(number, font=font) + 18
    draw.rectangle((left, top, left + badge, top + 34), fill=_INK)
    draw.text((left + 9, top + 17), number, font=font, fill=(255, 255, 255), anchor="lm")
    font, name = _named(tile.name, 20)
    label = _fitting(draw, name, font, _TILE_PX)
    draw.text((left, top + _TILE_PX + _LABEL_PX // 2), label, font=font, fill=_INK, anchor="lm")


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _named(name: str, size: int) -> tuple[Any, str]:
    """A font and a name that it can write: in full where any font of the system can, else in letters of ours."""
    font = _font(size)
    if _can_write(font, name):
        return font, name
    for other in _system_fonts(size):
        if _can_write(other, name):
            return other, name
    plain = "".join(char for char in unicodedata.normalize("NFKD", name) if not unicodedata.combining(char))
    return font, "".join(char if char.isascii() else "·" for char in plain)


def _can_write(font: Any, text: str) -> bool:
    """Whether a font has a sign of its own for each letter; what it lacks looks like what no font has."""
    lacking = _drawn(font, _IN_NO_FONT)
    return all(char.isascii() or _drawn(font, char) != lacking for char in text)


def _drawn(font: Any, char: str) -> tuple[Any, bytes]:
    mask = font.getmask(char)
    return mask.size, bytes(mask)


@functools.cache
def _system_fonts(size: int) -> tuple[Any, ...]:
    from PIL import ImageFont

    found = []
    for name in _FONTS:
        try:
            found.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return tuple(found)


def _fitting(draw: Any, name: str, font: Any, width: int) -> str:
    """The name, with its middle left out where it is too wide: both ends tell files apart."""
    if draw.textlength(name, font=font) <= width:
        return name
    for kept in range(len(name) - 2, 1, -1):
        short = f"{name[: kept - kept // 2]}…{name[len(name) - kept // 2 :]}"
        if draw.textlength(short, font=font) <= width:
            return short
    return "…"


def _as_jpeg(picture: "Image.Image") -> bytes:
    data = b""
    for quality in (88, 78, 66, 50, 35):
        buffer = BytesIO()
        picture.save(buffer, "JPEG", quality=quality, optimize=True)
        data = buffer.getvalue()
        if len(data) <= MAX_BYTES:
            break
    return data
