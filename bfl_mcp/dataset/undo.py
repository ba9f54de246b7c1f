"""What captions said before they were written over: one private JSON file for each folder, below `BFL_MCP_HOME`."""

import base64
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from bfl_mcp.errors import ConfigError, DatasetError, quoted

_WAIT_SECONDS: Final = 20.0
"""Another call about the same folder is waited for so long; a thousand captions take some seconds."""


@dataclass(frozen=True, slots=True)
class Replaced:
    """A caption that was written: what its file held before and after; None where there was no file."""

    images: tuple[str, ...]
    caption: str
    before: bytes | None
    after: bytes | None


@dataclass(frozen=True, slots=True)
class Past:
    """What can be brought back in one folder.

    `last` is what the last call replaced. `first` has for each caption what it held before the first of our writes in
    a row, so that a second call does not lose what a person wrote.
    """

    last: tuple[Replaced, ...] = ()
    first: tuple[Replaced, ...] = ()

    def with_written(self, written: Sequence[Replaced]) -> Self:
        """The past once these were written."""
        first = {known.caption: known for known in self.first}
        for new in written:
            known = first.get(new.caption)
            goes_on = known is not None and known.after == new.before
            first[new.caption] = replace(known, after=new.after) if known is not None and goes_on else new
        return type(self)(tuple(written), tuple(first.values()))

    def without(self, undone: Collection[Replaced]) -> Self:
        """The past once these were brought back."""
        held = {back.caption: back.before for back in undone}
        first = [
            replace(known, after=held[known.caption]) if known.caption in held else known
            for known in self.first
            if known.caption not in held or known.before != held[known.caption]
        ]
        return type(self)(tuple(known for known in self.last if known.caption not in held), tuple(first))


class UndoFile:
    """The past of one folder on disk. All calls block.

    Raises:
        ConfigError: It cannot be kept. `own` and `write` may; nothing was changed in the folder then.
    """

    def __init__(self, home: Path, folder: Path) -> None:
        self._folder = folder
        name = hashlib.sha256(os.fsencode(folder)).hexdigest()
        self._path = home / "captions" / f"{name}.json"

    @contextmanager
    def own(self) -> Iterator[None]:
        """Be the only one who writes captions of this folder, among the servers that share this `BFL_MCP_HOME`."""
        from filelock import FileLock, Timeout

        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = FileLock(self._path.with_suffix(".lock"), mode=0o600, thread_local=False)
            lock.acquire(timeout=_WAIT_SECONDS)
        except Timeout:
            raise DatasetError(
                f"Another call is writing captions in {quoted(self._folder)}. Nothing was written by this one. Try "
                "again when it has answered."
            ) from None
        except OSError as error:
            raise self._cannot_keep(error) from None
        try:
            yield
        finally:
            lock.release()

    def read(self) -> Past:
        """What is kept. Nothing where nothing was written yet, or the file makes no sense."""
        try:
            kept = json.loads(self._path.read_bytes())
            return Past(*(tuple(map(_read_replaced, kept[name])) for name in ("last", "first")))
        except FileNotFoundError:
            return Past()
        except OSError as error:
            raise self._cannot_keep(error) from None
        except (ValueError, TypeError, KeyError, AttributeError):
            return Past()

    def write(self, past: Past) -> None:
        """Keep this instead, on disk for good when it returns."""
        kept = {
            "folder": os.fspath(self._folder),
            **{name: [_as_json(known) for known in getattr(past, name)] for name in ("last", "first")},
        }
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                json.dump(kept, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self._path)
        except OSError as error:
            raise self._cannot_keep(error) from None

    def _cannot_keep(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"What the captions said before cannot be kept in {quoted(self._path.parent)} "
            f"({error.strerror or error}), so nothing was written in {quoted(self._folder)}. Make room on the disk, or "
            "set BFL_MCP_HOME to a folder that this user may write."
        )


def _as_json(known: Replaced) -> dict[str, Any]:
    # ASCII, because names of files may hold bytes that are no text.
    return {
        "images": known.images,
        "caption": known.caption,
        "before": _content_as_json(known.before),
        "after": _content_as_json(known.after),
    }


def _content_as_json(content: bytes | None) -> dict[str, str] | None:
    """As text that people can read, where it is one."""
    if content is None:
        return None
    try:
        return {"text": content.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode()}


def _read_replaced(kept: dict[str, Any]) -> Replaced:
    images, caption = tuple(map(str, kept["images"])), str(kept["caption"])
    if Path(caption).name != caption:
        raise ValueError(f"{caption!r} is not the name of a caption")
    return Replaced(images, caption, _read_content(kept["before"]), _read_content(kept["after"]))


def _read_content(kept: dict[str, str] | None) -> bytes | None:
    if kept is None:
        return None
    return kept["text"].encode() if "text" in kept else base64.b64decode(kept["base64"], validate=True)
