"""One image file: what it is by content, whether it decodes, and its clean form for training.

Clean means: upright, sRGB, 8 bits a channel, no alpha, no metadata, at most so many megapixels. Where a JPEG, PNG or
WebP is all that already, its coded pixels are kept as they are; metadata is then cut out without coding the picture
again.
"""

import functools
import math
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from bfl_mcp.contract import MEGAPIXEL
from bfl_mcp.dataset.colour import is_srgb, to_srgb
from bfl_mcp.dataset.kept import Ranges, picture_ranges
from bfl_mcp.dataset.looks import MEASURED_SIDE_PX, Look, has_position, measure
from bfl_mcp.errors import DatasetError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES: Final = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}
"""The formats a dataset may hold, as BFL's guide lists them, with the suffix they get in an archive."""

HEAD_BYTES: Final = 64
"""How much of a file `identify` wants to see."""

_ARCHIVES: Final = (b"PK\x03\x04", b"PK\x05\x06", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07", b"\x1f\x8b")
_TIFF: Final = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_LOSSLESS: Final = frozenset({"PNG", "BMP", "GIF", "TIFF"})

_ORIENTATION: Final = 0x0112
_UPRIGHT: Final = 1
_TURNED: Final = range(2, 9)
_ON_ITS_SIDE: Final = range(5, 9)
# Share of neighbours of exactly one colour. Measured: photographs have up to 0.64 where much is out of focus, drawings
# of flat colours 0.8 and more.
_FLAT_SHARE: Final = 0.8
_FLAT_ROWS: Final = 64

# Alpha from here on looks solid: what is left of edges and of rounding lies above it.
_SOLID_ALPHA: Final = 250

_METADATA: Final = frozenset({"exif", "comment", "photoshop", "xmp", "Software", "iptc"})

# A JPEG is decoded at 1.5 times the wanted size or more: what that costs in detail is a fraction of what coding it
# again costs, and it saves most of the time and memory.
_DRAFT_MARGIN: Final = 1.5

# So many pixels are in memory at a time, at 4 to 8 bytes each, whatever the number of cores. A single larger picture
# waits until it is alone.
_PIXELS_AT_A_TIME: Final = 32_000_000

# The longest side libjpeg writes.
_MAX_SIDE_PX: Final = 65_500


class NoRoomError(DatasetError):
    """The folder for temporary files takes no more. Half a sentence: it is no fault of any image."""


class HugeImageError(DatasetError):
    """It has more pixels than are read. Half a sentence."""


class _PixelBudget:
    """Lets pictures into memory as long as their pixels fit together."""

    def __init__(self, pixels: int) -> None:
        self._free = self._limit = pixels
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Wait until there is room, and keep it for the block."""
        pixels = min(pixels, self._limit)
        with self._changed:
            self._changed.wait_for(lambda: pixels <= self._free)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


_budget = _PixelBudget(_PIXELS_AT_A_TIME)


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """A picture ready for training: either encoded anew, or parts of its own file."""

    suffix: str
    look: Look
    encoded: bytes | None = None
    kept: Ranges = ()


def identify(head: bytes) -> str | None:
    """Name what a file is from its first `HEAD_BYTES` bytes.

    Returns Pillow's format name for what can be read, "HEIC", "archive", or None for anything else.
    """
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith(_TIFF):
        return "TIFF"
    # Bytes 6-9 of a bitmap are reserved and zero, which tells it from a text that starts with "BM".
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return "BMP"
    if head[4:8] == b"ftyp":
        brands = head[8:]
        if b"avif" in brands or b"avis" in brands:
            return "AVIF"
        if any(brand in brands for brand in (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")):
            return "HEIC"
        return None
    return "archive" if head.startswith(_ARCHIVES) else None


@functools.cache
def reads_heic() -> bool:
    """Whether HEIC, the iPhone's format, can be read: with the extra `heif` of this package."""
    try:
        import pillow_heif
    except ImportError:
        return False
    # The cores are shared out here already, picture by picture.
    pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    return True


def prepare_image(file: BinaryIO, max_megapixels: float) -> PreparedImage:
    """Check one picture by decoding it, and bring it into its clean form. 0 megapixels keeps the size.

    Raises:
        DatasetError: It does not decode. The message has no file name: "it is cut short …".
    """
    form = _rewind_and_identify(file)
    try:
        with _open(file, form) as image:
            original = image.size
            _check_pixels(original)
            is_deep = _is_deep(image)
            size = _target_size(original, max_megapixels)
            with _budget.hold(_pixels_to_decode(image, form, size)):
                kept = _kept_ranges(file, form, image) if size == original else None
                facts = {**_facts(image, form), "is_deep": is_deep}
                if kept is None:
                    return _encode(image, form, size, facts)
                _decode_cheaply(image, MEASURED_SIDE_PX)
                return PreparedImage(SUFFIXES[form], Look(**facts, transparent_share=0.0, **measure(image)), kept=kept)
    except DatasetError:
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise almost anything on damaged files
        raise _damage(form, error) from None


def open_upright(file: BinaryIO, longer_side: int) -> "Image.Image":
    """Decode one picture to look at: upright, sRGB, no side longer than `longer_side` px, never enlarged.

    Raises:
        DatasetError: It does not decode.
    """
    form = _rewind_and_identify(file)
    try:
        with _open(file, form) as image:
            _check_pixels(image.size)
            scale = min(longer_side / max(image.size), 1.0)
            size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
            with _budget.hold(_pixels_to_decode(image, form, size)):
                return _prepare_picture(image, size)
    except DatasetError:
        raise
    except Exception as error:  # noqa: BLE001 - as above
        raise _damage(form, error) from None


def read_upright_size(file: BinaryIO) -> tuple[int, int]:
    """Width and height of one picture as it is seen upright, without decoding more than they take.

    Raises:
        DatasetError: Its head does not decode.
    """
    form = _rewind_and_identify(file)
    try:
        with _open(file, form) as image:
            return _upright_size(image)
    except DatasetError:
        raise
    except Exception as error:  # noqa: BLE001 - as above
        raise _damage(form, error) from None


def check_image(file: BinaryIO) -> str:
    """Decode one picture of a finished dataset and return its suffix.

    Raises:
        DatasetError: It is no JPEG, PNG or WebP, or does not decode.
    """
    form = _rewind_and_identify(file)
    if form not in SUFFIXES:
        raise DatasetError(f"it is {form}; training takes JPEG, PNG and WebP")
    try:
        with _open(file, form) as image:
            _check_pixels(image.size)
            with _budget.hold(_pixels_to_decode(image, form, image.size)):
                _decode_cheaply(image)
    except DatasetError:
        raise
    except Exception as error:  # noqa: BLE001 - as above
        raise _damage(form, error) from None
    return SUFFIXES[form]


def _open(file: BinaryIO, form: str) -> "Image.Image":
    from PIL import Image

    return Image.open(file, formats=("HEIF" if form == "HEIC" else form,))


def _rewind_and_identify(file: BinaryIO) -> str:
    file.seek(0)
    form = identify(file.read(HEAD_BYTES))
    file.seek(0)
    if form is None or form == "archive" or (form == "HEIC" and not reads_heic()):
        raise DatasetError("it is not an image that can be read")
    return form


def _damage(form: str, error: Exception) -> DatasetError:
    from PIL import Image

    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return HugeImageError(f"it has more than {_pixel_limit() / 1e6:.0f} megapixels; make it smaller first")
    if isinstance(error, EOFError) or "truncated" in str(error):
        return DatasetError(f"it is cut short: the {form} ends before its picture does")
    return DatasetError(f"it is damaged: the {form} cannot be decoded")


def _pixel_limit() -> int:
    """Pillow's guard against decompression bombs, below which it says nothing."""
    from PIL import Image

    return Image.MAX_IMAGE_PIXELS or 1 << 62


def _check_pixels(size: tuple[int, int]) -> None:
    width, height = size
    if max(size) > _MAX_SIDE_PX:
        raise HugeImageError(f"it is {width} × {height}; no side may be longer than {_MAX_SIDE_PX} pixels")
    if width * height > _pixel_limit():
        raise HugeImageError(
            f"it has {width * height / 1e6:.0f} megapixels ({width} × {height}); "
            f"at most {_pixel_limit() / 1e6:.0f} are read: make it smaller first"
        )


def _target_size(size: tuple[int, int], max_megapixels: float) -> tuple[int, int]:
    width, height = size
    limit = max_megapixels * MEGAPIXEL
    if not limit or width * height <= limit:
        return size
    scale = math.sqrt(limit / (width * height))
    return max(1, math.floor(width * scale)), max(1, math.floor(height * scale))


def _pixels_to_decode(image: "Image.Image", form: str, size: tuple[int, int]) -> int:
    """How many pixels will be in memory at once. Baseline JPEGs are decoded smaller where their size is not needed."""
    width, height = image.size
    if form != "JPEG" or image.info.get("progressive"):
        return width * height
    if size == image.size:
        whole = image.mode != "RGB" or _orientation(image) != _UPRIGHT
        return width * height if whole else width * height // 64
    scale = next(scale for scale in (8, 4, 2, 1) if scale == 1 or width >= size[0] * _DRAFT_MARGIN * scale)
    return width * height // scale**2


def _decode_cheaply(image: "Image.Image", longer_side: int = 1) -> None:
    """Decode every byte, as small as the format allows down to an eighth, but no smaller than `longer_side`."""
    scale = max(longer_side / max(image.size), 1 / 8)
    image.draft("RGB", (max(1, int(image.width * scale)), max(1, int(image.height * scale))))
    image.load()


def _facts(image: "Image.Image", form: str) -> dict[str, Any]:
    """What a picture is before it is changed: the part of a `Look` that is not measured."""
    profile = image.info.get("icc_profile")
    # A HEIC is turned by its decoder, and so is its size.
    turned = _orientation(image) != _UPRIGHT or image.info.get("original_orientation") in _TURNED
    width, height = _upright_size(image)
    return {
        "width": width,
        "height": height,
        "mode": image.mode,
        "is_turned": turned,
        # The second picture of a JPEG is its depth, or its other eye.
        "is_animated": form != "JPEG" and bool(getattr(image, "is_animated", False)),
        "form": form,
        "has_metadata": bool(_METADATA & image.info.keys()),
        "has_position": has_position(image),
        "has_profile": profile is not None and not is_srgb(profile),
    }


def _upright_size(image: "Image.Image") -> tuple[int, int]:
    width, height = image.size
    # Of a TIFF Pillow tells the size as it will be, once it is turned.
    on_its_side = image.format != "TIFF" and _orientation(image) in _ON_ITS_SIDE
    return (height, width) if on_its_side else (width, height)


def _kept_ranges(file: BinaryIO, form: str, image: "Image.Image") -> Ranges | None:
    """The parts of a file that are its picture already in clean form, or None where it must be encoded anew."""
    profile = image.info.get("icc_profile")
    plain = image.mode == "RGB" and "transparency" not in image.info
    if not plain or _orientation(image) != _UPRIGHT or (profile and not is_srgb(profile)):
        return None
    return picture_ranges(file, form)


def _encode(image: "Image.Image", form: str, size: tuple[int, int], facts: dict[str, Any]) -> PreparedImage:
    picture = _prepare_picture(image, size)
    suffix, data = _code(picture, lossless=form in _LOSSLESS, flat=form in _LOSSLESS and _has_flat_colour(image))
    look = Look(**facts, transparent_share=_transparent_share(image), **measure(picture))
    return PreparedImage(suffix, look, encoded=data)


def _transparent_share(image: "Image.Image") -> float:
    """How much of a decoded picture lets the paper shine through."""
    if "transparency" in image.info and "A" not in image.mode:
        image = image.convert("RGBA")
    if image.mode == "LAB" or "A" not in image.getbands():
        return 0.0
    return sum(image.getchannel("A").histogram()[:_SOLID_ALPHA]) / (image.width * image.height)


def _is_deep(image: "Image.Image") -> bool:
    # Pillow reads 16 bits a channel of a colour picture as 8 without a word; how it will is told before it does.
    return "16" in image.mode or any(";16" in str(tile[3]) for tile in image.tile)  # type: ignore[attr-defined]


def _prepare_picture(image: "Image.Image", size: tuple[int, int]) -> "Image.Image":
    """The picture at a size (before it is turned), upright, in sRGB, without anything beside its pixels."""
    from PIL import Image

    profile = image.info.get("icc_profile")
    image.draft("RGB", (math.ceil(size[0] * _DRAFT_MARGIN), math.ceil(size[1] * _DRAFT_MARGIN)))
    image.load()
    # Only now: Pillow turns a TIFF while it loads it.
    turn = _orientation_transpose(image)
    # These modes can be resized as they are, which leaves fewer pixels to convert. A transparent colour cannot: mixed
    # with its neighbours it is another colour.
    small_first = image.mode in ("RGB", "L", "CMYK") and "transparency" not in image.info
    picture: Image.Image = image if small_first else to_srgb(image, profile)
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    if small_first:
        picture = to_srgb(picture, profile)
    if turn is not None:
        picture = picture.transpose(turn)
    # Pillow's encoders pick comments, profiles and transparency up from here.
    picture.info = {}
    return picture


def _code(picture: "Image.Image", *, lossless: bool, flat: bool) -> tuple[str, bytes]:
    """JPEG at quality 95 without chroma subsampling; PNG where the source was lossless and PNG is smaller, or flat.

    Edges between flat colours are where JPEG leaves its marks. Huffman tables are not optimised: it takes twice the
    time to save 3 of 100 bytes (measured on twelve photographs).
    """
    if flat:
        return ".png", _coded(picture, "PNG")
    jpeg = _coded(picture, "JPEG", quality=95, subsampling=0)
    if lossless:
        png = _coded(picture, "PNG")
        if len(png) < len(jpeg):
            return ".png", png
    return ".jpg", jpeg


def _has_flat_colour(image: "Image.Image") -> bool:
    """Whether a decoded picture is drawn rather than photographed: most pixels are like the one beside them."""
    from PIL import Image, ImageChops

    # Whole rows, so that neighbours stay neighbours.
    rows = image.resize((image.width, min(image.height, _FLAT_ROWS)), Image.Resampling.NEAREST).convert("RGB")
    if rows.width < 2:
        return False
    left = rows.crop((0, 0, rows.width - 1, rows.height))
    steps = ImageChops.difference(left, rows.crop((1, 0, rows.width, rows.height)))
    red, green, blue = steps.split()
    alike = ImageChops.lighter(ImageChops.lighter(red, green), blue).histogram()[0]
    return alike >= _FLAT_SHARE * steps.width * steps.height


def _coded(picture: "Image.Image", form: str, **options: Any) -> bytes:
    # Into a real file Pillow codes outside the interpreter's lock; into memory it would keep a ping waiting.
    try:
        with tempfile.TemporaryFile(prefix="bfl-mcp-") as file:
            picture.save(file, form, **options)
            file.seek(0)
            return file.read()
    except OSError as error:
        raise NoRoomError(error.strerror or str(error)) from None


def _orientation_transpose(image: "Image.Image") -> "Image.Transpose | None":
    from PIL import Image

    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    return turns.get(_orientation(image))


def _orientation(image: "Image.Image") -> int:
    if image.format == "PNG":
        # Its EXIF may stand behind the pixels, so Pillow loads them here; damage must not pass for a missing EXIF.
        image.load()
    try:
        value = image.getexif().get(_ORIENTATION, _UPRIGHT)
    except Exception:  # noqa: BLE001 - Pillow's EXIF reader raises many things on broken blocks, which are then ignored
        return _UPRIGHT
    return value if value in _TURNED else _UPRIGHT
