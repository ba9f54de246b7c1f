"""The newest pictures that were shown, kept as private JPEG files below `BFL_MCP_HOME`, for hosts that show none.

All calls block.
"""

import hashlib
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

MAX_KEPT: Final = 20


def album_folder(home: Path) -> Path:
    """Where they lie."""
    return home / "sheets"


def keep_picture(home: Path, jpeg: bytes) -> Path:
    """Keep a picture, and the newest others; gives its file. The same picture is the same file.

    Raises:
        OSError: It cannot be kept.
    """
    folder = album_folder(home)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(jpeg).hexdigest()[:32]}.jpg"
    beside = folder / f".{secrets.token_hex(8)}.tmp"
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(jpeg)
        beside.replace(path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise
    _make_room(folder, path)
    return path


def _make_room(folder: Path, newest: Path) -> None:
    """Remove the oldest pictures beyond those that are kept, and what a killed process left half written."""
    with suppress(OSError):
        others = [path for path in folder.iterdir() if path != newest and path.suffix in (".jpg", ".tmp")]
        newest_first = sorted(others, key=_written, reverse=True)
        for path in newest_first[MAX_KEPT - 1 :]:
            # Another server may have been quicker, or be writing it.
            with suppress(OSError):
                path.unlink()


def _written(path: Path) -> int:
    try:
        return path.lstat().st_mtime_ns
    except OSError:
        return 0
