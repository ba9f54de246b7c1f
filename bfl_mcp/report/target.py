"""The file a page is written to: as a whole or not at all, and over nothing but an earlier report."""

import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from bfl_mcp.errors import BFLError, quoted

MARK: Final = "<!doctype html>\n<!-- A dataset report of bfl-mcp. "
"""What each report begins with, and nothing else does."""


class ReportError(BFLError):
    """The page cannot be written where the person wants it."""


def find_target(named: str) -> Path:
    """The whole path of the file that a name stands for, links resolved, once it is known that it may be written.

    Raises:
        ReportError: Something lies there that is no report of ours, or there is no such folder.
    """
    try:
        path = Path(os.path.realpath(Path(named).expanduser()))
        if named.endswith((os.sep, "/")) or path.is_dir():
            raise ReportError(f"{quoted(named)} is a folder. Give the report a name in it, such as report.html.")
        if Path(named).suffix.lower() not in (".html", ".htm"):
            # Of another name it could pass for a picture of the dataset, or for a caption.
            raise ReportError(f"{quoted(named)} does not end with .html. Give the report such a name: report.html.")
        if not path.parent.is_dir():
            raise ReportError(f"There is no folder {quoted(path.parent)} for the report. Make it, or choose another.")
        _check_may_go(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise _cannot_write(named, error) from None
    return path


def write_report(path: Path, parts: Iterable[str]) -> int:
    """Write a page part by part, and put it in its place once it is complete. Returns its size in bytes.

    Raises:
        ReportError: It cannot be written, or something else lies there by now.
    """
    # A leading dot keeps it out of the dataset where the report lies beside the pictures.
    staged = path.with_name(f".bfl-mcp-{secrets.token_hex(8)}.tmp")
    try:
        with staged.open("x", encoding="utf-8", newline="\n") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
        _check_may_go(path)
        staged.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        with suppress(OSError):
            staged.unlink()
    return size


def _check_may_go(path: Path) -> None:
    if not os.path.lexists(path):
        return
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(MARK)).replace(b"\r\n", b"\n") == MARK.encode():
                return
    raise ReportError(
        f"{quoted(path)} exists and is no report of bfl-mcp, so it is not written over. Choose another name, or "
        "remove it first."
    )


def _cannot_write(path: str | Path, error: Exception) -> ReportError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else "the name cannot be used"
    return ReportError(f"The report {quoted(path)} cannot be written: {reason[0].lower()}{reason[1:]}.")
