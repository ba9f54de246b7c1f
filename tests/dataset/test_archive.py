"""The archive as a server sees it: flat, plain, the same bytes for the same folder, or one refusal with every fault."""

import hashlib
import os
import shutil
import struct
import subprocess
import threading
import unicodedata
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from bfl_mcp.dataset.archive import Archive, pack_dataset
from bfl_mcp.dataset.folder import read_dataset
from bfl_mcp.errors import DatasetError
from tests.dataset.made import encode, pack, refusal
from tests.pictures import fill_folder, picture

_DESCRIPTORS = Path("/dev/fd")
_counts_descriptors = pytest.mark.skipif(not _DESCRIPTORS.is_dir(), reason="open files cannot be counted here")


def _mixed_folder(folder: Path) -> Path:
    """Images that are kept, cut and coded anew, with and without captions, beside what is skipped."""
    fill_folder(folder, count=2)
    (folder / "c.png").write_bytes(encode(picture(seed=7), "PNG"))
    (folder / "d.gif").write_bytes(encode(picture(seed=8), "GIF"))
    (folder / "e.jpg").write_bytes(encode(picture(1600, 1200, seed=9), "JPEG", comment=b"cut me"))
    (folder / "f.zip").write_bytes(b"PK\x03\x04")
    (folder / "d.txt").write_text("\ufeffschöne photo of TOK\n", encoding="utf-8")
    return folder


def _packed(folder: Path, max_images: int = 100) -> Archive:
    with read_dataset(folder) as dataset:
        return pack_dataset(dataset, max_images=max_images, max_megapixels=1.0)


def _bytes(folder: Path) -> bytes:
    with closing(_packed(folder)) as archive:
        return archive.file.read()


def _open_files() -> int:
    return sum(1 for _ in _DESCRIPTORS.iterdir())


# --- the form of the archive ------------------------------------------------------------------------------------------


def test_an_archive_is_flat_and_numbered_in_name_order(tmp_path: Path) -> None:
    """BFL's guide wants files at the top, a caption beside its image; original names are nobody's business."""
    packed = pack(_mixed_folder(tmp_path))

    assert list(packed) == [
        "001.jpg", "001.txt", "002.jpg", "002.txt", "003.png", "004.png", "004.txt", "005.jpg",
    ]  # fmt: skip
    assert packed["001.jpg"] == (tmp_path / "a.jpg").read_bytes()
    assert packed["003.png"] == (tmp_path / "c.png").read_bytes()
    assert packed["001.txt"] == b"photo of TOK number 0"
    assert packed["004.txt"] == "schöne photo of TOK".encode()


def test_every_entry_is_a_plain_stored_file_of_no_particular_time(tmp_path: Path) -> None:
    """BFL's server looks at the attributes of an entry, and times would make two archives of one folder differ."""
    with closing(_packed(_mixed_folder(tmp_path))) as archive, zipfile.ZipFile(archive.file) as opened:
        for entry in opened.infolist():
            assert entry.external_attr == 0o100644 << 16
            assert entry.create_system == 3
            assert entry.compress_type == zipfile.ZIP_STORED
            assert entry.date_time == (1980, 1, 1, 0, 0, 0)
            assert entry.extra == entry.comment == b""
            assert not entry.is_dir()
        assert opened.comment == b""
        assert opened.testzip() is None


def test_local_headers_hold_the_sizes(tmp_path: Path) -> None:
    """Who unpacks a stream reads them first; a data descriptor behind the content is too late for some."""
    with closing(_packed(_mixed_folder(tmp_path))) as archive, zipfile.ZipFile(archive.file) as opened:
        for entry in opened.infolist():
            archive.file.seek(entry.header_offset)
            local = struct.unpack("<4s5H3I2H", archive.file.read(30))
            signature, _, flags, method, _, _, checksum, stored, size, _, extra = local

            assert signature == b"PK\x03\x04"
            assert flags & 0x08 == 0
            assert method == extra == 0
            assert (checksum, stored, size) == (entry.CRC, entry.file_size, entry.file_size)
            assert size > 0


@pytest.mark.skipif(not shutil.which("unzip"), reason="no unzip on this machine")
def test_another_program_can_unpack_it(tmp_path: Path) -> None:
    """Python reading what Python wrote proves little."""
    (tmp_path / "out.zip").write_bytes(_bytes(_mixed_folder(tmp_path / "in")))

    tested = subprocess.run([shutil.which("unzip") or "", "-t", tmp_path / "out.zip"], capture_output=True, check=False)

    assert tested.returncode == 0, tested.stdout


def test_an_archive_says_what_went_into_it(tmp_path: Path) -> None:
    """These numbers are shown before anything is paid for."""
    with closing(_packed(_mixed_folder(tmp_path))) as archive:
        data = archive.file.read()

        assert (archive.images, archive.captions) == (5, 3)
        assert archive.size_bytes == len(data)
        assert archive.sha256 == hashlib.sha256(data).hexdigest()
        assert [skipped.name for skipped in archive.skipped] == ["f.zip"]


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    """The digest is the identity of a dataset; neither times nor the place nor the order on disk belong to it."""
    folder = _mixed_folder(tmp_path / "one")
    first = _bytes(folder)

    for number, path in enumerate(folder.iterdir()):
        os.utime(path, (number * 1000, number * 1000))
    (tmp_path / "elsewhere").mkdir()
    for path in sorted(folder.iterdir(), reverse=True):
        shutil.copyfile(path, tmp_path / "elsewhere" / path.name)

    assert _bytes(folder) == first
    assert _bytes(tmp_path / "elsewhere") == first


def test_the_coding_of_umlauts_does_not_change_the_bytes(tmp_path: Path) -> None:
    """A folder copied from a Mac to Linux is the same dataset: the order follows the letters, not their coding."""
    names = ["Zebra", "äpfel", "ärger", "z"]
    for form in ("NFC", "NFD"):
        (tmp_path / form).mkdir()
        for seed, name in enumerate(names):
            stem = tmp_path / form / unicodedata.normalize("NFC" if form == "NFC" else "NFD", name)
            stem.with_suffix(".jpg").write_bytes(encode(picture(seed=seed), "JPEG"))

    assert _bytes(tmp_path / "NFC") == _bytes(tmp_path / "NFD")


def test_another_caption_gives_another_digest(tmp_path: Path) -> None:
    """An identity that two datasets share is none."""
    fill_folder(tmp_path)
    first = _bytes(tmp_path)

    (tmp_path / "a.txt").write_text("photo of somebody else")

    assert _bytes(tmp_path) != first


def test_a_thousand_images_keep_their_order(tmp_path: Path) -> None:
    """The last number has four digits; the work of several threads must not change places."""
    for number in range(1000):
        (tmp_path / f"{number:04}.png").write_bytes(encode(picture(16, 12, seed=number), "PNG"))

    packed = pack(tmp_path, max_images=1000)

    assert list(packed)[::333] == ["001.png", "334.png", "667.png", "1000.png"]
    assert all(data == (tmp_path / f"{number:04}.png").read_bytes() for number, data in enumerate(packed.values()))


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    """Nobody should mend one file to hear of the next."""
    fill_folder(tmp_path, count=3)
    whole = (tmp_path / "b.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.txt").write_bytes(b"caf\xe9")
    (tmp_path / "d.jpg").write_bytes(b"")
    (tmp_path / "e.png").write_bytes(b"not a picture")

    error = refusal(tmp_path, max_images=2)

    count, *named = sorted(error.faults)
    assert count == "It holds 3 images; this provider trains on 1 to 2: remove 1."
    assert [fault.split(":")[0] for fault in named] == ["b.jpg", "c.txt", "d.jpg", "e.png"]
    assert all(f"- {fault}" in str(error) for fault in error.faults)
    assert str(tmp_path) in str(error)
    assert "Nothing was sent or charged" in str(error)


def test_a_long_list_of_faults_is_cut_with_the_number_left_out(tmp_path: Path) -> None:
    """A thousand lines would push the conversation out of a model's sight."""
    for number in range(50):
        (tmp_path / f"{number:02}.jpg").write_bytes(b"")

    error = refusal(tmp_path)

    assert len(error.faults) == 50
    assert str(error).count("it is empty") == 40
    assert "… and 10 more." in str(error)


def test_as_many_images_as_allowed_are_packed_and_one_more_is_refused(tmp_path: Path) -> None:
    """BFL answers too many images with a moderation notice, which helps nobody."""
    fill_folder(tmp_path, count=4)

    assert len(pack(tmp_path, max_images=4)) == 8
    (fault,) = refusal(tmp_path, max_images=3).faults

    assert fault == "It holds 4 images; this provider trains on 1 to 3: remove 1."


def test_a_folder_far_above_the_limit_is_refused_without_decoding_it(tmp_path: Path) -> None:
    """Somebody named the folder with all their photographs; an hour of work would not change the answer."""
    fill_folder(tmp_path, count=9, captions=False)
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0 cannot be decoded")
    done: list[int] = []

    with pytest.raises(DatasetError) as refused:
        pack_dataset(read_dataset(tmp_path), max_images=4, max_megapixels=1.0, on_image=done.append)

    assert refused.value.faults == ("It holds 9 images; this provider trains on 1 to 4: remove 5.",)
    assert done == []


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    """An archive with nothing in it would still be taken for a dataset."""
    assert "no image" in refusal(tmp_path).faults[0]


# --- while it is at work ----------------------------------------------------------------------------------------------


def test_progress_is_told_image_by_image(tmp_path: Path) -> None:
    """A person who waits sees how far it is; a picture at fault counts too."""
    fill_folder(tmp_path, count=5)
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff\xe0 cannot be decoded")
    done: list[int] = []

    with pytest.raises(DatasetError):
        pack_dataset(read_dataset(tmp_path), max_images=10, max_megapixels=1.0, on_image=done.append)

    assert done == [1, 2, 3, 4, 5]


@_counts_descriptors
@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_a_cancelled_pack_leaves_no_file_and_no_thread(tmp_path: Path, stop: type[BaseException]) -> None:
    """Cancelling a tool call raises out of the callback; a server that runs for weeks must not leak."""
    fill_folder(tmp_path, count=26)
    dataset = read_dataset(tmp_path)
    open_before = _open_files()
    done: list[int] = []

    def on_image(number: int) -> None:
        done.append(number)
        if number == 2:
            raise stop

    with pytest.raises(stop):
        pack_dataset(dataset, max_images=30, max_megapixels=1.0, on_image=on_image)

    assert done == [1, 2]
    assert _open_files() == open_before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("bfl-mcp-image")]


@_counts_descriptors
def test_only_the_archive_stays_open_and_only_until_it_is_closed(tmp_path: Path) -> None:
    """Refused or packed, a thousand sources left open would exhaust what a process may hold."""
    fill_folder(tmp_path / "good", count=12)
    fill_folder(tmp_path / "bad", count=12)
    (tmp_path / "bad" / "c.jpg").write_bytes(b"\xff\xd8\xff\xe0 cannot be decoded")
    open_before = _open_files()

    refusal(tmp_path / "bad")
    archive = _packed(tmp_path / "good")
    open_between = _open_files()
    archive.close()

    assert open_between == open_before + 1
    assert _open_files() == open_before


def _overwrite(path: Path) -> None:
    size, changed_ns = path.stat().st_size, path.stat().st_mtime_ns
    with path.open("r+b") as file:
        file.seek(3)
        file.write(bytes(size - 3))
    os.utime(path, ns=(changed_ns + 1, changed_ns + 1))


def _shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("change", [_overwrite, _shorten])
def test_an_image_that_changes_between_its_check_and_its_turn_is_a_fault(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """Images are checked ahead of the one that is written; what was checked must be what is sent.

    Whether the second image is checked before or after it changes is left to the threads: it is a fault either way.
    The first one is slow, so that on two cores it is before.
    """
    fill_folder(tmp_path, count=3)
    (tmp_path / "a.jpg").write_bytes(encode(picture(4000, 3000), "JPEG"))

    def on_image(number: int) -> None:
        if number == 1:
            change(tmp_path / "b.jpg")

    with pytest.raises(DatasetError) as refused:
        pack_dataset(read_dataset(tmp_path), max_images=10, max_megapixels=1.0, on_image=on_image)

    (fault,) = refused.value.faults
    assert fault.startswith("b.jpg: it ")


def _delete(path: Path) -> None:
    path.unlink()


def _link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "a.jpg")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
@pytest.mark.parametrize("change", [_delete, _link, _pipe])
@pytest.mark.timeout(20, method="thread")  # a worker that waits for a pipe cannot be interrupted
def test_what_takes_the_place_of_an_image_after_it_was_found_is_a_fault(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """A link put there in between could send any file, a pipe could keep the server waiting for ever."""
    fill_folder(tmp_path, count=26, captions=False, size=(64, 48))

    def on_image(number: int) -> None:
        # At most nine are opened ahead, so the last one is not.
        if number == 1:
            change(tmp_path / "z.jpg")

    with pytest.raises(DatasetError) as refused:
        pack_dataset(read_dataset(tmp_path), max_images=30, max_megapixels=1.0, on_image=on_image)

    (fault,) = refused.value.faults
    assert fault.startswith("z.jpg: it cannot be read")
