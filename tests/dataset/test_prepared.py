"""Pictures that were prepared before: each file is decoded once, nothing stale is used, and room is bounded."""

import os
import zipfile
from contextlib import closing
from pathlib import Path

import pytest

from bfl_mcp.dataset.archive import pack_dataset
from bfl_mcp.dataset.folder import read_dataset
from bfl_mcp.dataset.images import PreparedImage
from bfl_mcp.dataset.looks import Look
from bfl_mcp.dataset.prepared import Identity, KnownPicture, PreparedPictures
from tests.dataset.made import encode
from tests.pictures import fill_folder, picture

_LOOK = Look(
    width=1, height=1, mode="RGB", form="JPEG", is_deep=False, is_turned=False, is_animated=False,
    transparent_share=0.0, is_grey=False, has_metadata=False, has_position=False,
    has_profile=False, sharpness=1.0, contrast=1.0, brightness=1.0, pixels_sha256="", dhash=0, dhash_down=0,
)  # fmt: skip


def identity(number: int) -> Identity:
    return Identity(f"/p/{number}.jpg", 1, 2, 3, number, 1.0)


def keep(pictures: PreparedPictures, number: int, size: int = 400) -> KnownPicture:
    return pictures.keep(identity(number), PreparedImage(".jpg", _LOOK, encoded=bytes([number]) * size))


def content(known: KnownPicture) -> bytes:
    assert known.coded is not None
    return b"".join(known.coded.blocks())


def entries(folder: Path, pictures: PreparedPictures) -> list[bytes]:
    with read_dataset(folder) as dataset:
        archive = pack_dataset(dataset, max_images=100, max_megapixels=1.0, pictures=pictures)
    with closing(archive), zipfile.ZipFile(archive.file) as opened:
        return [opened.read(name) for name in opened.namelist()]


def test_what_is_kept_is_found_and_reads_as_it_was() -> None:
    """Also beyond one block of reading."""
    pictures = PreparedPictures()
    for number in range(3):
        keep(pictures, number, size=600_000 + number)

    for number in range(3):
        known = pictures.find(identity(number))
        assert known is not None
        assert content(known) == bytes([number]) * (600_000 + number)
    assert pictures.find(identity(3)) is None


def test_the_oldest_pictures_are_forgotten_where_room_ends() -> None:
    """A thousand large folders in one conversation must not fill the disk."""
    by_size, by_number = PreparedPictures(most_bytes=4_000), PreparedPictures(most_pictures=10)
    for pictures in (by_size, by_number):
        for number in range(100):
            keep(pictures, number)

        assert pictures.find(identity(99)) is not None
        assert pictures.find(identity(95)) is not None
        assert all(pictures.find(identity(number)) is None for number in range(90))


def test_what_is_used_stays(tmp_path: Path) -> None:
    """The folder that a conversation is about is not decoded again because others were looked at."""
    pictures = PreparedPictures(most_bytes=4_000)
    keep(pictures, 0)
    for number in range(1, 100):
        keep(pictures, number)
        known = pictures.find(identity(0))

        assert known is not None
        assert content(known) == bytes(400)


def test_a_picture_in_hand_outlives_its_being_forgotten() -> None:
    """An archive is being written from it while another folder is examined."""
    pictures = PreparedPictures(most_bytes=1_000)
    held = keep(pictures, 7)
    for number in range(8, 30):
        keep(pictures, number)

    assert pictures.find(identity(7)) is None
    assert content(held) == bytes([7]) * 400


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="open files cannot be counted here")
def test_forgotten_pictures_give_their_files_back() -> None:
    """The temporary file has no name; it goes with the last who holds it."""
    before = len(os.listdir("/dev/fd"))  # noqa: PTH208 - descriptors are counted, not followed
    pictures = PreparedPictures(most_bytes=1_000)
    for number in range(50):
        keep(pictures, number)

    assert len(os.listdir("/dev/fd")) <= before + 2  # noqa: PTH208
    pictures.forget()
    assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208


def test_the_same_folder_gives_the_same_archive_from_memory(tmp_path: Path) -> None:
    """Kept pixels, cut ones and those coded anew."""
    folder = fill_folder(tmp_path)
    (folder / "e.jpg").write_bytes(encode(picture(1600, 1200, seed=9), "JPEG", comment=b"cut me"))
    (folder / "f.jpg").write_bytes(encode(picture(seed=9), "JPEG", comment=b"cut me"))
    (folder / "g.gif").write_bytes(encode(picture(seed=8), "GIF"))
    pictures = PreparedPictures()

    assert entries(folder, pictures) == entries(folder, pictures) == entries(folder, PreparedPictures())


def test_a_file_that_was_swapped_is_never_taken_for_the_old_one(tmp_path: Path) -> None:
    """Of the same size and with the old time put back: the file itself has changed since."""
    folder = fill_folder(tmp_path, count=1, captions=False)
    path = folder / "a.jpg"
    first, second = (encode(picture(1600, 1200, seed=seed), "JPEG", quality=90) for seed in (1, 2))
    size = max(len(first), len(second))
    path.write_bytes(first.ljust(size, b"\0"))
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    pictures = PreparedPictures()
    before = entries(folder, pictures)
    path.write_bytes(second.ljust(size, b"\0"))
    os.utime(path, ns=times)

    after = entries(folder, pictures)

    assert after != before
    assert after == entries(folder, PreparedPictures())
