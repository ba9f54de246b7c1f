"""Opens an uploaded archive carefully: what comes out is a flat dataset folder, or one sentence that names the entry.

An archive is hostile until checked: its size, the number of its entries, how far they unfold, their names, what they
are, and whether each image decodes.
"""

import stat
import zipfile
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Final

from bfl_mcp.contract import MAX_CAPTION_BYTES, MAX_IMAGES
from bfl_mcp.dataset.images import HEAD_BYTES, SUFFIXES, check_image, identify
from bfl_mcp.errors import DatasetError, quote_name
from bfl_mcp.trainer.jobs import open_private

_MAX_ENTRIES: Final = 4 * MAX_IMAGES
_MAX_RATIO: Final = 100
# Of all methods only these can be unpacked in blocks: zipfile lets a few bytes of bzip2 or LZMA fill the memory.
_METHODS: Final = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
_DIRECTORY_ENTRY: Final = b"PK\x01\x02"
_BLOCK_BYTES: Final = 1 << 18
_IGNORED: Final = frozenset({"thumbs.db", "desktop.ini"})


class BadArchiveError(Exception):
    """The archive cannot be trained on; the message names the entry."""


def unpack(archive: BytesIO, dataset: Path, max_bytes: int) -> None:
    """Write the images and captions of an archive into an empty folder as `001.jpg`, `001.txt`, ….

    At most `max_bytes` are written in all.

    Raises:
        BadArchiveError: It is no ZIP, holds something it should not, or nothing to train on.
    """
    try:
        _check_directory(archive)
        with zipfile.ZipFile(archive) as opened:
            _unpack(opened, dataset, max_bytes)
    except (BadArchiveError, OSError):
        # The archive lies in memory: what the system refuses concerns the dataset.
        raise
    except Exception:  # noqa: BLE001 - zipfile raises almost anything on damaged archives
        raise BadArchiveError("file_data is not a ZIP that can be read") from None


def _unpack(opened: zipfile.ZipFile, dataset: Path, max_bytes: int) -> None:
    entries = [entry for entry in opened.infolist() if not _is_ignored(entry)]
    if len(entries) > _MAX_ENTRIES:
        raise BadArchiveError(f"the archive holds {len(entries)} files; at most {_MAX_ENTRIES} are taken")
    for entry in entries:
        _check_entry(entry)
    unfolded = sum(entry.file_size for entry in entries)
    if unfolded > max_bytes:
        raise BadArchiveError(
            f"the archive unfolds to {unfolded / 1e6:.0f} MB; at most {max_bytes / 1e6:.0f} MB are taken"
        )

    captions = {_stem(entry): entry for entry in entries if _is_caption(entry)}
    images = [entry for entry in entries if not _is_caption(entry)]
    if not images:
        raise BadArchiveError("the archive holds no image")
    if len(images) > MAX_IMAGES:
        raise BadArchiveError(f"the archive holds {len(images)} images; at most {MAX_IMAGES} are taken")
    for number, entry in enumerate(images, start=1):
        _unpack_image(opened, entry, dataset, f"{number:03}")
        if caption := captions.get(_stem(entry)):
            _unpack_caption(opened, caption, dataset / f"{number:03}.txt")


def _check_directory(archive: BytesIO) -> None:
    """Refuse a directory of far too many entries before zipfile makes an object of each."""
    count, tail = 0, b""
    while block := archive.read(_BLOCK_BYTES):
        count += (tail + block).count(_DIRECTORY_ENTRY)
        tail = block[1 - len(_DIRECTORY_ENTRY) :]
    # Folders and what is ignored count here too.
    if count > 2 * _MAX_ENTRIES:
        raise BadArchiveError(f"the archive holds {count} entries; at most {_MAX_ENTRIES} files are taken")


def _is_caption(entry: zipfile.ZipInfo) -> bool:
    return entry.filename.lower().endswith(".txt")


def _is_ignored(entry: zipfile.ZipInfo) -> bool:
    """Folders, and what macOS, Windows and hidden folders leave in archives made by hand."""
    if "\\" in entry.filename:
        # `.\a.jpg` is no hidden file but a picture, packed by a tool that misnames all of them.
        return False
    parts = PurePosixPath(entry.filename).parts
    hidden = any(part == "__MACOSX" or (part.startswith(".") and part != "..") for part in parts)
    return entry.is_dir() or hidden or (bool(parts) and parts[-1].lower() in _IGNORED)


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name = _shown(entry)
    path = PurePosixPath(entry.filename)
    if not path.name or path.is_absolute() or ".." in path.parts or "\\" in entry.filename or ":" in entry.filename:
        raise BadArchiveError(f"{name} is not a plain name inside the archive")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        # BFL's own words for it, observed in 2025.
        raise BadArchiveError(f"Suspicious file attributes detected: {name}")
    if entry.flag_bits & 1:
        raise BadArchiveError(f"{name} is encrypted")
    if entry.compress_type not in _METHODS:
        raise BadArchiveError(f"{name} is packed with method {entry.compress_type}; store or deflate it")
    if entry.file_size > _MAX_RATIO * max(entry.compress_size, 1024):
        raise BadArchiveError(f"{name} unfolds to more than {_MAX_RATIO} times its size")


def _unpack_image(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, dataset: Path, number: str) -> None:
    target = dataset / f"{number}.part"
    _copy(opened, entry, target)
    try:
        with target.open("rb") as file:
            form = identify(file.read(HEAD_BYTES))
            if form == "archive":
                raise BadArchiveError(f"{_shown(entry)} is an archive inside the archive")
            if form not in SUFFIXES:
                raise BadArchiveError(f"{_shown(entry)} is neither a JPEG, PNG or WebP image nor a caption")
            suffix = check_image(file)
    except DatasetError as error:
        raise BadArchiveError(f"{_shown(entry)}: {error}") from None
    target.rename(dataset / f"{number}{suffix}")


def _unpack_caption(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
    if entry.file_size > MAX_CAPTION_BYTES:
        raise BadArchiveError(f"{_shown(entry)} is longer than {MAX_CAPTION_BYTES // 1000} kB")
    _copy(opened, entry, target)
    try:
        text = target.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadArchiveError(f"{_shown(entry)} is not UTF-8 text") from None
    if not text.strip():
        target.unlink()


def _copy(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
    """Copy one entry, never more than it announced."""
    left = entry.file_size
    try:
        source = opened.open(entry)
    except Exception:  # noqa: BLE001 - as in `unpack`
        raise BadArchiveError(f"{_shown(entry)} is damaged") from None
    with source, open_private(target, "xb") as file:
        while block := _read_block(source, entry):
            left -= len(block)
            if left < 0:
                raise BadArchiveError(f"{_shown(entry)} is longer than it says")
            file.write(block)
    if left:
        raise BadArchiveError(f"{_shown(entry)} is shorter than it says")


def _read_block(source: IO[bytes], entry: zipfile.ZipInfo) -> bytes:
    try:
        return source.read(_BLOCK_BYTES)
    except Exception:  # noqa: BLE001 - a wrong checksum, a broken stream
        raise BadArchiveError(f"{_shown(entry)} is damaged") from None


def _stem(entry: zipfile.ZipInfo) -> str:
    return str(PurePosixPath(entry.filename).with_suffix(""))


def _shown(entry: zipfile.ZipInfo) -> str:
    return quote_name(entry.filename, 100)
