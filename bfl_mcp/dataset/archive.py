"""The clean archive: flat, `001.jpg` beside `001.txt`, stored, fixed times. The same folder gives the same bytes."""

import hashlib
import os
import tempfile
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO, Final

from bfl_mcp.contract import MIN_IMAGES
from bfl_mcp.dataset.access import why
from bfl_mcp.dataset.findings import Finding
from bfl_mcp.dataset.folder import Dataset, ImageFile, Skipped
from bfl_mcp.dataset.images import HugeImageError, NoRoomError, prepare_image
from bfl_mcp.dataset.looks import Look
from bfl_mcp.dataset.prepared import Identity, KnownPicture, PreparedPictures
from bfl_mcp.errors import DatasetError, quote_name, quoted

_COPY_BLOCK_BYTES: Final = 1 << 18

# Pillow works outside the interpreter's lock. More threads than this would only cost memory.
_WORKERS: Final = min(os.cpu_count() or 1, 8)

# Beyond so many faults a reader has understood.
_FAULTS_SHOWN: Final = 40

# A refused folder often holds the right pictures in a form that is left out.
_LEFT_OUT_SHOWN: Final = 10

# The earliest time a ZIP can hold; when a folder was packed is nobody's business.
_TIME: Final = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Archive:
    """A packed dataset: an open temporary file that is gone once closed, and what went into it."""

    file: BinaryIO
    size_bytes: int
    sha256: str
    pictures_sha256: str
    """Identity of the images alone, whatever their captions."""
    images: int
    captions: int
    skipped: tuple[Skipped, ...]

    def close(self) -> None:
        self.file.close()


@dataclass(frozen=True, slots=True)
class Seen:
    """An image that decodes: its clean form, and its size on disk."""

    picture: KnownPicture
    source_bytes: int

    @property
    def look(self) -> Look:
        return self.picture.look

    @property
    def sent_bytes(self) -> int:
        """Its size in the archive."""
        return self.picture.size_bytes


@dataclass(frozen=True, slots=True)
class Examined:
    """A folder whose images were decoded. `archive` is None where there are faults; `seen` goes by file name."""

    faults: tuple[Finding, ...]
    seen: Mapping[str, Seen]
    archive: Archive | None


@dataclass(frozen=True, slots=True)
class _Ready:
    """An image whose turn to be written has come. `source` is open, and was checked when it was `identity`."""

    picture: KnownPicture
    source: BinaryIO
    identity: Identity


def pack_dataset(
    dataset: Dataset,
    *,
    max_images: int,
    max_megapixels: float,
    pictures: PreparedPictures | None = None,
    on_image: Callable[[int], None] = lambda _: None,
) -> Archive:
    """Decode every image and write the archive to a private temporary file, on all cores.

    What is in `pictures` is not decoded again, and what is decoded is kept there. `on_image` gets the number of images
    done so far; whatever it raises ends the work.

    Raises:
        DatasetError: Something in the folder cannot be trained on; every fault is named.
    """
    examined = examine_dataset(
        dataset, max_images=max_images, max_megapixels=max_megapixels, pictures=pictures, on_image=on_image
    )
    if examined.archive is None:
        raise refusal(dataset, examined)
    return examined.archive


def examine_dataset(
    dataset: Dataset,
    *,
    max_images: int,
    max_megapixels: float,
    pictures: PreparedPictures | None = None,
    on_image: Callable[[int], None] = lambda _: None,
) -> Examined:
    """The same, with what was seen on the way, and with faults in the place of a refusal."""
    faults = list(dataset.found_faults)
    seen: dict[str, Seen] = {}
    count = len(dataset.images)
    if count > max_images:
        what = (
            f"it holds {count} images; this provider trains on {MIN_IMAGES} to {max_images}: "
            f"remove {count - max_images}"
        )
        faults.append(Finding("too-many-images", (), what))
    try:
        file = tempfile.TemporaryFile(prefix="bfl-mcp-", suffix=".zip")
    except OSError as error:
        raise _no_room(error) from None
    try:
        # Decoding a thousand pictures to name their faults too would help nobody whose folder is the wrong one.
        contents = hashlib.sha256()
        if count <= 2 * max_images:
            prepared = _prepare_in_order(dataset, max_megapixels, pictures or PreparedPictures())
            _write_images(file, prepared, (faults, seen), on_image, contents.update)
        if faults:
            _discard(file)
            return Examined(tuple(faults), seen, None)
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
    except OSError as error:
        _discard(file)
        raise _no_room(error) from None
    except BaseException:
        _discard(file)
        raise
    archive = Archive(file, size, digest, contents.hexdigest(), count, dataset.captions, dataset.skipped)
    return Examined((), seen, archive)


class _ChangingError(DatasetError):
    """A file was written to while it was being read. Half a sentence."""


_CODES: Final = {HugeImageError: "huge", _ChangingError: "changing"}
"""What an image is called that fails otherwise than by damage."""


def _no_room(error: OSError | NoRoomError) -> DatasetError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return DatasetError(
        f"The archive could not be written to the folder for temporary files: {why}. Nothing was "
        "sent or charged. Make room on the disk, or set TMPDIR to a folder that has some."
    )


def _discard(file: BinaryIO) -> None:
    # What is left in the buffer may not fit on the disk either.
    with suppress(OSError):
        file.close()


def refusal(dataset: Dataset, examined: Examined) -> DatasetError:
    """The refusal of a folder that has faults, all of them named."""
    faults = [fault.sentence for fault in examined.faults]
    shown = [f"- {fault}" for fault in faults[:_FAULTS_SHOWN]]
    if len(faults) > _FAULTS_SHOWN:
        shown.append(f"- … and {len(faults) - _FAULTS_SHOWN} more.")
    lines = [f"{quoted(dataset.folder)} cannot be trained on as it is. Nothing was sent or charged.", *shown]
    if dataset.skipped:
        left_out = [f"- {item.name}: {item.reason}" for item in dataset.skipped[:_LEFT_OUT_SHOWN]]
        if len(dataset.skipped) > _LEFT_OUT_SHOWN:
            left_out.append(f"- … and {len(dataset.skipped) - _LEFT_OUT_SHOWN} more")
        lines += ["Left out:", *left_out]
    advice = "Mend or remove these files, then try again." if dataset.images else "Name a folder with images in it."
    return DatasetError("\n".join([*lines, advice]), faults)


def _write_images(
    file: BinaryIO,
    prepared: Iterator[tuple[ImageFile, Future[_Ready]]],
    into: tuple[list[Finding], dict[str, Seen]],
    on_image: Callable[[int], None],
    on_bytes: Callable[[bytes], None],
) -> None:
    faults, seen = into
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for number, (image, outcome) in enumerate(prepared, start=1):
            try:
                ready = outcome.result()
                with ready.source:
                    _write_image(archive, number, image, ready, on_bytes)
                seen[image.path.name] = Seen(ready.picture, ready.identity.size_bytes)
            except NoRoomError as error:
                raise _no_room(error) from None
            except DatasetError as error:
                code = _CODES.get(type(error), "damaged-image")
                faults.append(Finding(code, (quote_name(image.path.name),), str(error)))
            on_image(number)


def _prepare_in_order(
    dataset: Dataset, max_megapixels: float, pictures: PreparedPictures
) -> Iterator[tuple[ImageFile, Future[_Ready]]]:
    """Prepare images on all cores, a few ahead of the one that is written, so that memory stays bounded."""
    waiting: deque[tuple[ImageFile, Future[_Ready]]] = deque()
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="bfl-mcp-image") as pool:
        try:
            for image in dataset.images:
                waiting.append((image, pool.submit(_prepare, dataset, image, max_megapixels, pictures)))
                if len(waiting) > _WORKERS:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for _, future in waiting:
                future.add_done_callback(_close_source)
                future.cancel()


def _close_source(future: Future[_Ready]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().source.close()


def _prepare(dataset: Dataset, image: ImageFile, max_megapixels: float, pictures: PreparedPictures) -> _Ready:
    try:
        source = dataset.open(image)
    except OSError as error:
        raise DatasetError(f"it cannot be read: {why(error)}") from None
    try:
        before = _identify(image, source, max_megapixels)
        picture = pictures.find(before)
        if picture is None:
            prepared = prepare_image(source, max_megapixels)
            if _identify(image, source, max_megapixels) != before:
                raise _ChangingError("it changed while it was being read; try again when nothing writes to it")
            picture = pictures.keep(before, prepared)
    except BaseException:
        source.close()
        raise
    return _Ready(picture, source, before)


def _identify(image: ImageFile, file: BinaryIO, max_megapixels: float) -> Identity:
    status = os.fstat(file.fileno())
    times = status.st_mtime_ns, status.st_ctime_ns
    return Identity(os.fspath(image.path), status.st_size, *times, status.st_ino, max_megapixels)


def _write_image(
    archive: zipfile.ZipFile, number: int, image: ImageFile, ready: _Ready, on_bytes: Callable[[bytes], None]
) -> None:
    """Write one image and its caption."""
    name, picture = f"{number:03}", ready.picture
    on_bytes(picture.suffix.encode())
    with archive.open(_entry(name + picture.suffix), "w") as target:
        for block in picture.coded.blocks() if picture.coded is not None else _read_kept(ready):
            target.write(block)
            on_bytes(block)
    if _identify(image, ready.source, ready.identity.max_megapixels) != ready.identity:
        raise _ChangingError("it changed while it was being read; try again when nothing writes to it")
    if image.caption is not None:
        archive.writestr(_entry(name + ".txt"), image.caption.encode())


def _read_kept(ready: _Ready) -> Iterator[bytes]:
    for offset, length in ready.picture.kept:
        ready.source.seek(offset)
        left = length
        while left:
            try:
                block = ready.source.read(min(left, _COPY_BLOCK_BYTES))
            except OSError as error:
                raise DatasetError(f"it cannot be read: {error.strerror or error}") from None
            if not block:
                raise _ChangingError("it became shorter while it was being read; try again when nothing writes to it")
            yield block
            left -= len(block)


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _TIME)
    # A regular file, rw-r--r--, made on Unix: BFL's server looks at these attributes.
    entry.create_system = 3
    entry.external_attr = 0o100644 << 16
    return entry
