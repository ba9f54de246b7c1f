"""A finetune is a folder. The trainer's whole state is files, so nothing is lost when a process dies.

    <data>/finetunes/<finetune_id>/
        request.json     what was asked for, the engine, when; never the upload, never a secret
        dataset/         001.jpg, 001.txt, …
        progress.json    state, step, time left; replaced as a whole
        attempts.json    how often it was begun and came to no end
        checkpoints/     the engine's: what it goes on from, the step as a number in each name
        outcome.json     what has come of it: the engine's last word, with the names of its files
        log.txt          what the worker did
    <data>/locks/<finetune_id>.lock    held by the worker that trains it

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

from filelock import FileLock

State = Literal["queued", "training", "ready", "failed"]

_STATES: Final = frozenset(get_args(State))
UNFINISHED: Final = frozenset({"queued", "training"})

_REQUEST: Final = ("parameters", "engine", "options", "created")
_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Hidden names and other endings are files that are still being written.
_CHECKPOINT: Final = re.compile(r"\w*?-?(\d{1,9})(\.[a-z]+)?")
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


@dataclass(frozen=True, slots=True)
class Attempts:
    """How often a training was begun and came to no end of its own."""

    running: bool = False
    """Begun, and not yet ended by its worker: who finds it so and holds the lock follows one that vanished."""
    errors: int = 0
    vanished: int = 0
    """Since the training first reached `checkpoint_step`."""
    checkpoint_step: int = 0


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
        self._write("progress.json", asdict(progress))

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

    def lock(self) -> FileLock:
        """Make the lock that whoever trains it holds. It lies elsewhere: a folder with an open file may not move."""
        folder = self.folder.parents[1] / "locks"
        folder.mkdir(mode=_PRIVATE_FOLDER, exist_ok=True)
        return FileLock(folder / f"{self.finetune_id}.lock", mode=0o600)

    def read_attempts(self) -> Attempts:
        """Read how often it was begun. What cannot be read counts as never."""
        told = _read_object(self.folder / "attempts.json")
        known = {name: told[name] for name in Attempts.__slots__ if isinstance(told.get(name), int)}
        return Attempts(**{**known, "running": bool(known.get("running"))})

    def write_attempts(self, attempts: Attempts) -> None:
        """Replace the count of attempts as a whole.

        Raises:
            JobGoneError: It was deleted.
        """
        self._write("attempts.json", asdict(attempts))

    def read_checkpoint_step(self) -> int:
        """The step of the newest checkpoint that lies there whole, 0 without any."""
        try:
            names = os.listdir(self.folder / "checkpoints")  # noqa: PTH208 - names are all it needs
        except OSError:
            return 0
        return max((int(found[1]) for name in names if (found := _CHECKPOINT.fullmatch(name))), default=0)

    def read_outcome(self) -> dict[str, Any]:
        """What the engine wrote at its end; empty before, and where it cannot be read."""
        return _read_object(self.folder / "outcome.json")

    def write_outcome(self, outcome: Mapping[str, Any]) -> None:
        """Say what has come of it.

        Raises:
            JobGoneError: It was deleted.
        """
        self._write("outcome.json", outcome)

    def find_files(self) -> dict[str, Path]:
        """The files the engine left, by the names its outcome lists: those that are there, and in this folder."""
        listed = self.read_outcome().get("files")
        names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
        return {name: path for name in names if (path := self._resolve(name)) is not None}

    def _resolve(self, name: str) -> Path | None:
        folder = self.folder.resolve()
        try:
            path = (folder / name).resolve()
            return path if path.is_relative_to(folder) and path.is_file() else None
        except (OSError, ValueError, RuntimeError):
            return None

    @property
    def is_gone(self) -> bool:
        """Whether it was deleted. An engine that goes on writing may have made the folder again, without a request."""
        return not (self.folder / "request.json").exists()

    def remove_remains(self) -> None:
        """Remove what an engine wrote into the folder of a deleted finetune."""
        if self.is_gone:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        try:
            if self.is_gone:
                raise FileNotFoundError
            _write_json(self.folder / name, content)
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

    def sweep_remains(self) -> None:
        """Remove folders that an engine made again after its finetune had been deleted."""
        for name in os.listdir(self._folder):  # noqa: PTH208 - as above
            if _ID.fullmatch(name) and not (self._folder / name / "request.json").exists():
                shutil.rmtree(self._folder / name, ignore_errors=True)

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


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file as a whole: write beside it, sync, rename."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open_private(beside, "w", "utf-8") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        _replace(beside, path)
    except OSError:
        # On a full disk it would stay behind, empty.
        beside.unlink(missing_ok=True)
        raise


def _replace(beside: Path, path: Path) -> None:
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
