"""The table of checks: for each row a folder that trips it, and one that just does not."""

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageCms, ImageDraw, ImageFilter

from bfl_mcp.dataset.archive import examine_dataset
from bfl_mcp.dataset.findings import CHECKS, Finding
from bfl_mcp.dataset.folder import read_dataset
from bfl_mcp.dataset.judge import Plan, judge
from bfl_mcp.dataset.wording import has_word
from tests.dataset.made import adobe_profile, encode, heic, png

EXAMPLES = Path(__file__).parents[2] / "examples"


def photo(number: int, width: int = 1100, height: int = 900) -> Image.Image:
    """Sharp, bright enough, and unlike its siblings."""
    image = Image.effect_noise((width // 8, height // 8), 90).convert("RGB").resize((width, height))
    draw = ImageDraw.Draw(image)
    for step in range(12):
        x, y = (math.sin(number * 7 + step) + 1) * width / 2, (math.cos(number * 3 + step * 2) + 1) * height / 2
        draw.ellipse((x - 120, y - 120, x + 120, y + 120), fill=(step * 20, 255 - step * 20, number * 30 % 255))
    return image


def fill(folder: Path, count: int = 6) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        photo(number).save(folder / f"p{number}.jpg", quality=95)
        (folder / f"p{number}.txt").write_text(f"a TOKBOT, number {number}")
    return folder


def found(folder: Path, trigger_word: str | None = "TOKBOT", **plan: Any) -> list[Finding]:
    with read_dataset(folder) as dataset:
        examined = examine_dataset(dataset, max_images=20, max_megapixels=1.0)
    if examined.archive is not None:
        examined.archive.close()
    return judge(dataset, examined, Plan(trigger_word=trigger_word, max_megapixels=1.0, **plan))


def codes(folder: Path, trigger_word: str | None = "TOKBOT", **plan: Any) -> set[str]:
    """Of all checks but that pictures above a megapixel are shrunk, which all of `photo` are unless drawn smaller."""
    return {finding.code for finding in found(folder, trigger_word, **plan)}


def write(name: str, data: bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return make


def save(name: str, image: Image.Image, **options: object) -> Callable[[Path], None]:
    return lambda folder: image.save(folder / name, **options)  # type: ignore[arg-type]


def caption(name: str, text: str) -> Callable[[Path], None]:
    return write(name, text.encode())


def copy(name: str, **options: object) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        with Image.open(folder / "p1.jpg") as image:
            image.save(folder / name, **options)  # type: ignore[arg-type]

    return make


def twin(folder: Path) -> None:
    (folder / "twin.jpeg").write_bytes((folder / "p1.jpg").read_bytes())


def cut(folder: Path) -> None:
    (folder / "p1.jpg").write_bytes((folder / "p1.jpg").read_bytes()[:9000])


def link(folder: Path) -> None:
    (folder / "l.jpg").symlink_to(folder / "p1.jpg")


def without_caption(folder: Path) -> None:
    (folder / "p1.txt").unlink()


def position() -> Image.Exif:
    exif = Image.Exif()
    exif[0x8825] = {1: "N", 2: (48.0, 8.0, 0.0)}
    return exif


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def maker() -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F] = "Camera"
    return exif


def see_through(alpha: int) -> Image.Image:
    """A picture with an alpha channel that is solid but for one corner."""
    image = photo(9).convert("RGBA")
    image.putalpha(255)
    image.paste((0, 0, 0, alpha), (0, 0, 60, 60))
    return image


def deep() -> bytes:
    """A PNG of 16 bits a channel."""
    image = photo(9)
    row = image.width * 3
    samples = bytes(byte for value in image.tobytes() for byte in (value, value))
    return png(image.size, 16, 2, b"".join(b"\0" + samples[n : n + 2 * row] for n in range(0, len(samples), 2 * row)))


_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def grey(level: int, spread: int = 40) -> Image.Image:
    """A picture of one brightness, with enough on it not to be called flat."""
    image = Image.new("L", (1100, 900), level)
    draw = ImageDraw.Draw(image)
    for x in range(0, 1100, 100):
        draw.rectangle((x, 0, x + 49, 899), fill=max(0, min(255, level + (spread if x % 200 else -spread))))
    return image.convert("RGB")


# Code; what trips it; what just does not (None where the good folder itself is the counterexample).
ROWS: list[tuple[str, Callable[[Path], None], Callable[[Path], None] | None]] = [
    ("no-image", write("x.jpg", b"no picture"), write("x.md", b"no picture")),
    ("damaged-image", cut, None),
    ("unreadable-caption", write("p1.txt", b"caf\xe9 TOKBOT"), write("p1.txt", "café TOKBOT".encode("utf-16"))),
    ("left-out", write("notes.md", b"x"), None),
    ("left-out-image", write("x.zip", b"PK\x03\x04"), write("x.txt", b"PK\x03\x04")),
    ("link", link, None),
    ("orphan-caption", caption("x.txt", "a TOKBOT"), caption("p1.txt", "a TOKBOT")),
    ("caption-case", caption("P2.txt", "a TOKBOT"), None),
    ("empty-caption", caption("p1.txt", " \n"), caption("p1.txt", "TOKBOT")),
    ("shared-stem", save("p1.png", photo(9)), save("p9.png", photo(9))),
    ("second-caption", caption("p1.TXT", "another TOKBOT"), None),
    ("same-picture", twin, copy("again.jpg", quality=80)),
    ("similar-pictures", copy("again.jpg", quality=80), save("other.jpg", photo(9), quality=80)),
    ("small", save("s.jpg", photo(9, 1100, 767)), save("s.jpg", photo(9, 1100, 768))),
    ("long", save("l.jpg", photo(9, 2600, 1000)), save("l.jpg", photo(9, 2500, 1000))),
    ("blurred", save("b.jpg", photo(9).filter(ImageFilter.GaussianBlur(14))), save("b.jpg", photo(9))),
    ("flat", save("f.jpg", grey(128, 8)), save("f.jpg", grey(128, 30))),
    ("dark", save("d.jpg", grey(12, 11)), save("d.jpg", grey(20, 20))),
    ("blown", save("w.jpg", grey(244, 11)), save("w.jpg", grey(235, 20))),
    ("animated", save("a.webp", photo(8), save_all=True, append_images=[photo(9)]), save("a.webp", photo(8))),
    ("huge", write("h.png", png((9_000, 10_000), 8, 2, b"")), None),
    ("transparent", save("t.png", see_through(0)), save("t.png", see_through(253))),
    ("cmyk", save("c.jpg", photo(9).convert("CMYK")), save("c.jpg", photo(9))),
    ("grey", save("g.jpg", photo(9).convert("L").convert("RGB")), save("g.jpg", photo(9))),
    ("misnamed", write("m.jpg", encode(photo(9), "PNG")), write("m.jpeg", encode(photo(9), "JPEG"))),
    ("turned", save("r.jpg", photo(9), exif=orientation(6)), save("r.jpg", photo(9), exif=orientation(1))),
    ("shrunk", save("s.png", photo(9, 1025, 1024)), save("s.png", photo(9, 1024, 1024))),
    ("converted", save("c.bmp", photo(9)), save("c.png", photo(9))),
    ("deep", write("d.png", deep()), save("d.png", photo(9))),
    ("palette", save("p.png", photo(9).quantize(64)), save("p.png", photo(9))),
    (
        "wide-colours",
        save("w.jpg", photo(9), icc_profile=adobe_profile()),
        save("w.jpg", photo(9), icc_profile=_SRGB),
    ),
    ("metadata-removed", save("x.jpg", photo(9), exif=maker()), save("x.jpg", photo(9))),
    ("odd-name", save("é.jpg", photo(9)), save("e.jpg", photo(9))),
    ("position-removed", save("g.jpg", photo(9), exif=position()), save("g.jpg", photo(9), exif=Image.Exif())),
    ("some-captions", without_caption, None),
    ("trigger-missing", caption("p1.txt", "a TOKBOTS there"), caption("p1.txt", "a tokbot, there")),
]


@pytest.mark.parametrize(("code", "trip", "spare"), ROWS, ids=[row[0] for row in ROWS])
def test_each_check_trips_and_just_does_not(
    tmp_path: Path, code: str, trip: Callable[[Path], None], spare: Callable[[Path], None] | None
) -> None:
    """A threshold that nothing stands on either side of is no threshold."""
    good = fill(tmp_path / "good")
    if spare is not None:
        spare(good)
    bad = fill(tmp_path / "bad")
    trip(bad)

    assert code not in codes(good)
    assert code in codes(bad)


def test_the_checks_of_a_whole_folder(tmp_path: Path) -> None:
    """How many there are, and what the trigger word is like."""
    (tmp_path / "empty").mkdir()
    six, five = fill(tmp_path / "six"), fill(tmp_path / "five", count=5)
    many = fill(tmp_path / "many", count=1)
    for number in range(20):
        (many / f"x{number}.jpg").write_bytes((many / "p0.jpg").read_bytes())

    assert codes(tmp_path / "empty") == {"no-images"}
    assert codes(six) == set()
    assert codes(five) == {"few-images"}
    assert "too-many-images" in codes(many)
    assert codes(six, "OTHER") == {"trigger-absent"}
    assert codes(six, "tokbot") == {"ordinary-trigger"}
    assert codes(six, captioning=True) == {"captions-and-captioning"}
    assert codes(six, mode="character") == {"character-scenes"}
    assert codes(six, mode="style") == set()
    assert codes(six, max_upload_bytes=1_000) == {"too-large"}
    assert codes(six, max_upload_bytes=100_000_000) == set()
    assert codes(six, None) == set()


def test_captions_that_name_the_style_are_told_where_half_of_them_do(tmp_path: Path) -> None:
    """What a caption names is learnt as that word, not as the style itself."""
    folder = fill(tmp_path / "p")
    for number in (1, 3):
        (folder / f"p{number}.txt").write_text("a TOKBOT, Watercolour of a cat")
    two = codes(folder, mode="style")
    (folder / "p5.txt").write_text("a dog in the style of TOKBOT")
    of_the_word_itself = codes(folder, mode="style")
    (folder / "p5.txt").write_text("a TOKBOT, oil painting of a dog")

    (told,) = found(folder, mode="style")

    assert two == of_the_word_itself == set()
    assert (told.code, told.files) == ("style-named", ("p1.jpg", "p3.jpg", "p5.jpg"))
    assert "'watercolour'" in told.what
    assert codes(folder, mode="product") == set()


def test_a_folder_of_grey_images_is_a_style_and_one_among_colours_is_not(tmp_path: Path) -> None:
    """Who trains black and white wants black and white."""
    folder = fill(tmp_path / "p")
    for number in range(6):
        photo(number).convert("L").save(folder / f"p{number}.jpg", quality=95)

    (told,) = found(folder)

    assert (told.severity, told.code, len(told.files)) == ("change", "all-grey", 6)


def test_names_that_differ_in_case_alone_are_told(tmp_path: Path) -> None:
    """On another disk one of them would overwrite the other."""
    folder = fill(tmp_path / "p")
    photo(9).save(folder / "P1.jpg")
    if len(list(folder.glob("*.jpg"))) < 7:
        pytest.skip("this disk knows no such difference")

    told = {finding.code: finding.files for finding in found(folder)}

    assert told["odd-name"] == ("P1.jpg", "p1.jpg")


def test_groups_are_told_once_and_not_pair_by_pair(tmp_path: Path) -> None:
    """Twelve copies are one finding of twelve names, not sixty-six."""
    folder = fill(tmp_path / "p")
    for number in range(11):
        (folder / f"copy{number:02}.jpg").write_bytes((folder / "p1.jpg").read_bytes())
    with Image.open(folder / "p2.jpg") as image:
        for quality in (60, 70):
            image.save(folder / f"q{quality}.jpg", quality=quality)

    told = [finding for finding in found(folder) if finding.code in ("same-picture", "similar-pictures")]

    assert [(finding.code, len(finding.files)) for finding in told] == [("same-picture", 12), ("similar-pictures", 3)]
    assert told[1].files == ("p2.jpg", "q60.jpg", "q70.jpg")


def test_pictures_that_darken_alike_from_left_to_right_alone_are_not_alike(tmp_path: Path) -> None:
    """A lawn, a night sky and stripes agree across; down they have nothing in common."""
    folder = fill(tmp_path / "p")
    across = Image.linear_gradient("L").rotate(90).resize((1100, 900))
    for name, turns in (("lawn", 3), ("sky", 11)):
        waves = Image.new("L", (1, 900))
        waves.putdata([int(60 + 60 * math.sin(turns * row / 90)) for row in range(900)])
        bands = waves.resize((1100, 900))
        Image.merge("RGB", [Image.blend(across, bands, 0.45)] * 3).save(folder / f"{name}.jpg", quality=95)

    assert not {finding.code for finding in found(folder)} & {"similar-pictures", "same-picture"}


def test_fog_is_not_called_blurred(tmp_path: Path) -> None:
    """Little sharpness beside little contrast is what fog and pale walls look like; the same blurred has less still."""
    light = Image.linear_gradient("L").resize((1100, 900)).point(lambda value: 98 + value // 4)
    pale = Image.blend(light.convert("RGB"), photo(9), 0.05)
    fog, blurred = fill(tmp_path / "fog"), fill(tmp_path / "blurred")
    pale.save(fog / "f.png")
    pale.filter(ImageFilter.GaussianBlur(14)).save(blurred / "f.png")
    look = next(finding for finding in found(blurred) if finding.files == ("f.png",) and finding.code == "blurred")

    assert "blurred" not in codes(fog)
    assert "sharpness" in look.what


def test_the_second_picture_of_a_jpeg_is_no_animation(tmp_path: Path) -> None:
    """Phones keep the depth of a photograph behind it."""
    folder = fill(tmp_path / "p")
    photo(8).save(folder / "p1.jpg", "MPO", save_all=True, append_images=[photo(9)])

    assert codes(folder) == set()


def test_every_row_of_the_table_is_tested() -> None:
    """A check that nothing trips may be dead."""
    here = {code for code, _, _ in ROWS}
    here |= {"no-images", "few-images", "too-many-images", "trigger-absent", "ordinary-trigger"}
    here |= {"captions-and-captioning", "unreadable-file", "character-scenes", "style-named", "too-large", "all-grey"}
    # A file that changes under our hands: test_archive.
    here |= {"changing"}

    assert here == set(CHECKS)


def test_the_examples_raise_no_alarm() -> None:
    """They are what a good folder looks like."""
    assert [(finding.severity, finding.code) for finding in found(EXAMPLES)] == [("change", "shrunk")]


def test_faults_come_first_and_each_names_its_file(tmp_path: Path) -> None:
    """The reader mends from the top."""
    folder = fill(tmp_path / "bad")
    cut(folder)
    without_caption(folder)
    (folder / "notes.md").write_text("x")

    told = found(folder)

    assert [finding.severity for finding in told] == sorted(
        (finding.severity for finding in told), key=["fault", "warning", "info", "change"].index
    )
    assert all(finding.files for finding in told)
    assert told[0].sentence == "p1.jpg: it is cut short: the JPEG ends before its picture does."


@pytest.mark.parametrize(
    ("text", "word", "holds"),
    [
        ("a TOK here", "TOK", True),
        ("TOK", "TOK", True),
        ("a tok, here", "TOK", True),
        ("TOKBOT", "TOK", False),
        ("a TOK2", "TOK", False),
        ("in the style of C++.", "C++", True),
        ("", "TOK", False),
    ],
)
def test_a_trigger_word_is_a_whole_word(text: str, word: str, *, holds: bool) -> None:
    """Part of another word is another token to the model."""
    assert has_word(text, word) is holds


def test_a_picture_is_judged_alike_at_any_size_and_coding(tmp_path: Path) -> None:
    """Thresholds would mean nothing if twelve megapixels scored otherwise than one."""
    large = photo(3, 4000, 3000)
    (tmp_path / "p").mkdir()
    large.save(tmp_path / "p" / "large.jpg", quality=95)
    large.resize((1000, 750), Image.Resampling.LANCZOS).save(tmp_path / "p" / "one.png")
    buffer = io.BytesIO()
    large.resize((1150, 862), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=95)
    (tmp_path / "p" / "kept.jpg").write_bytes(buffer.getvalue())
    with read_dataset(tmp_path / "p") as dataset:
        examined = examine_dataset(dataset, max_images=20, max_megapixels=1.0)
    assert examined.archive is not None
    examined.archive.close()
    looks = [seen.look for seen in examined.seen.values()]

    assert max(look.sharpness for look in looks) < 1.6 * min(look.sharpness for look in looks)
    assert max(look.brightness for look in looks) - min(look.brightness for look in looks) < 3
    assert all((looks[0].dhash ^ look.dhash).bit_count() <= 8 for look in looks)


PLANTED = {
    "truncated.jpg": "damaged-image",
    "tiny.png": "small",
    "recompressed.jpg": "similar-pictures",
    "rotated.jpg": "position-removed",
    "iphone.jpg": "misnamed",
    "p2.txt": "empty-caption",
    "orphan.txt": "orphan-caption",
    "p3.jpg": "trigger-missing",
    "nested.zip": "left-out-image",
    "out.jpg": "link",
    ".hidden.jpg": "left-out",
    "blurred.jpg": "blurred",
    "black.jpg": "dark",
    "p4.png": "shared-stem",
    "panorama.jpg": "long",
    "animated.webp": "animated",
    "cmyk.jpg": "cmyk",
}
"""What is planted, and the check that finds it."""


def plant(folder: Path) -> Path:
    """A folder with all that goes wrong at once."""
    fill(folder, count=16)
    cut_short = (folder / "p0.jpg").read_bytes()[:9000]
    (folder / "truncated.jpg").write_bytes(cut_short)
    photo(20, 64, 64).save(folder / "tiny.png")
    with Image.open(folder / "p1.jpg") as image:
        image.save(folder / "recompressed.jpg", quality=80)
    exif = position()
    exif[0x0112] = 6
    photo(21).save(folder / "rotated.jpg", exif=exif)
    (folder / "iphone.jpg").write_bytes(heic(photo(28)))
    (folder / "p2.txt").write_text("")
    (folder / "orphan.txt").write_text("a TOKBOT")
    (folder / "p3.txt").write_text("nobody special")
    (folder / "nested.zip").write_bytes(b"PK\x03\x04")
    (folder / "out.jpg").symlink_to("/etc/hostname")
    (folder / ".hidden.jpg").write_bytes(b"x")
    photo(22).filter(ImageFilter.GaussianBlur(14)).save(folder / "blurred.jpg")
    Image.new("RGB", (1100, 900)).save(folder / "black.jpg")
    photo(23).save(folder / "p4.png")
    photo(24, 4000, 1000).save(folder / "panorama.jpg")
    photo(25).save(folder / "animated.webp", save_all=True, append_images=[photo(26)])
    photo(27).convert("CMYK").save(folder / "cmyk.jpg")
    return folder


def test_every_planted_fault_is_found_and_named(tmp_path: Path) -> None:
    """A folder with all that goes wrong at once, for a provider that takes twenty images: no file goes unmentioned."""
    folder = plant(tmp_path / "planted")
    before = {f"p{number}.{suffix}" for number in range(16) for suffix in ("jpg", "txt")}

    told = found(folder)
    of = {
        name: {finding.code for finding in told if name in finding.files} for finding in told for name in finding.files
    }

    assert "too-many-images" in {finding.code for finding in told}
    assert {name: code for name, code in PLANTED.items() if code not in of.get(name, set())} == {}
    # What was good before is only mentioned where something was planted beside it.
    accused = {
        name
        for name in before & of.keys()
        if of[name] - {"similar-pictures", "shared-stem", "some-captions", "odd-name"}
    }
    assert accused == {"p2.txt", "p3.jpg"}
