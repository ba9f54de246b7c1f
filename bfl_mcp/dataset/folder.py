"""What lies in a folder: the images to train on, their captions, and what is left out and why.

Only the folder itself is read, never a subfolder, a link or a hidden file. A file is what its content says.
"""

import os
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, Self

from bfl_mcp.contract import MAX_CAPTION_BYTES, MAX_IMAGE_FILE_BYTES
from bfl_mcp.dataset.access import ANYWHERE, NOTHING, Access, OpenFolder, is_staged, shown, why
from bfl_mcp.dataset.findings import Finding
from bfl_mcp.dataset.images import HEAD_BYTES, identify, reads_heic
from bfl_mcp.dataset.wording import decode_caption
from bfl_mcp.errors import DatasetError, quote_name

_IMAGE_SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif"}
)
_SYSTEM_FILES: Final = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image to train on. `format` is Pillow's name of what its first bytes say."""

    path: Path
    format: str
    caption: str | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that is not used, and why, as half a sentence. `code` is its row in the table of checks."""

    name: str
    reason: str
    code: str = "left-out"


@dataclass(frozen=True, slots=True)
class Dataset:
    """A folder as it was found. Images in name order; `found_faults` are what cannot be trained on, before decoding.

    The folder stays open, so that its files can be read later through `open` and nothing else.
    """

    folder: Path
    images: tuple[ImageFile, ...]
    skipped: tuple[Skipped, ...]
    found_faults: tuple[Finding, ...]
    _source: OpenFolder = field(compare=False, repr=False)

    @property
    def faults(self) -> tuple[str, ...]:
        """One sentence for each fault."""
        return tuple(fault.sentence for fault in self.found_faults)

    @property
    def captions(self) -> int:
        """How many images have a caption of their own."""
        return sum(image.caption is not None for image in self.images)

    def open(self, image: ImageFile) -> BinaryIO:
        """Open an image for reading, wherever its path may lead by now.

        Raises:
            OSError: It is gone, or no longer a regular file.
        """
        return self._source.open(image.path.name)

    @property
    def source(self) -> OpenFolder:
        """The folder itself, for whoever writes captions beside the images."""
        return self._source

    def close(self) -> None:
        """Let go of the folder. What was found in it stays."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_dataset(folder: str | Path, access: Access = ANYWHERE) -> Dataset:
    """Look through a folder. The images are not decoded yet.

    Raises:
        DatasetError: The folder may or can not be read at all. What is wrong inside it is in `faults`.
    """
    source = access.open(folder)
    found = _Findings(source)
    captions: dict[str, Path] = {}
    try:
        # NFC, because macOS hands out decomposed names and the same folder must give the same archive.
        ordered = sorted(source.entries(), key=lambda entry: (_nfc(entry.name), entry.name))
    except OSError as error:
        source.close()
        raise DatasetError(f"{shown(source.path)} cannot be read: {why(error)}. {NOTHING}") from None
    for entry in ordered:
        if is_staged(entry.name):
            # What a killed write of ours left; the next one removes it.
            continue
        if skipped := _reason_to_skip(entry):
            found.skip(entry.name, *skipped)
        elif Path(entry.name).suffix.lower() == ".txt":
            stem = _nfc(Path(entry.name).stem)
            if stem in captions:
                found.skip(captions[stem].name, "a second caption of that name", "second-caption")
            captions[stem] = source.path / entry.name
        else:
            found.look_at(source.path / entry.name)
    return found.dataset(captions)


class _Findings:
    """What has been found so far in one folder."""

    def __init__(self, source: OpenFolder) -> None:
        self._source = source
        self.images: list[ImageFile] = []
        self.skipped: list[Skipped] = []
        self.faults: list[Finding] = []

    def skip(self, name: str, reason: str, code: str = "left-out") -> None:
        self.skipped.append(Skipped(quote_name(name), reason, code))

    def fault(self, code: str, name: str, what: str) -> None:
        self.faults.append(Finding(code, (quote_name(name),), what))

    def look_at(self, path: Path) -> None:
        """Sort one file by its content."""
        try:
            with self._source.open(path.name) as file:
                head = file.read(HEAD_BYTES)
                size = os.fstat(file.fileno()).st_size
        except OSError as error:
            self.fault("unreadable-file", path.name, f"it cannot be read: {why(error)}")
            return
        suffix = path.suffix.lower()
        form = identify(head)
        if form == "HEIC" and not reads_heic():
            reason = "HEIC, which this server reads with its extra 'heif' only: install that, or export it as JPEG"
            self.skip(path.name, reason, "left-out-image")
        elif form == "archive":
            self.skip(path.name, "an archive; only images directly in the folder are used", "left-out-image")
        elif form == "TIFF" and suffix not in _IMAGE_SUFFIXES:
            # Camera raw files are TIFFs, with suffixes of their own, whose first picture is a thumbnail.
            self.skip(path.name, "a camera raw file; export it as JPEG to use it", "left-out-image")
        elif form is not None and size > MAX_IMAGE_FILE_BYTES:
            limit = f"at most {MAX_IMAGE_FILE_BYTES // 1_000_000} MB are read"
            self.fault("huge", path.name, f"the file has {size / 1e6:.0f} MB; {limit}: export it smaller")
        elif form is not None:
            self.images.append(ImageFile(path, form))
        elif suffix in _IMAGE_SUFFIXES:
            what = "it is empty" if not head else "it is not an image, whatever its name says"
            self.fault("no-image", path.name, what)
        else:
            self.skip(path.name, "not an image in a format that can be read")

    def dataset(self, captions: dict[str, Path]) -> Dataset:
        stems = {_nfc(image.path.stem) for image in self.images}
        alike = {_nfc(image.path.stem).casefold(): quote_name(image.path.name) for image in self.images}
        texts: dict[str, str | None] = {}
        for stem, path in captions.items():
            if stem not in stems:
                other = alike.get(stem.casefold())
                code = "orphan-caption" if other is None else "caption-case"
                more = "" if other is None else f"; {other} differs from it in case"
                self.skip(path.name, f"a caption without an image of that name{more}", code)
                continue
            texts[stem] = self._read_caption(path)
            if texts[stem] == "":
                self.skip(path.name, "an empty caption", "empty-caption")
        images = tuple(
            ImageFile(image.path, image.format, texts.get(_nfc(image.path.stem)) or None) for image in self.images
        )
        if not images and not self.faults:
            heic = "HEIC, " if reads_heic() else ""
            what = f"it holds no image that can be read (JPEG, PNG, WebP, AVIF, {heic}BMP, GIF or TIFF)"
            self.faults.append(Finding("no-images", (), what))
        return Dataset(self._source.path, images, tuple(self.skipped), tuple(self.faults), self._source)

    def _read_caption(self, path: Path) -> str | None:
        """The caption's text without the white space around it; None, and a fault, where it cannot be read."""
        try:
            with self._source.open(path.name) as file:
                data = file.read(MAX_CAPTION_BYTES + 1)
        except OSError as error:
            self.fault("unreadable-caption", path.name, f"the caption cannot be read: {why(error)}")
            return None
        try:
            return decode_caption(data)
        except DatasetError as error:
            self.fault("unreadable-caption", path.name, str(error))
            return None


def _reason_to_skip(entry: os.DirEntry[str]) -> tuple[str, str] | None:
    """Why a file is left out, and its row in the table of checks."""
    if entry.name.lower() in _SYSTEM_FILES:
        return "a file of the operating system", "left-out"
    if entry.name.startswith("."):
        return "hidden", "left-out"
    try:
        if entry.is_symlink():
            return "a link", "link"
        if entry.is_dir():
            return "a subfolder; only images directly in the folder are used", "left-out"
        if not entry.is_file():
            return "not a regular file", "left-out"
    except OSError:
        return "it cannot be read", "left-out"
    return None


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)
