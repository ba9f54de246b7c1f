"""Any mode and profile of a picture → 8-bit sRGB, alpha laid on white."""

import functools
from io import BytesIO
from typing import TYPE_CHECKING, Final

from bfl_mcp.errors import DatasetError

if TYPE_CHECKING:
    from PIL import Image

# Of 255. The many profiles that are called sRGB differ by rounding.
_ALIKE_STEPS: Final = 4


def to_srgb(image: "Image.Image", profile: bytes | None) -> "Image.Image":
    """Convert any mode to 8-bit sRGB, alpha laid on white."""
    if image.mode.startswith("I"):
        image = _from_integers(image)
    elif image.mode == "F":
        raise DatasetError("it holds floating-point pixels; export it as 8-bit JPEG or PNG")
    elif "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = _on_white(image)
    elif image.mode == "P":
        image = image.convert("RGB")
    if profile and image.mode in ("RGB", "L", "CMYK"):
        converted = _apply_profile(image, profile)
        if converted is not None:
            return converted
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_integers(image: "Image.Image") -> "Image.Image":
    wide = image.convert("I")
    _, top = wide.getextrema()
    if image.mode == "I" and isinstance(top, int | float) and top <= 255:
        # 32-bit integers that were 8-bit values before.
        return wide.convert("L")
    if not isinstance(top, int | float) or top > 65_535:
        raise DatasetError("it holds more than 16 bits a pixel; export it as 8-bit JPEG or PNG")
    # 65 535 becomes 255: one step of 8 bits is 257 steps of 16.
    return wide.point(lambda value: value * (1 / 257) + 0.5).convert("L")


def _on_white(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    layer = image.convert("RGBA")
    white = Image.new("RGB", layer.size, "white")
    # The same pixels as alpha_composite, which holds the interpreter's lock all the while.
    white.paste(layer, mask=layer)
    return white


def _apply_profile(image: "Image.Image", profile: bytes) -> "Image.Image | None":
    """Convert from an ICC profile to sRGB. None where the profile is broken or made for other channels."""
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if image.mode == "RGB" and is_srgb(profile):
            return image
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


@functools.lru_cache(maxsize=32)
def is_srgb(profile: bytes) -> bool:
    """Whether a profile means the same colours as sRGB, whatever it is called. One that cannot be read says nothing."""
    from PIL import Image, ImageChops, ImageCms

    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if source.profile.xcolor_space.strip() != "RGB":
            return False
        levels = range(0, 256, 51)
        cube = bytes(value for red in levels for green in levels for blue in levels for value in (red, green, blue))
        probe = Image.frombytes("RGB", (36, 6), cube)
        shown = ImageCms.profileToProfile(probe, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return True
    if shown is None:
        return True
    return max(ImageChops.difference(probe, shown).tobytes()) <= _ALIKE_STEPS
