"""Pictures that were prepared before, so that checking, looking, packing and packing again decode each file once.

What was seen is kept in memory by path, size and time; coded pictures lie in a temporary file without a name, which
nobody else can open and which is gone when the process is, however it ends. Both are bounded: what is oldest is
forgotten first.
"""

import errno
import tempfile
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import BinaryIO, Final, NamedTuple

from bfl_mcp.dataset.images import NoRoomError, PreparedImage
from bfl_mcp.dataset.kept import Ranges
from bfl_mcp.dataset.looks import Look

_BLOCK_BYTES: Final = 1 << 18
_MOST_BYTES: Final = 1_000_000_000
"""Room for the pictures of a thousand photographs, three times over."""
_MOST_PICTURES: Final = 4_000


class Identity(NamedTuple):
    """What a picture was made of and for. The times are of its content and of the file itself."""

    path: str
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    max_megapixels: float


class _Spool:
    """The coded pictures of one generation, in one file."""

    def __init__(self) -> None:
        # Unbuffered: what a full disk does not take must not come back with the next picture.
        self._file = tempfile.TemporaryFile(prefix="bfl-mcp-pictures-", buffering=0)
        self._close = weakref.finalize(self, self._file.close)
        self._lock = threading.Lock()
        self.size_bytes = 0

    def append(self, data: bytes) -> "Coded":
        with self._lock:
            offset = self._file.seek(self.size_bytes)
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
            self.size_bytes += len(data)
            return Coded(self, offset, len(data))

    def read(self, offset: int, length: int) -> bytes:
        with self._lock:
            self._file.seek(offset)
            data = self._file.read(length)
        if len(data) < length:
            raise OSError(errno.EIO, "a temporary file became shorter")
        return data


@dataclass(frozen=True, slots=True)
class Coded:
    """A coded picture in a temporary file, there as long as anybody holds this."""

    spool: _Spool
    offset: int
    length: int

    def blocks(self) -> Iterator[bytes]:
        """Its bytes, a block at a time.

        Raises:
            OSError: The temporary file cannot be read.
        """
        for start in range(0, self.length, _BLOCK_BYTES):
            yield self.spool.read(self.offset + start, min(_BLOCK_BYTES, self.length - start))


@dataclass(frozen=True, slots=True)
class KnownPicture:
    """A picture ready for training: either coded anew, or parts of its own file."""

    suffix: str
    look: Look
    coded: Coded | None
    kept: Ranges

    @property
    def size_bytes(self) -> int:
        return self.coded.length if self.coded is not None else sum(length for _, length in self.kept)

    def open(self) -> BinaryIO | None:
        """What was coded anew, as a file; None where the picture's own file is as good.

        Raises:
            OSError: The temporary file cannot be read.
        """
        return BytesIO(b"".join(self.coded.blocks())) if self.coded is not None else None


@dataclass(frozen=True, slots=True)
class _Generation:
    # Apart from the spool: what a picture refers to must not refer to it, or its file would outlive it.
    spool: _Spool = field(default_factory=_Spool)
    known: dict[Identity, KnownPicture] = field(default_factory=dict)


class PreparedPictures:
    """The pictures one process has prepared. Any thread may call."""

    def __init__(self, most_bytes: int = _MOST_BYTES, most_pictures: int = _MOST_PICTURES) -> None:
        self._most_bytes = most_bytes // 2
        self._most_pictures = most_pictures // 2
        self._lock = threading.Lock()
        # Two generations: when the newer one is full, the older one goes as a whole.
        self._older: _Generation | None = None
        self._newer: _Generation | None = None

    def find(self, identity: Identity) -> KnownPicture | None:
        """The picture that was made of that very file, if it is still known."""
        with self._lock:
            if self._newer is not None and identity in self._newer.known:
                return self._newer.known[identity]
            known = self._older.known.get(identity) if self._older is not None else None
            # What is used stays: with the older generation it would go.
            return known and self._renew(identity, known)

    def keep(self, identity: Identity, image: PreparedImage) -> KnownPicture:
        """Keep a picture that was prepared just now.

        Raises:
            NoRoomError: The temporary file cannot be written.
        """
        try:
            with self._lock:
                generation = self._with_room(len(image.encoded or b""))
                coded = generation.spool.append(image.encoded) if image.encoded is not None else None
                known = generation.known[identity] = KnownPicture(image.suffix, image.look, coded, image.kept)
        except OSError as error:
            raise NoRoomError(error.strerror or str(error)) from None
        return known

    def forget(self) -> None:
        """Give all room back that nobody reads from any more."""
        with self._lock:
            self._older = self._newer = None

    def _renew(self, identity: Identity, known: KnownPicture) -> KnownPicture:
        try:
            data = b"".join(known.coded.blocks()) if known.coded is not None else b""
            generation = self._with_room(len(data))
            coded = generation.spool.append(data) if known.coded is not None else None
        except OSError:
            return known
        renewed = generation.known[identity] = replace(known, coded=coded)
        return renewed

    def _with_room(self, size_bytes: int) -> _Generation:
        newer = self._newer
        if newer is None:
            newer = _Generation()
        elif newer.spool.size_bytes + size_bytes > self._most_bytes or len(newer.known) >= self._most_pictures:
            self._older, newer = newer, _Generation()
        self._newer = newer
        return newer
