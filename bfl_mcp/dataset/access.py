"""Which folders may be named, and how they are opened so that nothing is swapped between the look and the reading.

An agent names the folder, so the name is checked like an attacker's: after all links are resolved it must lie in a
folder that the person allowed, outside hidden folders and the server's own data. Where the system has `openat`, the
folder is then opened step by step without following a link, and its files are opened through it: what was checked is
what is read, whatever happens to the path meanwhile. Two things are ever written there: a caption, a regular `.txt`,
replaced as a whole; and an export, under a name that nothing had. Until they are whole, both have a hidden name.
"""

import errno
import os
import re
import secrets
import stat
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Self

from bfl_mcp.config import Settings
from bfl_mcp.contract import MAX_PATH_CHARACTERS
from bfl_mcp.errors import DatasetError, quoted

NOTHING: Final = "Nothing was sent or charged."

_HAS_OPENAT: Final = os.open in os.supports_dir_fd and os.scandir in os.supports_fd
_FOLDER_FLAGS: Final = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
# On the way through a folder one needs to pass it, not to list it.
_PASSING: Final = getattr(os, "O_PATH", os.O_RDONLY)
# A pipe is not waited for, a terminal not taken.
_FILE_FLAGS: Final = (
    os.O_RDONLY
    | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
)
# Nothing is there yet, or somebody else put it there.
NEW_FILE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
_CAPTION_SUFFIX: Final = ".txt"

_STAGED_NAME: Final = re.compile(r"\.bfl-mcp-[0-9a-f]{16}\.tmp")
# Windows and many disks take none of them in a name.
_AWKWARD_CHARACTERS: Final = frozenset('\\:*?"<>|')

_LEFT_BEHIND_SECONDS: Final = 3600.0
"""What is older, and still has a hidden name of ours, was left there by a process that was killed."""


class OpenFolder:
    """A folder that was checked and is read from now on. Closed by `close`, as a context manager, or when forgotten."""

    def __init__(self, path: Path, descriptor: int | None) -> None:
        self.path = path
        self._descriptor = descriptor
        self._close = weakref.finalize(self, os.close, descriptor) if descriptor is not None else lambda: None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._close()

    def entries(self) -> Iterator[os.DirEntry[str]]:
        """What lies in it, in no order.

        Raises:
            OSError: It cannot be read.
        """
        with os.scandir(self.path if self._descriptor is None else self._descriptor) as entries:
            yield from entries

    def open(self, name: str) -> BinaryIO:
        """Open a regular file directly in it for reading, following no link.

        Raises:
            OSError: It is a link, a pipe, a device, or cannot be opened.
        """
        if self._descriptor is not None:
            descriptor = os.open(name, _FILE_FLAGS, dir_fd=self._descriptor)
        else:
            descriptor = os.open(self.path / name, _FILE_FLAGS)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or not self._is_still_here(name, descriptor):
            os.close(descriptor)
            raise OSError(f"{name} is not a regular file")
        return os.fdopen(descriptor, "rb")

    def status(self, name: str) -> os.stat_result | None:
        """What lies in it under a name, a link as such; None where nothing does.

        Raises:
            OSError: The system does not tell.
        """
        path, folder = self.at(name)
        try:
            return os.stat(path, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def stage(self, name: str, content: bytes) -> str:
        """Write what a caption shall hold beside it, on disk for good; gives the hidden name it has until `replace`.

        A crash leaves that hidden file, which nothing reads and `sweep` removes, and the old caption.

        Raises:
            OSError: There is no room, this user may not, or what has that name is no regular file.
            ValueError: It is not the name of a caption.
        """
        old = self._check_caption(name)
        staged = staged_name()
        path, folder = self.at(staged)
        descriptor = os.open(path, NEW_FILE_FLAGS, 0o666, dir_fd=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                if old is not None and hasattr(os, "fchmod"):
                    # Who could read the old one can read the new one, and nobody else.
                    os.fchmod(descriptor, stat.S_IMODE(old.st_mode) & 0o777)
                os.fsync(descriptor)
        except BaseException:
            self.discard(staged)
            raise
        return staged

    def replace(self, name: str, staged: str) -> None:
        """Put what was staged in place of a caption, at once.

        Raises:
            OSError: It cannot be put there, or what has that name is no regular file.
            ValueError: It is not the name of a caption.
        """
        self._check_caption(name)
        source, folder = self.at(staged)
        os.replace(source, self.at(name)[0], src_dir_fd=folder, dst_dir_fd=folder)

    def remove(self, name: str) -> None:
        """Remove a caption.

        Raises:
            OSError: It cannot be removed, or is no regular file.
            ValueError: It is not the name of a caption.
        """
        self._check_caption(name)
        path, folder = self.at(name)
        os.unlink(path, dir_fd=folder)

    def discard(self, staged: str) -> None:
        """Remove what was staged and is not wanted any more."""
        path, folder = self.at(staged)
        with suppress(OSError):
            os.unlink(path, dir_fd=folder)

    def left_behind(self) -> Iterator[tuple[str, os.stat_result]]:
        """What a killed process left in it under a hidden name of ours an hour ago or earlier; with what it is.

        Raises:
            OSError: It cannot be read.
        """
        for name in [entry.name for entry in self.entries() if is_staged(entry.name)]:
            status = self.status(name)
            if status is not None and status.st_mtime < time.time() - _LEFT_BEHIND_SECONDS:
                yield name, status

    def sweep(self) -> None:
        """Remove the files that killed processes left in it, where this user may."""
        with suppress(OSError):
            for name, status in self.left_behind():
                if stat.S_ISREG(status.st_mode):
                    self.discard(name)

    def sync(self) -> None:
        """Let the names of the files reach the disk, where the system can be asked for it."""
        if self._descriptor is not None:
            with suppress(OSError):
                os.fsync(self._descriptor)

    def _check_caption(self, name: str) -> os.stat_result | None:
        """What lies where a caption is to be written or removed.

        Raises:
            OSError: It is no regular file, or the path leads to another folder by now.
            ValueError: It is not the name of a caption, whoever chose it.
        """
        if os.path.basename(name) != name or Path(name).suffix.lower() != _CAPTION_SUFFIX or "\0" in name:  # noqa: PTH119
            raise ValueError(f"{name!r} is not the name of a caption")
        self.check_is_here()
        status = self.status(name)
        if status is not None and not stat.S_ISREG(status.st_mode):
            raise OSError(f"{name} is not a regular file")
        return status

    def check_is_here(self) -> None:
        """Look whether its path still leads to it, where files in it can be named by path only.

        Raises:
            FileNotFoundError: It leads elsewhere.
        """
        if self._descriptor is None and os.path.realpath(self.path) != str(self.path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def enter(self, name: str) -> "OpenFolder":
        """Open a folder directly in it, following no link.

        Raises:
            OSError: It is none, or cannot be opened.
        """
        path, folder = self.at(name)
        if folder is None:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            return OpenFolder(self.path / name, None)
        return OpenFolder(self.path / name, os.open(path, os.O_RDONLY | _FOLDER_FLAGS, dir_fd=folder))

    def at(self, name: str) -> tuple[str, int | None]:
        """How the system is told of a file in it: a path, and the folder to take it from."""
        return (os.fspath(self.path / name), None) if self._descriptor is None else (name, self._descriptor)

    def _is_still_here(self, name: str, descriptor: int) -> bool:
        """Whether what was opened is what lies in the folder. Only asked where a path had to be opened again."""
        if self._descriptor is not None:
            return True
        path = self.path / name
        return os.path.realpath(path) == str(path) and os.path.samestat(os.fstat(descriptor), path.lstat())


@dataclass(frozen=True, slots=True)
class Access:
    """What may be read: folders below `allowed` (None for any folder), except what lies in `private`."""

    allowed: tuple[Path, ...] | None = None
    private: tuple[Path, ...] = ()

    @classmethod
    def of_agents(cls, settings: Settings) -> Self:
        """What may be read where it is an agent that names the folder."""
        return cls(settings.allowed_dirs, private=(settings.home,))

    def open(self, named: str | Path) -> OpenFolder:
        """Check and open a folder.

        Raises:
            DatasetError: It may not be read, is none, or cannot be opened.
        """
        path = _read_name(str(named))
        try:
            real = Path(os.path.realpath(path))
        except (OSError, ValueError):
            raise DatasetError(f"{shown(path)} cannot be used as the name of a folder. {NOTHING}") from None
        root = self._root_of(path, real)
        try:
            return _open_below(root, real)
        except (OSError, ValueError) as error:
            raise self._cannot_open(path, real, error) from None

    def open_parent(self, named: str | Path) -> tuple[OpenFolder, str]:
        """Check and open the folder in which something new is to get a name, and give that name.

        Raises:
            DatasetError: Nothing may be made there, or under that name.
        """
        path = _read_name(str(named))
        if path.name in ("", ".."):
            raise DatasetError(f"{shown(path)} ends with no name for something new. {NOTHING} Give the whole path.")
        if path.name.startswith("."):
            raise DatasetError(f"{shown(path)} would be hidden. {NOTHING} Choose a name without a dot before it.")
        if not path.name.isprintable() or _AWKWARD_CHARACTERS & set(path.name):
            raise DatasetError(
                f"The name {quoted(path.name)} holds a character that not every system takes in a name. {NOTHING} "
                "Choose letters, digits, spaces, dots, - and _."
            )
        parent = self.open(path.parent)
        if any(_is_same(parent.path / path.name, private) for private in self.private):
            parent.close()
            raise DatasetError(
                f"{shown(path)} is for this server's own data. {NOTHING} Choose another name, or another folder."
            )
        return parent, path.name

    def _root_of(self, path: Path, real: Path) -> Path:
        """The folder below which the checks hold.

        Raises:
            DatasetError: It lies in no allowed one. Said before anything is said of what is there.
        """
        root = real
        if self.allowed is not None:
            # The innermost, so that a hidden folder can be allowed by its own name.
            roots = [folder for folder in map(_real, self.allowed) if real.is_relative_to(folder)]
            if not roots:
                raise DatasetError(
                    f"{shown(path)} is not in a folder that this server may read. {NOTHING} It may read: "
                    f"{self._names()}. Choose a folder in there, or let the person add this one to "
                    "BFL_MCP_ALLOWED_DIRS (or --allow) and restart the server."
                )
            root = max(roots, key=lambda folder: len(folder.parts))
            hidden = next((part for part in _parts_below(root, real) if _is_hidden(part)), None)
            if hidden is not None:
                raise DatasetError(
                    f"{shown(path)} lies in the hidden folder {quoted(hidden.name)}, and hidden folders are never "
                    f"read or written. {NOTHING} Take a folder that is not hidden, and copy the pictures there if "
                    "they lie in this one."
                )
        if any(lies_in(real, private) for private in self.private):
            raise DatasetError(
                f"{shown(path)} holds this server's own data, which is neither read as a dataset nor written to. "
                f"{NOTHING} Name another folder."
            )
        return root

    def _cannot_open(self, path: Path, real: Path, error: Exception) -> DatasetError:
        if isinstance(error, FileNotFoundError):
            # Where nothing is said of what is allowed, it is a person who named it.
            advice = "Look at the path again." if self.allowed is None else "Ask the person for the path."
            return DatasetError(f"There is no folder {shown(path)}. {NOTHING} {advice}")
        if isinstance(error, NotADirectoryError) and real.is_file():
            return DatasetError(
                f"{shown(path)} is a file, not a folder. {NOTHING} Name the folder it lies in: {shown(path.parent)}."
            )
        return DatasetError(f"{shown(path)} cannot be read: {why(error)}. {NOTHING}")

    def _names(self) -> str:
        return ", ".join(shown(folder) for folder in self.allowed or ()) or "none at all"


ANYWHERE: Final = Access()
"""For a folder that the person names, rather than an agent."""


def staged_name() -> str:
    """A hidden name that nothing has, for what is not whole yet."""
    return f".bfl-mcp-{secrets.token_hex(8)}.tmp"


def is_staged(name: str) -> bool:
    """Whether it is a hidden name of ours, of what is not whole yet or never became it."""
    return _STAGED_NAME.fullmatch(name) is not None


def lies_in(path: Path, folder: Path) -> bool:
    """Whether a path is a folder or lies below it, however the two are spelled or mounted."""
    return any(_is_same(outer, folder) for outer in (path, *path.parents))


def shown(path: Path) -> str:
    """A path as it may stand in a sentence."""
    return quoted(path)


def why(error: Exception) -> str:
    """Why a file or folder cannot be read, as half a sentence."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file or folder"
    if isinstance(error, PermissionError) and error.errno == errno.EPERM:
        # What macOS answers to an app that may not look into Desktop, Documents or Downloads.
        return (
            "operation not permitted; on a Mac, allow the app that runs this server under System Settings, Privacy & "
            "Security, Files and Folders (or Full Disk Access)"
        )
    if isinstance(error, PermissionError):
        return "this user may not read it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return "it is not a regular file" if isinstance(error, OSError) else "the name cannot be used"


def _read_name(named: str) -> Path:
    if len(named) > MAX_PATH_CHARACTERS:
        raise DatasetError(f"{quoted(named, 80)} is longer than any path. {NOTHING} Ask the person for the folder.")
    try:
        path = Path(named)
        # Of exactly that name where there is such a folder. Else models and people paste paths with line breaks and
        # quotation marks around them.
        if not (os.path.isabs(named) and os.path.isdir(named)):  # noqa: PTH112, PTH117 - False for what Path raises at
            path = Path(named.strip().strip("\"'").strip()).expanduser()
    except RuntimeError:
        raise DatasetError(f"{quoted(named)} names an unknown home directory. {NOTHING} Give the whole path.") from None
    if not path.is_absolute():
        raise DatasetError(
            f"{quoted(named)} is not a full path. {NOTHING} Give it from the root or from ~, "
            "for example /home/ana/Pictures/robot."
        )
    return path


def _parts_below(root: Path, real: Path) -> Iterator[Path]:
    path = root
    for part in real.relative_to(root).parts:
        path /= part
        yield path


def _is_hidden(path: Path) -> bool:
    """By a dot, or by the flag of macOS (`~/Library`) and Windows (`AppData`)."""
    if path.name.startswith("."):
        return True
    try:
        status = path.lstat()
    except (OSError, ValueError):
        return False
    flags, attributes = getattr(status, "st_flags", 0), getattr(status, "st_file_attributes", 0)
    return bool(flags & stat.UF_HIDDEN or attributes & stat.FILE_ATTRIBUTE_HIDDEN)


def _is_same(path: Path, private: Path) -> bool:
    """Whether two paths are one folder, however they are spelled or mounted."""
    try:
        return path == _real(private) or path.samefile(private)
    except (OSError, ValueError):
        return False


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _open_below(root: Path, real: Path) -> OpenFolder:
    """Open a folder whose links are resolved, from its root down, without following a link put there since."""
    if not _HAS_OPENAT:
        if not stat.S_ISDIR(real.lstat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return OpenFolder(real, None)
    descriptor: int | None = None
    steps = [os.fspath(root), *real.relative_to(root).parts]
    for number, step in enumerate(steps, start=1):
        outer = descriptor
        try:
            how = os.O_RDONLY if number == len(steps) else _PASSING
            descriptor = os.open(step, how | _FOLDER_FLAGS, dir_fd=outer)
        finally:
            if outer is not None:
                os.close(outer)
    return OpenFolder(real, descriptor)
