"""view_dataset as an agent uses it: pictures that any host shows, and the words beside them."""

import base64
import io
import re
import resource
import stat
from pathlib import Path

import pytest
from mcp import Client
from mcp_types import CallToolResult, ImageContent, TextContent
from PIL import Image

from bfl_mcp.dataset.sheet import _drawn, _named
from tests.dataset.test_judge import fill, photo
from tests.server.conftest import Connect
from tests.server.test_tools import refused


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fill(tmp_path / "pictures")


def seen(result: CallToolResult) -> tuple[str, Image.Image]:
    """The words and the picture of an answer, which has nothing else."""
    assert not result.is_error, result.content
    assert result.structured_content is None
    text, image = result.content
    assert isinstance(text, TextContent)
    assert isinstance(image, ImageContent)
    assert image.mime_type == "image/jpeg"
    data = base64.b64decode(image.data)
    assert len(data) <= 700_000
    picture = Image.open(io.BytesIO(data))
    picture.load()
    assert picture.format == "JPEG"
    return text.text, picture


async def view(client: Client, folder: Path, **more: object) -> tuple[str, Image.Image]:
    return seen(await client.call_tool("view_dataset", {"folder": str(folder), **more}))


async def test_a_page_shows_each_image_with_its_number_name_and_caption(connect: Connect, folder: Path) -> None:
    """The agent captions by name what it sees by number."""
    async with connect() as client:
        text, sheet = await view(client, folder)

    assert "Page 1 of 1" in text
    for number in range(6):
        assert f"{number + 1}. p{number}.jpg: caption: 'a TOKBOT, number {number}'" in text
    # Four tiles in a row, two rows, each large enough to be described.
    assert sheet.width > 4 * 350
    assert 1.3 < sheet.width / sheet.height < 2.5


async def test_the_tiles_show_the_pictures_in_order_and_upright(connect: Connect, tmp_path: Path) -> None:
    """A sheet that shows something else is worse than none: the colours of the tiles are those of the images."""
    colours = [(200, 30, 30), (30, 160, 40), (40, 60, 200)]
    folder = tmp_path / "pictures"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for number, colour in enumerate(colours):
        Image.new("RGB", (900, 600), colour).save(folder / f"{number}.jpg", exif=exif)
    async with connect() as client:
        _, sheet = await view(client, folder)

    tile = sheet.width // 3
    for place, colour in enumerate(colours):
        middle = sheet.getpixel((place * tile + tile // 2, sheet.height // 2))
        assert isinstance(middle, tuple)
        assert all(abs(a - b) < 12 for a, b in zip(middle, colour, strict=True))
        # Lying on its side in the file, it stands in the tile: white beside it, nothing above.
        beside = sheet.getpixel((place * tile + 30, sheet.height // 2))
        assert isinstance(beside, tuple)
        assert min(beside) > 240


async def test_what_was_found_is_framed_and_told(connect: Connect, folder: Path) -> None:
    """The eye goes where something is to be decided."""
    photo(7, 400, 300).save(folder / "a small.jpg")
    (folder / "b broken.jpg").write_bytes((folder / "p0.jpg").read_bytes()[:5000])
    async with connect() as client:
        text, sheet = await view(client, folder)

    lines = text.splitlines()
    assert "warning: it is much too small (400 × 300)" in lines[lines.index("1. a small.jpg: no caption") + 1]
    assert "fault: it is cut short" in lines[lines.index("2. b broken.jpg: no caption") + 1]
    colours = {sheet.getpixel((x, sheet.height // 4)) for x in range(sheet.width)}
    assert any(isinstance(c, tuple) and c[0] > 190 and 110 < c[1] < 180 and c[2] < 70 for c in colours)
    assert any(isinstance(c, tuple) and c[0] > 170 and c[1] < 80 and c[2] < 80 for c in colours)


async def test_many_images_come_in_pages(connect: Connect, tmp_path: Path) -> None:
    """Twelve at a time, and the next page is named."""
    folder = fill(tmp_path / "many", count=14)
    async with connect() as client:
        first, _ = await view(client, folder)
        second, sheet = await view(client, folder, page=2)
        words = await refused(client, "view_dataset", {"folder": str(folder), "page": 3})

    assert "images 1 to 12 of 14" in first
    assert "page 2" in first.splitlines()[-1]
    assert "images 13 to 14 of 14" in second
    assert "13. " in second
    assert sheet.width < 900
    assert "14 images on 2 pages" in words


async def test_one_image_is_shown_large(connect: Connect, folder: Path) -> None:
    """By the name the sheet gave it, with where it lies."""
    photo(8, 4000, 3000).save(folder / "large.jpg")
    async with connect() as client:
        text, picture = await view(client, folder, image="large.jpg")
        words = await refused(client, "view_dataset", {"folder": str(folder), "image": "../large.jpg"})

    assert max(picture.size) == 1400
    assert str(folder / "large.jpg") in text
    assert "4000 × 3000" in text
    assert "There is no image" in words
    assert "large.jpg" in words


async def test_what_is_shown_is_a_file_too(connect: Connect, home: Path, folder: Path) -> None:
    """For a person whose host shows no pictures: the very same JPEG, private, and one file for one view."""
    async with connect() as client:
        result = await client.call_tool("view_dataset", {"folder": str(folder)})
        text, _ = seen(result)
        again, _ = await view(client, folder)
        large, _ = await view(client, folder, image="p0.jpg")

    image = result.content[1]
    assert isinstance(image, ImageContent)
    path = named_file(text)
    assert path.read_bytes() == base64.b64decode(image.data)
    assert named_file(again) == path
    assert sorted((home / "sheets").iterdir()) == sorted([path, named_file(large)])
    assert [stat.S_IMODE(each.stat().st_mode) for each in (home / "sheets", path)] == [0o700, 0o600]


def named_file(text: str) -> Path:
    [named] = re.findall(r"^This picture as a file: '(.+)'$", text, re.MULTILINE)
    return Path(named)


async def test_what_was_shown_is_no_dataset(connect: Connect, home: Path, folder: Path) -> None:
    """It lies among the server's own data, which an agent cannot name."""
    async with connect() as client:
        await view(client, folder)
        words = await refused(client, "view_dataset", {"folder": str(home / "sheets")})

    assert "own data" in words


async def test_a_full_disk_loses_no_answer(connect: Connect, home: Path, folder: Path) -> None:
    """The picture itself is on its way to the host; only the file is missing, and that is said."""
    async with connect() as client:
        await view(client, folder)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            text, _ = await view(client, folder, image="p0.jpg")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert f"could not be kept as a file in '{home / 'sheets'}': File too large." in text
    assert text.splitlines()[-1].startswith("Next: ")
    assert len(list((home / "sheets").iterdir())) == 1


async def test_a_place_for_files_that_cannot_be_made_loses_no_answer(
    connect: Connect, home: Path, folder: Path
) -> None:
    """Something lies in its way."""
    put_in_the_way(home / "sheets")
    async with connect() as client:
        text, _ = await view(client, folder)

    assert "could not be kept as a file" in text


def put_in_the_way(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("in the way")


async def test_noise_that_no_jpeg_can_press_stays_below_the_limit(connect: Connect, tmp_path: Path) -> None:
    """Hosts drop larger images without a word."""
    folder = tmp_path / "noise"
    folder.mkdir()
    for number in range(12):
        bands = [Image.effect_noise((1000, 1000), 255) for _ in range(3)]
        Image.merge("RGB", bands).save(folder / f"{number}.jpg", quality=95)
    async with connect() as client:
        await view(client, folder)
        await view(client, folder, image="0.jpg")


async def test_a_folder_without_images_is_refused_in_words(connect: Connect, tmp_path: Path) -> None:
    """There is nothing to look at."""
    (tmp_path / "empty").mkdir()
    async with connect() as client:
        words = await refused(client, "view_dataset", {"folder": str(tmp_path / "empty")})

    assert "holds no image to look at" in words
    assert "check_dataset" in words


@pytest.mark.parametrize("name", ["robot.jpg", "Höhle.jpg", "猫の写真.jpg", "\U0001f916.jpg", "Ωμέγα.jpg"])
def test_names_beyond_ascii_are_written_and_not_boxed(name: str) -> None:
    """The sheet is a picture: a name of boxes tells nobody which file it is."""
    font, written = _named(name, 20)

    box = _drawn(font, "\U0010fffe")
    assert all(_drawn(font, char) != box for char in written)
    assert written == name or written.replace("·", "") in ("Hohle.jpg", ".jpg")


async def test_what_is_said_of_most_images_is_not_said_at_each(connect: Connect, folder: Path) -> None:
    """A frame round ten of twelve tells nothing; "no caption" stands there already."""
    for number in range(1, 6):
        (folder / f"p{number}.txt").unlink()
    async with connect() as client:
        text, _ = await view(client, folder)

    assert "p3.jpg: no caption" in text
    assert "others have one" not in text
