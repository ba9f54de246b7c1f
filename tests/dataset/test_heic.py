"""HEIC, the iPhone's format: read with the extra `heif`, named with its remedy without it."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from tests.dataset.made import adobe_profile, adobe_to_srgb, decode, difference, encode, heic, pack_one, refusal
from tests.pictures import picture

_WITHOUT_THE_EXTRA = """
import sys
sys.modules["pillow_heif"] = None  # What an import of it finds where it is not installed.
from bfl_mcp.dataset.folder import read_dataset
found = read_dataset(sys.argv[1])
print([(skipped.name, skipped.reason) for skipped in found.skipped], found.faults)
"""


@pytest.mark.parametrize("name", ["IMG_0001.HEIC", "IMG_0001.jpg"])
def test_a_heic_becomes_a_jpeg_of_the_same_picture(tmp_path: Path, name: str) -> None:
    """Phones hand it out under either name."""
    image = picture()

    entry, packed = pack_one(tmp_path, name, heic(image))

    assert entry == "001.jpg"
    assert decode(packed).format == "JPEG"
    assert difference(decode(packed), image) < 3


def test_a_heic_is_turned_upright_and_loses_its_metadata(tmp_path: Path) -> None:
    """Its decoder turns it already; turning it twice would lay it on its side again."""
    image = picture()
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "SECRET"

    _, packed = pack_one(tmp_path, "a.heic", heic(image, exif=exif.tobytes()))

    upright = ImageOps.exif_transpose(decode(encode(image, "JPEG", quality=95, subsampling=0, exif=exif)))
    assert decode(packed).size == (240, 320)
    assert difference(decode(packed), upright) < 3
    assert b"SECRET" not in packed


def test_the_wide_colours_of_a_heic_become_srgb(tmp_path: Path) -> None:
    """Every iPhone photographs in a wider gamut."""
    colour = (90, 200, 60)

    _, packed = pack_one(tmp_path, "a.heic", heic(Image.new("RGB", (320, 240), colour), icc_profile=adobe_profile()))

    middle = decode(packed).getpixel((160, 120))
    assert isinstance(middle, tuple)
    assert all(abs(got - wanted) <= 4 for got, wanted in zip(middle, adobe_to_srgb(colour), strict=True))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_a_heic_cut_short_is_a_fault(tmp_path: Path, share: float) -> None:
    """Half a picture must not be trained on."""
    data = heic(picture(1200, 900))
    (tmp_path / "a.heic").write_bytes(data[: max(100, int(len(data) * share))])

    assert refusal(tmp_path).faults == ("a.heic: it is damaged: the HEIC cannot be decoded.",)


def test_without_the_extra_a_heic_is_skipped_with_its_remedy(tmp_path: Path) -> None:
    """ "No image" alone would puzzle the person who sees forty."""
    (tmp_path / "photo.jpg").write_bytes(heic(picture()))

    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_THE_EXTRA, str(tmp_path)], capture_output=True, text=True, check=True
    )

    assert "('photo.jpg', \"HEIC, which this server reads with its extra 'heif' only: install that" in done.stdout
    assert "It holds no image that can be read (JPEG, PNG, WebP, AVIF, BMP, GIF or TIFF)." in done.stdout
