"""A finetune is a folder. The trainer's whole state is files, so nothing is lost when a process dies.

    <data>/finetunes/<finetune_id>/
        request.json     what was asked for, the engine, when; never the upload, never a secret
        dataset/         001.jpg, 001.txt, …
        progress.json    state, step, time left; replaced as a whole
        log.txt          what the worker did

A finetune is made under a hidden name and renamed last, and renamed away before it is deleted: whoever lists the folder
sees whole finetunes only, and any number of processes may share it.
"""

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final, Literal, get_args

State = Literal["queued", "training", "ready", "failed"]

_STATES: Final = frozenset(get_args(State))
UNFINISHED: Final = frozenset({"queued", "training"})

_REQUEST: Final = ("parameters", "engine", "options", "created")
_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PRIVATE_FOLDER: Final = 0o700
# An upload that takes longer than this to arrive has been given up by everyone.
_ABANDONED_AFTER_SECONDS: Final = 24 * 3600


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a finetune is. `seconds_left` is None while nobody can tell."""

    state: State
    step: int = 0
    seconds_left: float | None = None
    error: str | None = None
    doing: str = ""


def open_private(path: Path, mode: str, encoding: str | None = None) -> IO[Any]:
    """Open a file that is written for this user alone, whatever the umask says."""
    return open(path, mode, encoding=encoding, opener=lambda name, flags: os.open(name, flags, 0o600))


class JobGoneError(Exception):
    """The finetune was deleted while somebody worked on it."""


@dataclass(frozen=True, slots=True)
class Job:
    """One finetune on disk. The request does not change once it is there; progress is read anew each time."""

    folder: Path
    parameters: Mapping[str, Any]
    engine: str
    options: Mapping[str, Any]
    created: str

    @property
    def finetune_id(self) -> str:
        return self.folder.name

    @property
    def order(self) -> tuple[str, str]:
        """Position in the queue: first come, first trained."""
        return self.created, self.finetune_id

    def read_progress(self) -> Progress:
        """Read how far it is.

        Raises:
            JobGoneError: It was deleted.
        """
        try:
            told = json.loads((self.folder / "progress.json").read_bytes())
            progress = Progress(**{name: told[name] for name in Progress.__slots__ if name in told})
        except FileNotFoundError:
            raise JobGoneError(self.finetune_id) from None
        except (OSError, ValueError, TypeError):
            return Progress("failed", error="its progress.json cannot be read")
        if progress.state not in _STATES or not isinstance(progress.step, int):
            return Progress("failed", error="its progress.json makes no sense")
        return progress

    def write_progress(self, progress: Progress) -> None:
        """Replace the progress as a whole.

        Raises:
            JobGoneError: It was deleted.
        """
        try:
            _write_json(self.folder / "progress.json", asdict(progress))
        except FileNotFoundError:
            raise JobGoneError(self.finetune_id) from None

    def log(self, line: str) -> None:
        """Add one line to `log.txt`, with the time.

        Raises:
            JobGoneError: It was deleted.
        """
        try:
            with open_private(self.folder / "log.txt", "a", "utf-8") as file:
                file.write(f"{_now()} {line}\n")
        except FileNotFoundError:
            raise JobGoneError(self.finetune_id) from None

    def read_outcome(self) -> dict[str, Any] | None:
        """What the engine wrote at its end, None before."""
        try:
            outcome = json.loads((self.folder / "outcome.json").read_bytes())
        except (OSError, ValueError):
            return None
        return outcome if isinstance(outcome, dict) else None

    def write_outcome(self, outcome: Mapping[str, Any]) -> None:
        """Say what has come of it.

        Raises:
            JobGoneError: It was deleted.
        """
        try:
            _write_json(self.folder / "outcome.json", outcome)
        except FileNotFoundError:
            raise JobGoneError(self.finetune_id) from None


class Jobs:
    """All finetunes of one data folder."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self._folder = data / "finetunes"
        self._folder.mkdir(mode=_PRIVATE_FOLDER, parents=True, exist_ok=True)

    def create(
        self,
        parameters: Mapping[str, Any],
        engine: str,
        options: Mapping[str, Any],
        fill: Callable[[Path], None],
        notes: tuple[str, ...] = (),
    ) -> Job:
        """Make a queued finetune. `fill` gets the empty dataset folder; if it raises, nothing remains."""
        self._folder.mkdir(mode=_PRIVATE_FOLDER, parents=True, exist_ok=True)
        self._sweep()
        finetune_id = str(uuid.uuid4())
        making = self._folder / f".new-{finetune_id}"
        making.mkdir(mode=_PRIVATE_FOLDER)
        try:
            (making / "dataset").mkdir(mode=_PRIVATE_FOLDER)
            fill(making / "dataset")
            created = _now()
            request = {"parameters": dict(parameters), "engine": engine, "options": dict(options), "created": created}
            _write_json(making / "request.json", request)
            job = Job(making, parameters, engine, options, created)
            job.write_progress(Progress("queued"))
            for note in notes:
                job.log(note)
            target = self._folder / finetune_id
            making.rename(target)
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise
        return Job(target, parameters, engine, options, created)

    def find(self, finetune_id: str) -> Job | None:
        """The finetune of that id. An id that is none of ours names no folder."""
        return self._read(self._folder / finetune_id) if _ID.fullmatch(finetune_id) else None

    def all(self) -> list[Job]:
        """Every finetune, oldest first."""
        jobs = [self._read(self._folder / name) for name in os.listdir(self._folder) if _ID.fullmatch(name)]  # noqa: PTH208 - names are all it needs
        return sorted((job for job in jobs if job is not None), key=lambda job: job.order)

    def unfinished(self) -> list[Job]:
        """The finetunes that still want work, the next one first."""
        return [job for job in self.all() if _is_unfinished(job)]

    def delete(self, finetune_id: str) -> bool:
        """Delete a finetune with all its files. False where there is none."""
        job = self.find(finetune_id)
        if job is None:
            return False
        going = self._folder / f".deleted-{finetune_id}"
        try:
            job.folder.rename(going)
        except FileNotFoundError:
            return False
        shutil.rmtree(going, ignore_errors=True)
        return True

    def _read(self, folder: Path) -> Job | None:
        try:
            request = json.loads((folder / "request.json").read_bytes())
            parameters, engine, options, created = (request[name] for name in _REQUEST)
        except (OSError, ValueError, KeyError, TypeError):
            # One damaged folder must not speak for all others.
            return None
        if not (isinstance(parameters, dict) and isinstance(options, dict) and isinstance(created, str)):
            return None
        return Job(folder, parameters, str(engine), options, created)

    def _sweep(self) -> None:
        """Remove what a process that died left half made or half deleted."""
        for path in self._folder.glob(".*"):
            try:
                old = time.time() - path.stat().st_mtime > _ABANDONED_AFTER_SECONDS
            except FileNotFoundError:
                continue
            if old or path.name.startswith(".deleted-"):
                shutil.rmtree(path, ignore_errors=True)


def _is_unfinished(job: Job) -> bool:
    try:
        return job.read_progress().state in UNFINISHED
    except JobGoneError:
        return False


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file as a whole: write beside it, sync, rename."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with open_private(beside, "w", "utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for attempt in range(20):
        try:
            beside.replace(path)
        except PermissionError:
            # Windows refuses while somebody reads the old one, which takes a moment.
            if attempt == 19:
                raise
            time.sleep(0.02)
        else:
            return
