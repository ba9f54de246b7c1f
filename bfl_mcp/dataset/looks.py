"""What a decoded picture looks like, in a few numbers measured once for all checks. Pillow alone, no arrays."""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from PIL import Image

MEASURED_SIDE_PX: Final = 256
"""Pictures are measured at this length of the longer side, so that numbers of different sizes compare."""

_TILE_PX: Final = 32
_SHARP_SHARE: Final = 0.9
_GPS: Final = 0x8825

# What JPEG makes of the channels of a grey picture.
_GREY_STEPS: Final = 6


@dataclass(frozen=True, slots=True)
class Look:
    """One picture as it came: its size once upright, its kind, and what was measured at `MEASURED_SIDE_PX`."""

    width: int
    height: int
    mode: str
    form: str
    """Its format by content, as `identify` names it."""
    is_deep: bool
    """Whether it has 16 bits a channel."""
    is_turned: bool
    is_animated: bool
    transparent_share: float
    """Share of its pixels, 0-1, through which something shines that can be seen (alpha below 250 of 255)."""
    has_metadata: bool
    has_position: bool
    """Whether its EXIF says where it was taken."""
    has_profile: bool
    """Whether it brings a colour profile other than sRGB."""
    sharpness: float
    """90th percentile of the variances of the Laplacian over tiles of 32 px; what is out of focus stays low."""
    contrast: float
    """Standard deviation of the grey values, 0-127."""
    brightness: float
    """Mean of the grey values, 0-255."""
    is_grey: bool
    """Whether it has no colours, in whatever mode it came."""
    pixels_sha256: str
    """The same for the same picture at that size, whatever it was coded in."""
    dhash: int
    """64 bits, one for each neighbour to the right that is darker; similar pictures differ in few."""
    dhash_down: int
    """The same with the neighbours below."""


def measure(picture: "Image.Image") -> dict[str, Any]:
    """The measured part of a `Look`: sharpness, contrast, brightness, is_grey, pixels_sha256, dhash, dhash_down.

    Args:
        picture: Any mode that Pillow can show as grey, at least `MEASURED_SIDE_PX` long unless the original is smaller.
    """
    from PIL import Image, ImageStat

    small = _resized(picture, MEASURED_SIDE_PX)
    grey = small if small.mode == "L" else small.convert("L")
    colours = small.convert("RGB")
    stat = ImageStat.Stat(grey)
    return {
        "sharpness": _sharpness(grey),
        "contrast": stat.stddev[0],
        "brightness": stat.mean[0],
        "is_grey": _is_grey(colours),
        "pixels_sha256": hashlib.sha256(repr(small.size).encode() + colours.tobytes()).hexdigest(),
        "dhash": _hash_differences(grey),
        "dhash_down": _hash_differences(grey.transpose(Image.Transpose.TRANSPOSE)),
    }


def has_position(image: "Image.Image") -> bool:
    """Whether the picture's EXIF holds a place on earth."""
    try:
        return bool(image.getexif().get_ifd(_GPS))
    except Exception:  # noqa: BLE001 - Pillow's EXIF reader raises many things on broken blocks
        return False


def _hash_differences(grey: "Image.Image") -> int:
    from PIL import Image

    tiny = grey.resize((9, 8), Image.Resampling.BOX).tobytes()
    bits = 0
    for row in range(8):
        for column in range(8):
            bits = bits << 1 | (tiny[row * 9 + column] > tiny[row * 9 + column + 1])
    return bits


def _is_grey(colours: "Image.Image") -> bool:
    from PIL import ImageChops

    red, green, blue = colours.split()
    return all(
        ImageChops.difference(green, other).point(lambda step: 255 * (step > _GREY_STEPS)).getbbox() is None
        for other in (red, blue)
    )


def _resized(picture: "Image.Image", side: int) -> "Image.Image":
    from PIL import Image

    scale = side / max(picture.size)
    if scale >= 1:
        return picture
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    # Whole pixels are averaged first: sharpness is about what is left of edges, and costs nothing so.
    return picture.resize(
        size, Image.Resampling.BOX if picture.mode in ("1", "P") else Image.Resampling.LANCZOS, reducing_gap=1.1
    )


def _sharpness(grey: "Image.Image") -> float:
    from PIL import ImageFilter

    edges = grey.filter(ImageFilter.Kernel((3, 3), (0, 1, 0, 1, -4, 1, 0, 1, 0), scale=1, offset=128))
    # The frame has no neighbours on one side.
    inner = edges.crop((1, 1, max(2, edges.width - 1), max(2, edges.height - 1)))
    variances = sorted(
        _variance(inner.crop((left, top, left + _TILE_PX, top + _TILE_PX)))
        for top in range(0, max(1, inner.height - _TILE_PX + 1), _TILE_PX)
        for left in range(0, max(1, inner.width - _TILE_PX + 1), _TILE_PX)
    )
    return variances[min(int(len(variances) * _SHARP_SHARE), len(variances) - 1)]


def _variance(tile: "Image.Image") -> float:
    from PIL import ImageStat

    return float(ImageStat.Stat(tile).var[0])
