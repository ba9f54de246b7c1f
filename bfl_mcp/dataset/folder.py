"""What lies in a folder: the images to train on, their captions, and what is left out and why.

Only the folder itself is read, never a subfolder, a link or a hidden file. A file is what its content says.
"""

import os
import stat
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from bfl_mcp.contract import MAX_CAPTION_BYTES
from bfl_mcp.dataset.images import HEAD_BYTES, identify
from bfl_mcp.errors import DatasetError, quote_foreign, quote_name

_IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff"})
_TOO_LONG: Final = f"the caption is longer than {MAX_CAPTION_BYTES // 1000} kB; shorten it"
_NOTHING: Final = "Nothing was sent or charged."
_SYSTEM_FILES: Final = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image to train on. `format` is Pillow's name of what its first bytes say."""

    path: Path
    format: str
    caption: str | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that is not used, and why, as half a sentence."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """A folder as it was found. Images in name order; `faults` holds one sentence each."""

    folder: Path
    images: tuple[ImageFile, ...]
    skipped: tuple[Skipped, ...]
    faults: tuple[str, ...]

    @property
    def captions(self) -> int:
        """How many images have a caption of their own."""
        return sum(image.caption is not None for image in self.images)


def read_dataset(folder: str | Path) -> Dataset:
    """Look through a folder. The images are not decoded yet.

    Raises:
        DatasetError: The folder cannot be read at all. What is wrong inside it is in `faults`.
    """
    path = _find_folder(str(folder))
    found = _Findings(path)
    captions: dict[str, Path] = {}
    try:
        with os.scandir(path) as entries:
            # NFC, because macOS hands out decomposed names and the same folder must give the same archive.
            ordered = sorted(entries, key=lambda entry: (_nfc(entry.name), entry.name))
    except OSError as error:
        raise DatasetError(f"{_shown(path)} cannot be read: {_why(error)}. {_NOTHING}") from None
    for entry in ordered:
        if reason := _reason_to_skip(entry):
            found.skip(entry.name, reason)
        elif Path(entry.name).suffix.lower() == ".txt":
            stem = _nfc(Path(entry.name).stem)
            if stem in captions:
                found.skip(captions[stem].name, "a second caption of that name")
            captions[stem] = Path(entry.path)
        else:
            found.look_at(Path(entry.path))
    return found.dataset(captions)


def folder_path(named: str) -> Path:
    """The folder that somebody named: of exactly that name where there is one, else without quotes and blanks around.

    Raises:
        RuntimeError: It begins with the home directory of nobody.
    """
    if os.path.isabs(named) and os.path.isdir(named):  # noqa: PTH112, PTH117 - False for what Path raises at
        return Path(named)
    # Models and people paste paths with line breaks and quotes around them.
    return Path(named.strip().strip("\"'").strip()).expanduser()


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, following no link.

    Raises:
        OSError: It is a link, a pipe, a device or cannot be opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path.name} is not a regular file")
    return os.fdopen(descriptor, "rb")


class _Findings:
    """What has been found so far in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images: list[ImageFile] = []
        self.skipped: list[Skipped] = []
        self.faults: list[str] = []

    def skip(self, name: str, reason: str) -> None:
        self.skipped.append(Skipped(quote_name(name), reason))

    def fault(self, name: str, what: str) -> None:
        self.faults.append(f"{quote_name(name)}: {what}.")

    def look_at(self, path: Path) -> None:
        """Sort one file by its content."""
        try:
            with open_regular(path) as file:
                head = file.read(HEAD_BYTES)
        except OSError as error:
            self.fault(path.name, f"it cannot be read: {_why(error)}")
            return
        suffix = path.suffix.lower()
        form = identify(head)
        if form == "HEIC":
            self.skip(path.name, "HEIC cannot be read yet (the extra bfl-mcp[heif] is coming): export it as JPEG")
        elif form == "archive":
            self.skip(path.name, "an archive; only images directly in the folder are used")
        elif form == "TIFF" and suffix not in _IMAGE_SUFFIXES:
            # Camera raw files are TIFFs, with suffixes of their own, whose first picture is a thumbnail.
            self.skip(path.name, "a camera raw file; export it as JPEG to use it")
        elif form is not None:
            self.images.append(ImageFile(path, form))
        elif suffix in _IMAGE_SUFFIXES:
            self.fault(path.name, "it is empty" if not head else "it is not an image, whatever its name says")
        else:
            self.skip(path.name, "not an image in a format that can be read")

    def dataset(self, captions: dict[str, Path]) -> Dataset:
        stems = {_nfc(image.path.stem) for image in self.images}
        texts: dict[str, str | None] = {}
        for stem, path in captions.items():
            if stem not in stems:
                self.skip(path.name, "a caption without an image of that name")
                continue
            texts[stem] = self._read_caption(path)
            if texts[stem] == "":
                self.skip(path.name, "an empty caption")
        images = tuple(
            ImageFile(image.path, image.format, texts.get(_nfc(image.path.stem)) or None) for image in self.images
        )
        if not images and not self.faults:
            self.faults.append("It holds no image that can be read (JPEG, PNG, WebP, AVIF, BMP, GIF or TIFF).")
        return Dataset(self.folder, images, tuple(self.skipped), tuple(self.faults))

    def _read_caption(self, path: Path) -> str | None:
        """The caption's text without the white space around it; None, and a fault, where it cannot be read."""
        try:
            with open_regular(path) as file:
                data = file.read(MAX_CAPTION_BYTES + 1)
        except OSError as error:
            self.fault(path.name, f"the caption cannot be read: {_why(error)}")
            return None
        if len(data) > MAX_CAPTION_BYTES:
            self.fault(path.name, _TOO_LONG)
            return None
        encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            self.fault(path.name, "the caption is not UTF-8 text; save it as UTF-8")
            return None
        if "\x00" in text:
            self.fault(path.name, "the caption holds NUL characters; save it as plain UTF-8 text")
            return None
        # Joined files hold several byte order marks, of which a reader of the archive would drop the first.
        text = text.replace("\r\n", "\n").replace("\ufeff", "").strip()
        # What has two bytes in UTF-16 has up to three in the archive.
        if len(text.encode()) > MAX_CAPTION_BYTES:
            self.fault(path.name, _TOO_LONG)
            return None
        return text


def _find_folder(named: str) -> Path:
    try:
        path = folder_path(named)
    except RuntimeError:
        raise DatasetError(f"{quote_foreign(named)!r} names an unknown home directory. {_NOTHING}") from None
    if not path.is_absolute():
        raise DatasetError(
            f"{quote_foreign(named)!r} is not a full path. {_NOTHING} Give it from the root or from ~, "
            "for example /home/ana/Pictures/robot."
        )
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise DatasetError(f"There is no folder {_shown(path)}. {_NOTHING} Ask the person for the path.") from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{_shown(path)} cannot be read: {_why(error)}. {_NOTHING}") from None
    if not stat.S_ISDIR(mode):
        raise DatasetError(
            f"{_shown(path)} is a file, not a folder. {_NOTHING} Name the folder it lies in: {_shown(path.parent)}."
        )
    return path


def _reason_to_skip(entry: os.DirEntry[str]) -> str | None:
    if entry.name.lower() in _SYSTEM_FILES:
        return "a file of the operating system"
    if entry.name.startswith("."):
        return "hidden"
    try:
        if entry.is_symlink():
            return "a link"
        if entry.is_dir():
            return "a subfolder; only images directly in the folder are used"
        if not entry.is_file():
            return "not a regular file"
    except OSError:
        return "it cannot be read"
    return None


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _shown(path: Path) -> str:
    return repr(quote_foreign(path))


def _why(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file or folder"
    if isinstance(error, PermissionError):
        return "this user may not read it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return "it is not a regular file" if isinstance(error, OSError) else "the name cannot be used"
