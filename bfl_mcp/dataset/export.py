"""A packed dataset put on the disk for other trainers: the archive itself, or its files in a folder of their own.

Nothing is ever overwritten. What is made has a hidden name in the same folder until it is whole, and then gets its own
name only where nothing has that yet; on failure nothing is left. Blocking: run it in a thread.
"""

import errno
import os
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Literal

from bfl_mcp.dataset.access import NEW_FILE_FLAGS, NOTHING, Access, OpenFolder, lies_in, shown, staged_name
from bfl_mcp.dataset.archive import Archive
from bfl_mcp.errors import DatasetError

Kind = Literal["archive", "folder"]
OnStep = Callable[[int, int], None]
"""Gets how much is written, of how much; whatever it raises ends the work, and nothing is left of it."""

_COPY_BLOCK_BYTES: Final = 1 << 20
_HAS_LINKS: Final = hasattr(os, "link")
_RENAMING_REPLACES: Final = os.name != "nt"


@dataclass(frozen=True, slots=True)
class Exported:
    """What was made. `names` are those of the images in it, in the order of the dataset."""

    path: Path
    kind: Kind
    size_bytes: int
    names: tuple[str, ...]


def check_destination(to: str, folder: str, access: Access) -> None:
    """Look whether a folder can be exported to a path, before work is spent on it.

    Raises:
        DatasetError: One of them may not be used, or something is there already.
    """
    with access.open(folder) as dataset, _destination(to, dataset.path, access) as (parent, name):
        try:
            if parent.status(name) is not None:
                raise _is_taken(parent.path / name)
        except OSError as error:
            raise _cannot_write(parent.path / name, error) from None


def export_archive(
    archive: Archive, to: str, folder: Path, access: Access, on_step: OnStep = lambda _done, _total: None
) -> Exported:
    """Put an archive of `folder` where `to` says. It is read from its start, and left as it was.

    Raises:
        DatasetError: Nothing may be made there, something is there already, or there is no room; nothing is left.
    """
    with _destination(to, folder, access) as (parent, name):
        path, staged = parent.path / name, staged_name()
        kind: Kind = "archive" if path.suffix.lower() == ".zip" else "folder"
        try:
            parent.check_is_here()
            _sweep(parent)
            with zipfile.ZipFile(archive.file) as packed:
                names = tuple(entry for entry in packed.namelist() if not entry.endswith(".txt"))
                if kind == "archive":
                    archive.file.seek(0)
                    _write(parent, staged, archive.file, lambda done: on_step(done, archive.size_bytes))
                    size = archive.size_bytes
                else:
                    size = _write_entries(packed, parent, staged, on_step)
            parent.check_is_here()
            _give_name(parent, staged, name, kind)
        except OSError as error:
            _discard(parent, staged)
            raise (_is_taken(path) if _is_about_what_is_there(error) else _cannot_write(path, error)) from None
        except BaseException:
            _discard(parent, staged)
            raise
        finally:
            archive.file.seek(0)
        parent.sync()
        return Exported(path, kind, size, names)


@contextmanager
def _destination(to: str, folder: Path, access: Access) -> Iterator[tuple[OpenFolder, str]]:
    """The open folder in which something is to be made, and the name it is to get."""
    parent, name = access.open_parent(to)
    with parent:
        if lies_in(parent.path, folder):
            raise DatasetError(
                f"{shown(parent.path / name)} would lie in the dataset itself, {shown(folder)}. {NOTHING} Choose a "
                "place outside of it."
            )
        yield parent, name


# --- writing ----------------------------------------------------------------------------------------------------------


def _write_entries(packed: zipfile.ZipFile, parent: OpenFolder, staged: str, on_step: OnStep) -> int:
    """Write the files of an archive into a new folder; gives their size in bytes."""
    path, within = parent.at(staged)
    os.mkdir(path, dir_fd=within)
    entries = packed.infolist()
    with parent.enter(staged) as folder:
        for number, entry in enumerate(entries, start=1):
            with packed.open(entry) as source:
                _write(folder, entry.filename, source)
            on_step(number, len(entries))
        folder.sync()
    return sum(entry.file_size for entry in entries)


def _write(folder: OpenFolder, name: str, source: IO[bytes], on_bytes: Callable[[int], None] = lambda _: None) -> None:
    """Write a new file, on disk for good when this returns."""
    path, within = folder.at(name)
    with os.fdopen(os.open(path, NEW_FILE_FLAGS, 0o666, dir_fd=within), "wb") as file:
        while block := source.read(_COPY_BLOCK_BYTES):
            file.write(block)
            on_bytes(file.tell())
        file.flush()
        os.fsync(file.fileno())


# --- giving it its name -----------------------------------------------------------------------------------------------


def _give_name(parent: OpenFolder, staged: str, name: str, kind: Kind) -> None:
    """Give what is whole its name, where nothing has it.

    Raises:
        OSError: Something has it, or the disk refuses.
    """
    if kind == "archive" and _HAS_LINKS and _link(parent, staged, name):
        parent.discard(staged)
        return
    source, within = parent.at(staged)
    target = parent.at(name)[0]
    if not _RENAMING_REPLACES:
        os.rename(source, target)  # noqa: PTH104 - as above
        return
    # To rename replaces a file, and an empty folder: it may only ever be one of ours, that held the name.
    if kind == "archive":
        os.close(os.open(target, NEW_FILE_FLAGS, 0o666, dir_fd=within))
    else:
        os.mkdir(target, dir_fd=within)
    try:
        os.rename(source, target, src_dir_fd=within, dst_dir_fd=within)
    except BaseException:
        with suppress(OSError):
            (os.unlink if kind == "archive" else os.rmdir)(target, dir_fd=within)
        raise


def _link(parent: OpenFolder, staged: str, name: str) -> bool:
    """Give a file a second name, which never replaces anything; False on a disk that knows no such thing."""
    source, within = parent.at(staged)
    try:
        os.link(source, parent.at(name)[0], src_dir_fd=within, dst_dir_fd=within)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


def _sweep(parent: OpenFolder) -> None:
    """Remove what exports that were killed left there, where this user may."""
    parent.sweep()
    with suppress(OSError):
        for name, status in parent.left_behind():
            if stat.S_ISDIR(status.st_mode):
                _discard(parent, name)


def _discard(parent: OpenFolder, staged: str) -> None:
    """Remove what has a hidden name of ours: a file, or a folder of files."""
    path, within = parent.at(staged)
    with suppress(OSError):
        status = parent.status(staged)
        if status is None:
            return
        if not stat.S_ISDIR(status.st_mode):
            parent.discard(staged)
            return
        with parent.enter(staged) as folder:
            for name in [entry.name for entry in folder.entries()]:
                folder.discard(name)
        os.rmdir(path, dir_fd=within)


# --- words ------------------------------------------------------------------------------------------------------------


def _is_about_what_is_there(error: OSError) -> bool:
    return isinstance(error, FileExistsError) or error.errno in (errno.ENOTEMPTY, errno.ENOTDIR)


def _is_taken(path: Path) -> DatasetError:
    return DatasetError(
        f"There is something at {shown(path)} already, and nothing is ever overwritten. Nothing was written. Choose "
        f"another name, for example {shown(path.with_name(f'{path.stem}-2{path.suffix}'))}."
    )


def _cannot_write(path: Path, error: OSError) -> DatasetError:
    reason = "this user may not" if isinstance(error, PermissionError) else error.strerror or str(error)
    return DatasetError(
        f"{shown(path)} cannot be written: {reason[0].lower() + reason[1:]}. Nothing is left there. Let this user "
        "write there, make room on the disk, or choose another place."
    )
