"""Each picture reaches the archive as what a person sees in it: upright, sRGB, 8 bits, small enough, without metadata.

The requirements are those of `bfl_mcp.dataset.images`; the pixels are compared, never the mode alone.
"""

import random
import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageCms, ImageDraw

from bfl_mcp.contract import MEGAPIXEL
from bfl_mcp.dataset.images import open_upright, read_upright_size
from bfl_mcp.errors import DatasetError
from tests.dataset.made import (
    adobe_profile,
    adobe_to_srgb,
    decode,
    difference,
    encode,
    pack,
    pack_one,
    png,
    png_chunk,
    png_chunks,
    refusal,
)
from tests.pictures import picture

_SECRET = b"SECRET-52.5200N-13.4050E"
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

_FAITHFUL: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}

# Turned like this, a picture is upright again once its orientation is applied.
_TURNED_FOR = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def _telling_exif(orientation: int | None = None) -> Image.Exif:
    """EXIF with a camera, a place and a secret."""
    exif = Image.Exif()
    exif[0x010F] = _SECRET.decode()
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0), 29: _SECRET.decode()})
    if orientation is not None:
        exif[0x0112] = orientation
    return exif


def _drawing(width: int, height: int) -> Image.Image:
    """Thin lines on a soft ground, which show every difference between two ways of shrinking."""
    chance = random.Random(7)
    image = picture(width, height, seed=3)
    pen = ImageDraw.Draw(image)
    for _ in range(100):
        ends = [chance.randrange(side) for side in (width, height, width, height)]
        pen.line(ends, fill=(*chance.randbytes(3),), width=chance.randrange(2, 12))
    return image


def _with_alpha(image: Image.Image, mode: str = "RGBA") -> tuple[Image.Image, Image.Image]:
    """A picture that fades out from left to right, and what it looks like on white paper."""
    fading = Image.linear_gradient("L").rotate(90).resize(image.size)
    clear = image.convert(mode)
    clear.putalpha(fading)
    white = Image.new("RGB", image.size, "white")
    return clear, Image.composite(image.convert(mode[:-1]).convert("RGB"), white, fading)


# --- kept as they are -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "options", "suffix"),
    [
        ("JPEG", {"quality": 83}, ".jpg"),
        ("JPEG", {"progressive": True}, ".jpg"),
        ("JPEG", {"restart_marker_rows": 1}, ".jpg"),
        ("PNG", {}, ".png"),
        ("WEBP", {}, ".webp"),
        ("WEBP", {"lossless": True}, ".webp"),
    ],
)
def test_a_clean_picture_goes_in_byte_for_byte(tmp_path: Path, form: str, options: dict[str, Any], suffix: str) -> None:
    """Coding a good picture again would only lose detail."""
    data = encode(picture(), form, **options)

    assert pack_one(tmp_path, "a" + suffix, data) == ("001" + suffix, data)


def test_a_drawing_stays_a_png_and_a_photograph_becomes_a_jpeg(tmp_path: Path) -> None:
    """JPEG leaves marks at the edges of flat colours, and PNG takes several times the room for a photograph."""
    chance = random.Random(3)
    drawn = Image.new("RGB", (1600, 1200), (250, 240, 200))
    pen = ImageDraw.Draw(drawn)
    for _ in range(300):
        x, y = chance.randrange(1600), chance.randrange(1200)
        pen.ellipse((x, y, x + 90, y + 90), fill=(*chance.randbytes(3),))
    photographed = Image.blend(picture(1600, 1200), Image.effect_noise((1600, 1200), 90).convert("RGB"), 0.3)
    (tmp_path / "drawn").mkdir()
    (tmp_path / "photographed").mkdir()

    kept, packed = pack_one(tmp_path / "drawn", "a.png", encode(drawn, "PNG"))
    coded, _ = pack_one(tmp_path / "photographed", "a.png", encode(photographed, "PNG"))

    assert (kept, coded) == ("001.png", "001.jpg")
    assert difference(decode(packed), drawn.resize(decode(packed).size, Image.Resampling.LANCZOS)) == 0


@pytest.mark.parametrize(("form", "suffix"), [("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp")])
def test_the_content_of_a_file_counts_and_not_its_suffix(tmp_path: Path, form: str, suffix: str) -> None:
    """Misnamed pictures are common; the archive names them for what they are."""
    data = encode(picture(), form)
    wrong = {".jpg": "a.png", ".png": "a.webp", ".webp": "a.jpeg"}[suffix]

    assert pack_one(tmp_path, wrong, data) == ("001" + suffix, data)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_keeps_its_coded_pixels_and_loses_its_metadata(tmp_path: Path, progressive: bool) -> None:
    """A place, a camera or a hidden second file must not leave the machine; the picture need not suffer for it."""
    packet = b"<x:xmpmeta>" + _SECRET + b"</x:xmpmeta>"
    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(_SECRET)) + _SECRET
    data = encode(
        picture(), "JPEG", exif=_telling_exif(), xmp=packet, icc_profile=_SRGB, dpi=(72, 72), progressive=progressive
    )
    data = data[:-2] + comment + data[-2:] + _SECRET

    name, packed = pack_one(tmp_path, "a.jpg", data)

    image = decode(packed)
    assert name == "001.jpg"
    assert image.tobytes() == decode(data).tobytes()
    assert _SECRET not in packed
    assert packed.endswith(b"\xff\xd9")
    assert not {"exif", "xmp", "icc_profile", "comment"} & image.info.keys()


def test_a_png_keeps_its_coded_pixels_and_loses_its_metadata(tmp_path: Path) -> None:
    """Text chunks hold whole prompts and editing histories; EXIF may even stand behind the pixels."""
    data = encode(picture(), "PNG", exif=_telling_exif(), icc_profile=_SRGB, dpi=(72, 72))
    end = data.index(b"IEND") - 4
    late = b"".join(png_chunk(name, b"Comment\x00" + _SECRET) for name in (b"tEXt", b"zzZz"))
    data = data[:end] + late + data[end:] + _SECRET

    name, packed = pack_one(tmp_path, "a.png", data)

    assert name == "001.png"
    assert decode(packed).tobytes() == decode(data).tobytes()
    assert set(png_chunks(packed)) == {b"IHDR", b"IDAT", b"IEND"}
    assert _SECRET not in packed


@pytest.mark.parametrize("orientation", [1, 0, 9])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_an_orientation_that_turns_nothing_costs_no_second_coding(tmp_path: Path, form: str, orientation: int) -> None:
    """Cameras without a sensor write 0 or 1, and only 2 to 8 mean anything."""
    data = encode(picture(), form, exif=_telling_exif(orientation))

    _, packed = pack_one(tmp_path, "a", data)

    assert decode(packed).tobytes() == decode(data).tobytes()
    assert _SECRET not in packed


@pytest.mark.parametrize("form", ["WEBP", "AVIF", "TIFF", "JPEG", "PNG"])
def test_a_picture_coded_anew_has_no_metadata_either(tmp_path: Path, form: str) -> None:
    """Pillow's encoders copy profiles and comments unless they are told not to."""
    large = picture(1200, 1000)
    data = encode(large, form, exif=_telling_exif(), icc_profile=_SRGB) + _SECRET

    name, packed = pack_one(tmp_path, "a.jpg" if form != "TIFF" else "a.tif", data)

    image = decode(packed)
    assert difference(image, large.resize(image.size, Image.Resampling.LANCZOS)) < 2.5
    assert _SECRET not in packed
    assert packed.endswith(b"\xff\xd9" if name == "001.jpg" else b"IEND\xaeB`\x82")
    assert not {"exif", "xmp", "icc_profile", "comment"} & image.info.keys()


def test_a_thumbnail_in_the_head_of_a_jpeg_is_cut_out(tmp_path: Path) -> None:
    """It may show what was cropped away from the picture."""
    data = encode(picture(), "JPEG")
    head = b"\xff\xe0" + struct.pack(">H", 16 + 24) + b"JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x08\x01" + _SECRET[:24]

    _, packed = pack_one(tmp_path, "a.jpg", data[:2] + head + data[20:])

    assert packed == data[:2] + data[20:]


def test_an_mpo_is_its_first_picture_without_the_second(tmp_path: Path) -> None:
    """Telephones append a depth map or the other eye's view behind the end of a JPEG."""
    data = encode(picture(seed=1), "MPO", save_all=True, append_images=[picture(seed=2)])

    name, packed = pack_one(tmp_path, "a.jpg", data)

    assert name == "001.jpg"
    assert decode(packed).tobytes() == decode(data).tobytes()
    assert packed.count(b"\xff\xd8\xff") == 1
    assert b"MPF" not in packed


# --- turned upright ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_the_size_is_told_as_the_picture_is_seen(tmp_path: Path, form: str, orientation: int) -> None:
    """What opens a picture, and what only asks for its size, must agree on which side is up."""
    with (tmp_path / "turned").open("w+b") as file:
        _drawing(90, 60).save(file, form, exif=_telling_exif(orientation))
        told = read_upright_size(file)
        opened = open_upright(file, 90).size

    assert told == opened == ((60, 90) if orientation >= 5 else (90, 60))


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n, cut short"], ids=["empty", "text", "cut"])
def test_what_has_no_size_says_so(content: bytes) -> None:
    """A damaged file is a fault of the dataset, in half a sentence, not one of the decoder."""
    with pytest.raises(DatasetError, match=r"^it is "):
        read_upright_size(BytesIO(content))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_every_orientation_gives_the_upright_picture(tmp_path: Path, form: str, orientation: int) -> None:
    """A trainer reads no EXIF: a picture that lies on its side would be learned like that."""
    upright = picture(160, 120, seed=3)
    turn = _TURNED_FOR[orientation]
    stored = upright if turn is None else upright.transpose(turn)
    data = encode(stored, form, exif=_telling_exif(orientation), **_FAITHFUL.get(form, {}))

    _, packed = pack_one(tmp_path, "a.tif", data)

    image = decode(packed)
    assert difference(image, upright) < 2.5
    assert 0x0112 not in image.getexif()


def test_a_turned_picture_is_shrunk_to_its_own_shape(tmp_path: Path) -> None:
    """Width and height change places; a size taken before the turn would squeeze the picture."""
    upright = picture(900, 1800, seed=3)
    data = encode(upright.transpose(Image.Transpose.ROTATE_90), "TIFF", exif=_telling_exif(6))

    _, packed = pack_one(tmp_path, "a.tif", data)

    image = decode(packed)
    assert image.width * image.height <= MEGAPIXEL
    assert image.height / image.width == pytest.approx(2, rel=0.01)
    assert difference(image, upright.resize(image.size, Image.Resampling.LANCZOS)) < 2


# --- brought to sRGB --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["AVIF", "BMP", "GIF", "TIFF"])
def test_other_formats_are_converted(tmp_path: Path, form: str) -> None:
    """Training takes JPEG, PNG and WebP; people have more than that."""
    data = encode(picture().quantize(64) if form == "GIF" else picture(), form)

    name, packed = pack_one(tmp_path, "a." + form.lower(), data)

    image = decode(packed)
    assert name == f"001.{'jpg' if image.format == 'JPEG' else 'png'}"
    assert image.mode == "RGB"
    assert difference(image, decode(data)) < 1.5


@pytest.mark.parametrize(
    ("form", "mode"),
    [
        ("JPEG", "CMYK"),
        ("TIFF", "CMYK"),
        ("JPEG", "L"),
        ("PNG", "L"),
        ("PNG", "P"),
        ("PNG", "1"),
        ("TIFF", "1"),
        ("TIFF", "YCbCr"),
    ],
)
def test_every_kind_of_pixels_becomes_rgb(tmp_path: Path, form: str, mode: str) -> None:
    """A trainer expects three channels of 8 bits, and the colours that were meant."""
    converted = picture().convert(mode)

    _, packed = pack_one(tmp_path, "a.tif", encode(converted, form))

    image = decode(packed)
    expected = picture() if mode in ("CMYK", "YCbCr") else converted.convert("RGB")
    assert image.mode == "RGB"
    assert difference(image, expected) < 2


def test_a_grey_png_of_16_bits_keeps_its_shades(tmp_path: Path) -> None:
    """Cut to their low byte or clipped at 255, 16 bits give noise or a white sheet."""
    grey = picture().convert("L")
    deep = grey.convert("I").point(lambda value: value * 257).convert("I;16")

    _, packed = pack_one(tmp_path, "a.png", encode(deep, "PNG"))

    assert difference(decode(packed), grey) < 1


def test_a_colour_png_of_16_bits_becomes_8(tmp_path: Path) -> None:
    """Pillow reads 16 bits as 8 without a word, so the file would go in as it is, half of it useless."""
    width, height = 64, 48
    samples = [[(column * 1000, row * 1300, 65_535 - column * 900) for column in range(width)] for row in range(height)]
    rows = b"".join(b"\x00" + b"".join(struct.pack(">3H", *pixel) for pixel in row) for row in samples)
    expected = Image.new("RGB", (width, height))
    expected.putdata([tuple(round(value / 257) for value in pixel) for row in samples for pixel in row])

    name, packed = pack_one(tmp_path, "a.png", png((width, height), 16, 2, rows))

    assert difference(decode(packed), expected) < 2
    assert name == "001.jpg" or packed[24] == 8


@pytest.mark.parametrize("size", [(320, 240), (1600, 1200)])
@pytest.mark.parametrize(("form", "mode"), [("PNG", "RGBA"), ("WEBP", "RGBA"), ("PNG", "LA"), ("TIFF", "RGBA")])
def test_transparent_pictures_lie_on_white(tmp_path: Path, form: str, mode: str, size: tuple[int, int]) -> None:
    """Without a ground, what is invisible comes out as whatever colour lies beneath, mostly black."""
    clear, on_white = _with_alpha(picture(*size), mode)

    _, packed = pack_one(tmp_path, "a.tif", encode(clear, form, **_FAITHFUL.get(form, {})))

    image = decode(packed)
    assert image.mode == "RGB"
    assert difference(image, on_white.resize(image.size, Image.Resampling.LANCZOS)) < 2


def test_a_transparent_colour_leaves_no_rim_where_a_picture_is_shrunk(tmp_path: Path) -> None:
    """Shrunk first, the transparent colour mixes with its neighbours and is no longer recognised."""
    clear = Image.new("RGB", (1600, 1200), "white")
    clear.paste((255, 0, 255), (301, 301, 1207, 907))

    _, packed = pack_one(tmp_path, "a.png", encode(clear, "PNG", transparency=(255, 0, 255)))

    assert decode(packed).getextrema() == ((255, 255),) * 3


def test_a_palette_with_transparent_entries_lies_on_white(tmp_path: Path) -> None:
    """Icons and stickers come like that."""
    icon = Image.new("P", (64, 64), 0)
    icon.putpalette([0, 0, 0, 200, 30, 40])
    icon.paste(1, (16, 16, 48, 48))
    expected = Image.new("RGB", (64, 64), "white")
    expected.paste((200, 30, 40), (16, 16, 48, 48))

    _, packed = pack_one(tmp_path, "a.png", encode(icon, "PNG", transparency=0))

    assert difference(decode(packed), expected) < 0.5


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_is_its_first_frame(tmp_path: Path, form: str) -> None:
    """A dataset holds stills, and the first one is what a file manager shows."""
    frames = [picture(seed=seed).quantize(64) if form == "GIF" else picture(seed=seed) for seed in range(3)]
    data = encode(frames[0], form, save_all=True, append_images=frames[1:])

    name, packed = pack_one(tmp_path, "a.tif", data)

    image = decode(packed)
    assert name in ("001.jpg", "001.png")
    assert getattr(image, "n_frames", 1) == 1
    assert difference(image, frames[0]) < 3
    assert difference(image, frames[1]) > 8


@pytest.mark.parametrize(
    ("form", "palette"),
    [("JPEG", False), ("PNG", False), ("WEBP", False), ("TIFF", False), ("PNG", True), ("TIFF", True)],
)
def test_a_wide_gamut_is_converted_to_srgb(tmp_path: Path, form: str, palette: bool) -> None:
    """Read as sRGB, the numbers of a wide gamut are dull colours."""
    colours = [(128, 128, 128), (180, 120, 90), (90, 140, 110), (100, 110, 170)]
    wide = Image.new("RGB", (64 * len(colours), 64))
    expected = wide.copy()
    for number, colour in enumerate(colours):
        wide.paste(colour, (64 * number, 0, 64 * number + 64, 64))
        expected.paste(adobe_to_srgb(colour), (64 * number, 0, 64 * number + 64, 64))
    stored = wide.quantize(8) if palette else wide

    data = encode(stored, form, icc_profile=adobe_profile(), **_FAITHFUL.get(form, {}))
    _, packed = pack_one(tmp_path, "a.tif", data)

    image = decode(packed)
    assert "icc_profile" not in image.info
    assert difference(image, expected) < 2
    assert difference(image, wide) > 3


@pytest.mark.parametrize("profile", [b"not a profile", adobe_profile()[:200]])
def test_a_broken_profile_is_dropped(tmp_path: Path, profile: bytes) -> None:
    """The picture is still the best there is."""
    data = encode(picture(), "JPEG", icc_profile=profile)

    _, packed = pack_one(tmp_path, "a.jpg", data)

    assert difference(decode(packed), decode(data)) < 1.5
    assert "icc_profile" not in decode(packed).info


# --- made smaller -----------------------------------------------------------------------------------------------------


def test_a_profile_is_what_it_does_and_not_what_it_is_called(tmp_path: Path) -> None:
    """GIMP calls one "Linear sRGB", whose pictures would go out far too dark as they are."""
    colour = (90, 200, 60)
    image = Image.new("RGB", (320, 240), colour)

    _, packed = pack_one(tmp_path, "a.png", encode(image, "PNG", icc_profile=adobe_profile(b"Wide sRGB of a test")))

    middle = decode(packed).getpixel((160, 120))
    assert isinstance(middle, tuple)
    assert all(abs(got - wanted) <= 2 for got, wanted in zip(middle, adobe_to_srgb(colour), strict=True))


def test_12_megapixels_are_shrunk_as_well_as_lanczos_can(tmp_path: Path) -> None:
    """The shortcut through a half-decoded JPEG may cost a little of what coding the result costs, and no more."""
    data = encode(_drawing(4000, 3000), "JPEG", quality=90)

    _, packed = pack_one(tmp_path, "a.jpg", data)

    image = decode(packed)
    reference = decode(data).resize(image.size, Image.Resampling.LANCZOS)
    coded = decode(encode(reference, "JPEG", quality=95, subsampling=0))
    assert 950_000 < image.width * image.height <= MEGAPIXEL
    assert image.width / image.height == pytest.approx(4 / 3, rel=0.01)
    # Measured: 1.66 against 1.40. A box filter gives 1.81, nearest pixels 3.17, a detour through 1 000 pixels 2.00.
    assert difference(image, reference) < 1.25 * difference(coded, reference)


@pytest.mark.parametrize("size", [(1025, 1024), (3000, 400), (401, 3001), (12_000, 100)])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_what_is_shrunk_keeps_its_shape(tmp_path: Path, form: str, size: tuple[int, int]) -> None:
    """More than a megapixel brings nothing; a squeezed face would be learned."""
    data = encode(picture(*size), form)

    _, packed = pack_one(tmp_path, "a.jpg", data)

    image = decode(packed)
    assert 900_000 < image.width * image.height <= MEGAPIXEL
    assert image.width / image.height == pytest.approx(size[0] / size[1], rel=0.01)
    assert difference(image, decode(data).resize(image.size, Image.Resampling.LANCZOS)) < 2


def test_exactly_one_megapixel_is_not_touched(tmp_path: Path) -> None:
    """The limit belongs to what is allowed."""
    data = encode(picture(1024, 1024), "JPEG")

    assert pack_one(tmp_path, "a.jpg", data) == ("001.jpg", data)


def test_zero_megapixels_keep_the_size(tmp_path: Path) -> None:
    """Whoever wants every pixel gets every byte."""
    data = encode(picture(2000, 1500), "JPEG")

    assert pack_one(tmp_path, "a.jpg", data, max_megapixels=0) == ("001.jpg", data)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (3, 100)])
def test_a_tiny_picture_is_a_picture(tmp_path: Path, form: str, size: tuple[int, int]) -> None:
    """It is of no use in training, and still not damaged; an eighth of its side is nothing, which no decoder takes."""
    data = encode(picture(*size), form)

    _, packed = pack_one(tmp_path, "a.jpg", data)

    assert decode(packed).size == size


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("size", [(320, 240), (1600, 1200)])
def test_a_picture_cut_in_half_is_a_fault(tmp_path: Path, form: str, size: tuple[int, int]) -> None:
    """A trainer that meets it hours later dies of it; a header alone says nothing."""
    data = encode(picture(*size), form)
    (tmp_path / "half.tif").write_bytes(data[: len(data) // 2])
    (tmp_path / "whole.jpg").write_bytes(encode(picture(), "JPEG"))

    (fault,) = refusal(tmp_path).faults

    assert fault.startswith("half.tif: it is ")
    assert form in fault


@pytest.mark.parametrize("missing", range(1, 21))
def test_a_png_without_its_last_bytes_is_refused_or_whole(tmp_path: Path, missing: int) -> None:
    """All its pixels are there, so it may go in, but then with an end of its own."""
    original = picture()
    data = encode(original, "PNG")

    _, packed = pack_one(tmp_path, "a.png", data[:-missing])

    assert difference(decode(packed), original) < 1
    assert packed.endswith((b"\xff\xd9", b"IEND\xaeB`\x82"))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_whose_second_half_is_zeros_is_a_fault(tmp_path: Path, progressive: bool) -> None:
    """A download that was cut off in a file of its final size looks like that."""
    data = encode(picture(), "JPEG", progressive=progressive)
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2].ljust(len(data), b"\x00"))

    (fault,) = refusal(tmp_path).faults

    assert fault == "a.jpg: it is cut short: the JPEG ends before its picture does."


@pytest.mark.parametrize("lossless", [False, True])
def test_damage_in_the_middle_of_a_webp_is_a_fault(tmp_path: Path, lossless: bool) -> None:
    """Its container is whole, so only decoding it shows the damage."""
    data = encode(picture(), "WEBP", lossless=lossless)
    (tmp_path / "a.webp").write_bytes(data[:30].ljust(len(data), b"\xff"))

    (fault,) = refusal(tmp_path).faults

    assert fault == "a.webp: it is damaged: the WEBP cannot be decoded."


def test_damage_in_the_middle_of_a_png_is_a_fault(tmp_path: Path) -> None:
    """A file system's mistake leaves the length as it was."""
    data = encode(picture(), "PNG")
    middle = len(data) // 2
    (tmp_path / "a.png").write_bytes(data[:middle] + bytes(2000) + data[middle + 2000 :])

    (fault,) = refusal(tmp_path).faults

    assert fault.startswith("a.png: it is ")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("size", "megapixels"), [((30_000, 30_000), "megapixels"), ((10_000, 10_000), "100 megapixels")]
)
def test_a_monstrous_picture_is_refused_by_its_header(tmp_path: Path, size: tuple[int, int], megapixels: str) -> None:
    """Decoded, a file of some kilobytes would fill the memory; there is nothing to decode in this one."""
    (tmp_path / "bomb.png").write_bytes(png(size, 8, 2, b""))

    (fault,) = refusal(tmp_path).faults

    assert fault.startswith("bomb.png: ")
    assert megapixels in fault


def test_a_side_that_no_jpeg_can_have_is_refused(tmp_path: Path) -> None:
    """It used to be called damaged, which sends people looking for the wrong thing."""
    (tmp_path / "long.png").write_bytes(encode(Image.new("RGBA", (70_000, 2)), "PNG"))

    (fault,) = refusal(tmp_path).faults

    assert "70000" in fault
    assert "65500" in fault


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    """Nobody can say which of their values is white."""
    (tmp_path / "a.tif").write_bytes(encode(picture().convert("F"), "TIFF"))

    (fault,) = refusal(tmp_path).faults

    assert "floating-point" in fault


def test_many_large_pictures_at_once_are_all_packed(tmp_path: Path) -> None:
    """Above 20 megapixels they are decoded one at a time; none of the workers may wait for itself."""
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(encode(Image.new("RGB", (5000, 4100), "teal"), "PNG", compress_level=1))

    packed = pack(tmp_path)

    assert sorted(packed) == ["001.png", "002.png", "003.png"]
