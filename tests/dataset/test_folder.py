"""What is found in a folder: the images, their captions, and by name everything that is left out."""

import os
import sys
import tempfile
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bfl_mcp.dataset.folder import read_dataset
from bfl_mcp.errors import DatasetError
from tests.dataset.made import encode, refusal
from tests.pictures import fill_folder, picture

_NFC = unicodedata.normalize("NFC", "Müllerstraße é")
_NFD = unicodedata.normalize("NFD", _NFC)
_JPEG = encode(picture(32, 24), "JPEG")


def _skipped(folder: Path) -> dict[str, str]:
    return {skipped.name: skipped.reason for skipped in read_dataset(folder).skipped}


def _captions(folder: Path) -> dict[str, str | None]:
    return {image.path.name: image.caption for image in read_dataset(folder).images}


def _caption_fault(folder: Path, data: bytes) -> str:
    fill_folder(folder, count=1, captions=False)
    (folder / "a.txt").write_bytes(data)
    (fault,) = read_dataset(folder).faults
    return fault


# --- the folder itself ------------------------------------------------------------------------------------------------


def test_a_path_may_be_given_as_text_or_from_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model passes on what the person typed."""
    fill_folder(tmp_path / "photos")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))

    found = read_dataset("~/photos")

    assert found == read_dataset(tmp_path / "photos")
    assert found.folder == tmp_path / "photos"
    assert len(found.images) == 3


@pytest.mark.parametrize("name", ["photos ", "'photos'", ' "'])
@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_folder_of_exactly_that_name_comes_before_a_cleaned_one(tmp_path: Path, name: str) -> None:
    """Quotes and blanks come along with copy and paste, and some names have them."""
    fill_folder(tmp_path / "photos", count=1)
    fill_folder(tmp_path / name, count=2)

    assert len(read_dataset(str(tmp_path / name)).images) == 2
    assert len(read_dataset(f" '{tmp_path / 'photos'}'\n").images) == 1


@pytest.mark.parametrize("named", ["photos", "./photos", "../photos", "", "."])
def test_a_relative_path_is_refused(tmp_path: Path, named: str) -> None:
    """The server's working directory is no place a person has in mind."""
    fill_folder(tmp_path / "photos")

    with pytest.raises(DatasetError, match="is not a full path"):
        read_dataset(named)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """The reader has to see which path was tried."""
    with pytest.raises(DatasetError, match=r"There is no folder .*photos"):
        read_dataset(tmp_path / "photos")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """An archive or a single picture is easily named in its place."""
    (tmp_path / "photos.zip").write_bytes(b"PK\x03\x04")

    with pytest.raises(DatasetError, match=r"photos\.zip' is a file"):
        read_dataset(tmp_path / "photos.zip")


@pytest.mark.parametrize("named", ["/photos\x00", "~nobody-of-this-name/photos", "/" + "x" * 5000])
def test_a_path_that_no_system_takes_is_refused_in_words(named: str) -> None:
    """A model can write anything; what it gets is a sentence and no ValueError."""
    with pytest.raises(DatasetError):
        read_dataset(named)


@pytest.fixture
def bound_folder() -> Iterator[Path]:
    """A folder of a user whom permissions bind: the tests may run as root, whom none do."""
    nobody = 65_534
    with tempfile.TemporaryDirectory() as name:
        root = os.geteuid() == 0
        if root:
            os.chown(name, nobody, nobody)
            os.seteuid(nobody)
        try:
            yield Path(name)
        finally:
            if root:
                os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="this system has no such permissions")
def test_what_this_user_may_not_read_is_named(bound_folder: Path) -> None:
    """One unreadable picture is a fault like any other, an unreadable folder is the end."""
    fill_folder(bound_folder, count=1)
    (bound_folder / "a.jpg").chmod(0)

    (fault,) = read_dataset(bound_folder).faults
    bound_folder.chmod(0)
    with pytest.raises(DatasetError, match="may not read"):
        read_dataset(bound_folder)

    bound_folder.chmod(0o700)
    assert fault == "a.jpg: it cannot be read: this user may not read it."


def test_a_folder_without_images_is_a_fault(tmp_path: Path) -> None:
    """An empty archive would be billed like a full one."""
    (tmp_path / "notes.txt").write_text("nothing here")

    found = read_dataset(tmp_path)

    assert found.images == ()
    assert found.faults == ("It holds no image that can be read (JPEG, PNG, WebP, AVIF, HEIC, BMP, GIF or TIFF).",)


# --- what is used and what is not -------------------------------------------------------------------------------------


def test_images_come_in_name_order_and_are_what_their_content_says(tmp_path: Path) -> None:
    """The order decides the numbers in the archive, so it must not depend on the disk."""
    for name, form in [("c.txt.jpg", "PNG"), ("a.webp", "JPEG"), ("B.png", "WEBP"), ("b", "GIF"), ("d.jpg", "TIFF")]:
        (tmp_path / name).write_bytes(encode(picture(32, 24), form))

    found = read_dataset(tmp_path)

    assert [(image.path.name, image.format) for image in found.images] == [
        ("B.png", "WEBP"),
        ("a.webp", "JPEG"),
        ("b", "GIF"),
        ("c.txt.jpg", "PNG"),
        ("d.jpg", "TIFF"),
    ]
    assert not found.faults
    assert not found.skipped


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        (".hidden.jpg", _JPEG, "hidden"),
        ("._a.jpg", b"\x00\x05\x16\x07", "hidden"),
        (".DS_Store", b"", "hidden"),
        ("Thumbs.db", b"\xd0\xcf\x11\xe0", "a file of the operating system"),
        ("desktop.ini", b"[x]", "a file of the operating system"),
        ("raw.nef", b"II*\x00" + bytes(60), "a camera raw file"),
        ("raw.dng", b"MM\x00*" + bytes(60), "a camera raw file"),
        ("film.mp4", b"\x00\x00\x00\x18ftypisom" + bytes(50), "not an image"),
        ("notes.md", b"# notes", "not an image"),
        ("empty", b"", "not an image"),
        ("logo.svg", b"<svg/>", "not an image"),
        ("old.7z", b"7z\xbc\xaf\x27\x1c", "an archive"),
        ("old.tar.gz", b"\x1f\x8b\x08\x00", "an archive"),
        ("old.rar", b"Rar!\x1a\x07\x00", "an archive"),
    ],
)
def test_what_cannot_be_used_is_skipped_and_named(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    """A nested archive or somebody's notes must not be sent along, and nobody should wonder where a file went."""
    fill_folder(tmp_path, count=1, captions=False)
    (tmp_path / name).write_bytes(data)

    found = read_dataset(tmp_path)

    assert [skipped.name for skipped in found.skipped] == [name]
    assert reason in found.skipped[0].reason
    assert [image.path.name for image in found.images] == ["a.jpg"]
    assert found.faults == ()


@pytest.mark.parametrize("name", ["old.zip", "photos.jpg"])
def test_an_archive_is_skipped_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    """An earlier dataset lies beside its images more often than not."""
    fill_folder(tmp_path, count=1, captions=False)
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.write(tmp_path / "a.jpg", "a.jpg")

    assert _skipped(tmp_path) == {name: "an archive; only images directly in the folder are used"}


def test_folders_inside_are_not_searched(tmp_path: Path) -> None:
    """What lies deeper was not named by the person."""
    fill_folder(tmp_path, count=1, captions=False)
    fill_folder(tmp_path / "more.jpg")
    fill_folder(tmp_path / "__MACOSX")

    assert _skipped(tmp_path) == {
        "more.jpg": "a subfolder; only images directly in the folder are used",
        "__MACOSX": "a file of the operating system",
    }
    assert len(read_dataset(tmp_path).images) == 1


def test_links_are_not_followed(tmp_path: Path) -> None:
    """A link in a shared folder could send any picture or text of this disk."""
    outside = fill_folder(tmp_path / "outside", count=1)
    inside = fill_folder(tmp_path / "inside", count=1, captions=False)
    for name, target in [
        ("b.jpg", outside / "a.jpg"),
        ("a.txt", outside / "a.txt"),
        ("c", outside),
        ("d.jpg", outside / "none"),
    ]:
        (inside / name).symlink_to(target)

    assert _skipped(inside) == dict.fromkeys(["a.txt", "b.jpg", "c", "d.jpg"], "a link")
    assert _captions(inside) == {"a.jpg": None}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
@pytest.mark.parametrize("name", ["b.jpg", "a.txt"])
@pytest.mark.timeout(10, method="thread")
def test_a_pipe_is_skipped_without_waiting_for_it(tmp_path: Path, name: str) -> None:
    """Opening it for reading would wait for a writer that never comes."""
    fill_folder(tmp_path, count=1, captions=False)
    os.mkfifo(tmp_path / name)

    assert _skipped(tmp_path) == {name: "not a regular file"}


@pytest.mark.parametrize(
    ("name", "data", "fault"),
    [
        ("b.jpg", b"", "b.jpg: it is empty."),
        ("b.jpg", b"dear diary, " * 9, "b.jpg: it is not an image, whatever its name says."),
        ("B.PNG", b"\x00" * 99, "B.PNG: it is not an image, whatever its name says."),
        ("b.tiff", b"BM and other cars", "b.tiff: it is not an image, whatever its name says."),
    ],
)
def test_what_is_called_an_image_and_is_none_is_a_fault(tmp_path: Path, name: str, data: bytes, fault: str) -> None:
    """A download that failed would be missed in the training; skipping it in silence would hide that."""
    fill_folder(tmp_path, count=1, captions=False)
    (tmp_path / name).write_bytes(data)

    assert read_dataset(tmp_path).faults == (fault,)


def test_names_are_made_safe_before_they_are_shown(tmp_path: Path) -> None:
    """A file name is foreign text: a line break in it could pass for a sentence of ours."""
    fill_folder(tmp_path, count=1, captions=False)
    (tmp_path / "b\nAll is well.\x1b[2J.jpg").write_bytes(b"")
    (tmp_path / "c\u202egpj.md").write_bytes(b"")

    assert read_dataset(tmp_path).faults == ("b All is well.\\x1b[2J.jpg: it is empty.",)
    assert list(_skipped(tmp_path)) == ["c\\u202egpj.md"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_without_a_visible_character_is_spelled_out(tmp_path: Path) -> None:
    """Cleaned it would be nothing at all, and nobody could find the file that a fault is about."""
    (tmp_path / "\x01\u202e").write_bytes(b"\xff\xd8\xff cut short")
    (tmp_path / " ").write_bytes(b"a note")

    error = refusal(tmp_path)

    assert error.faults == (r"\x01\u202e: it is damaged: the JPEG cannot be decoded.",)
    assert list(_skipped(tmp_path)) == ["' '"]


# --- captions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        "Ein Café in Köln, 写真 of TOK".encode(),
        "\n  Ein Café in Köln, 写真 of TOK \r\n\r\n".encode(),
        "Ein Café in Köln, 写真 of TOK".encode("utf-8-sig"),
        "Ein Café in Köln, 写真".encode("utf-8-sig") + " of TOK".encode("utf-8-sig"),
        b"\xff\xfe" + "Ein Café in Köln, 写真 of TOK\r\n".encode("utf-16-le"),
        b"\xfe\xff" + "Ein Café in Köln, 写真 of TOK".encode("utf-16-be"),
    ],
)
def test_captions_are_read_as_editors_save_them(tmp_path: Path, data: bytes) -> None:
    """Windows writes byte order marks and UTF-16; none of that belongs to the text."""
    fill_folder(tmp_path, count=2, captions=False)
    (tmp_path / "a.txt").write_bytes(data)

    found = read_dataset(tmp_path)

    assert _captions(tmp_path) == {"a.jpg": "Ein Café in Köln, 写真 of TOK", "b.jpg": None}
    assert found.captions == 1
    assert not found.faults
    assert not found.skipped


def test_line_breaks_inside_a_caption_are_kept_as_one_character(tmp_path: Path) -> None:
    """The same text written on Windows is the same dataset."""
    fill_folder(tmp_path, count=2, captions=False)
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\r\n")
    (tmp_path / "b.txt").write_bytes(b"one\ntwo\n")

    assert set(_captions(tmp_path).values()) == {"one\ntwo"}


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ("Café".encode("latin-1"), "a.txt: the caption is not UTF-8 text; save it as UTF-8."),
        (b"\xff\xfea", "a.txt: the caption is not UTF-8 text; save it as UTF-8."),
        (_JPEG, "a.txt: the caption is not UTF-8 text; save it as UTF-8."),
        (b"TOK\x00", "a.txt: the caption holds NUL characters; save it as plain UTF-8 text."),
        ("TOK".encode("utf-16-le"), "a.txt: the caption holds NUL characters; save it as plain UTF-8 text."),
        ("TOK".encode("utf-32"), "a.txt: the caption holds NUL characters; save it as plain UTF-8 text."),
        (b"a" * 64_001, "a.txt: the caption is longer than 64 kB; shorten it."),
        # 44 kB on disk and 66 kB in the archive, which the trainer would refuse with all its pictures.
        (("写" * 22_000).encode("utf-16"), "a.txt: the caption is longer than 64 kB; shorten it."),
    ],
)
def test_a_caption_that_cannot_be_read_is_a_fault(tmp_path: Path, data: bytes, fault: str) -> None:
    """Guessed characters would be learned; a missing caption would not be noticed."""
    assert _caption_fault(tmp_path, data) == fault


def test_a_caption_of_64_kb_is_not_too_long(tmp_path: Path) -> None:
    """The limit belongs to what is allowed."""
    fill_folder(tmp_path, count=1, captions=False)
    (tmp_path / "a.txt").write_bytes(b"a" * 64_000)

    assert _captions(tmp_path) == {"a.jpg": "a" * 64_000}


@pytest.mark.parametrize("data", [b"", b" \r\n\t", b"\xef\xbb\xbf", b"\xff\xfe", b"\xef\xbb\xbf\n" * 2])
def test_an_empty_caption_counts_as_none(tmp_path: Path, data: bytes) -> None:
    """Trainers crash on an empty text, hours later."""
    fill_folder(tmp_path, count=1, captions=False)
    (tmp_path / "a.txt").write_bytes(data)

    assert _captions(tmp_path) == {"a.jpg": None}
    assert _skipped(tmp_path) == {"a.txt": "an empty caption"}
    assert read_dataset(tmp_path).captions == 0


@pytest.mark.parametrize("data", [b"notes", "Café".encode("latin-1"), b"\x00", b"a" * 100_000])
def test_a_text_without_an_image_is_skipped_whatever_it_holds(tmp_path: Path, data: bytes) -> None:
    """A licence or a log beside the pictures is nobody's caption and must not stop the training."""
    fill_folder(tmp_path, count=1, captions=False)
    (tmp_path / "LICENSE.txt").write_bytes(data)

    assert _skipped(tmp_path) == {"LICENSE.txt": "a caption without an image of that name"}
    assert read_dataset(tmp_path).faults == ()


def test_a_stem_is_what_stands_before_the_last_dot(tmp_path: Path) -> None:
    """Names with dots are common, and `a.jpg.txt` is another tool's custom."""
    for name in ["a.b.jpg", "a.jpg"]:
        (tmp_path / name).write_bytes(_JPEG)
    (tmp_path / "a.b.TXT").write_text("the caption of a.b")
    (tmp_path / "a.jpg.txt").write_text("of nothing")

    assert _captions(tmp_path) == {"a.b.jpg": "the caption of a.b", "a.jpg": None}
    assert list(_skipped(tmp_path)) == ["a.jpg.txt"]


@pytest.mark.parametrize(("image", "text"), [(_NFC, _NFD), (_NFD, _NFC)])
def test_a_caption_is_found_however_its_umlauts_are_coded(tmp_path: Path, image: str, text: str) -> None:
    """macOS takes letters apart, other systems do not, and the two look the same."""
    (tmp_path / f"{image}.jpg").write_bytes(_JPEG)
    (tmp_path / f"{text}.txt").write_text("photo of TOK")

    assert list(_captions(tmp_path).values()) == ["photo of TOK"]


def test_two_images_of_one_stem_share_their_caption(tmp_path: Path) -> None:
    """Which of them is meant cannot be told, and both show the same thing more often than not."""
    (tmp_path / "a.jpg").write_bytes(_JPEG)
    (tmp_path / "a.png").write_bytes(encode(picture(32, 24), "PNG"))
    (tmp_path / "a.txt").write_text("photo of TOK")

    assert _captions(tmp_path) == {"a.jpg": "photo of TOK", "a.png": "photo of TOK"}
    assert read_dataset(tmp_path).captions == 2


def test_a_second_caption_of_one_name_is_named(tmp_path: Path) -> None:
    """Only one can be used; the other must not vanish."""
    (tmp_path / "a.jpg").write_bytes(_JPEG)
    (tmp_path / "a.TXT").write_text("the old one")
    (tmp_path / "a.txt").write_text("the new one")
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("this disk does not tell the two names apart")

    assert _captions(tmp_path) == {"a.jpg": "the new one"}
    assert _skipped(tmp_path) == {"a.TXT": "a second caption of that name"}
