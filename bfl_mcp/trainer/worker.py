"""The processes that train: one for each GPU, first come first trained, gone when nothing is left to do.

They belong to nobody: they survive the server that started them, and if one is killed, whoever next sees unfinished
work and a free place starts another, which takes the job up where it was. A worker holds two locks, which die with it:
that of its place, so that no GPU has two, and that of the job it trains, so that no job has two. Each training gets a
fresh process, so that whatever the last one left in the memory of the GPU is gone.
"""

import argparse
import os
import re
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from bfl_mcp.trainer.engines import ENGINES, RESUME_ANYWHERE, Report, TrainingError
from bfl_mcp.trainer.jobs import UNFINISHED, Job, JobGoneError, Jobs, Progress
from bfl_mcp.trainer.spawn import build_environment, spawn

_SECONDS_BETWEEN_REPORTS: Final = 0.5
# A worker that cannot work would be started anew at every look, some thirty times in a quarter of a minute.
_REST_SECONDS: Final = 15.0
_MAX_RESUMES: Final = 10
"""Without a new checkpoint in between: whatever ended that many workers will end the next."""
_MAX_ERRORS: Final = 2
# An engine that reports learns of a deletion by itself. One that loads a model or decodes a picture does not.
_SECONDS_BETWEEN_LOOKS: Final = 0.5
_SECONDS_TO_NOTICE: Final = 3.0


class Workers:
    """The workers of a data folder, one for each slot, seen from a process that may have to start them."""

    def __init__(self, data: Path, slots: int = 1) -> None:
        self._data = data.absolute()
        self._slots = [_Slot(self._data, number) for number in range(slots)]
        self._starting = threading.Lock()

    def wake(self) -> None:
        """Start workers while there is work for them. Call it after work has been put down, or seen undone."""
        with self._starting:
            free = [slot for slot in self._slots if not slot.is_taken() and not slot.is_resting()]
            if not free:
                return
            wanted = len(Jobs(self._data).unfinished()) - (len(self._slots) - len(free))
            for slot in free[: max(0, wanted)]:
                slot.child = spawn(self._data, slot.number, build_environment(slot.number, len(self._slots)))
                slot.woken_again = False
                slot.started = time.monotonic()
                threading.Thread(target=self._outlive, args=(slot, slot.child), daemon=True).start()

    def count_busy(self) -> int:
        """How many of them are at work, whoever started them."""
        return sum(slot.is_locked() for slot in self._slots)

    def _outlive(self, slot: "_Slot", child: "subprocess.Popen[bytes]") -> None:
        """Wait for a worker's end, and start the next if it was woken for work that it may not have seen."""
        child.wait()
        with self._starting:
            missed = slot.woken_again and slot.child is child
        # Whoever removed the folder wants no worker.
        if missed and self._data.is_dir() and Jobs(self._data).unfinished():
            self.wake()


class _Slot:
    """The place of one worker. There is one for each GPU."""

    def __init__(self, data: Path, number: int) -> None:
        self.number = number
        self.child: subprocess.Popen[bytes] | None = None
        self.woken_again = False
        self.started = 0.0
        self._lock = _lock(data, number)

    def is_taken(self) -> bool:
        if self.child is not None and self.child.poll() is None:
            # It may have had its last look at the queue, with only its end to come.
            self.woken_again = True
            return True
        return self.is_locked()

    def is_resting(self) -> bool:
        """Whether its last worker ended by an error of its own, as on a full disk, and the next is not due yet."""
        failed = self.child is not None and (self.child.poll() or 0) > 0
        return failed and time.monotonic() - self.started < _REST_SECONDS

    def is_locked(self) -> bool:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return True
        self._lock.release()
        return False


def drain(data: Path, slot: int = 0) -> None:
    """Train in this process what is unfinished, in order, until nothing is that another worker is not at."""
    while train_next(data, slot):
        pass


def train_next(data: Path, slot: int = 0, on_claim: Callable[[Job], None] = lambda _: None) -> bool:
    """Train the first job that no other worker is at. False where there is none, or where the slot is taken."""
    jobs = Jobs(data)
    lock = _lock(data, slot)
    held: set[str] = set()
    # Looked at again after the lock is free: a job put down just before that found the lock taken, and started nobody.
    while any(job.finetune_id not in held for job in jobs.unfinished()):
        try:
            # Whoever looks whether the lock is free holds it for a moment.
            lock.acquire(timeout=1)
        except Timeout:
            return False
        try:
            for job in jobs.unfinished():
                if _train_if_free(job, on_claim):
                    return True
                held.add(job.finetune_id)
        finally:
            lock.release()
    return False


def _lock(data: Path, slot: int) -> FileLock:
    return FileLock(data / f"worker-{slot}.lock", mode=0o600)


def _train_if_free(job: Job, on_claim: Callable[[Job], None]) -> bool:
    lock = job.lock()
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    try:
        # Between the look at the queue and the lock, another may have trained it to its end.
        if not _is_unfinished(job):
            return False
        on_claim(job)
        _train(job)
        return True
    finally:
        if not _is_unfinished(job):
            # Who waits for the lock meanwhile gets one without a name, and finds nothing left to train.
            with suppress(OSError):
                Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _is_unfinished(job: Job) -> bool:
    try:
        return not job.is_gone and job.read_progress().state in UNFINISHED
    except JobGoneError:
        return False


def _train(job: Job) -> None:
    try:
        if _may_begin(job):
            _run_engine(job)
    except JobGoneError:
        # Deleted under our hands: nothing is left to say, and nowhere to say it.
        job.remove_remains()


def _may_begin(job: Job) -> bool:
    """Count this attempt. False where too many before it vanished; the job has failed then."""
    attempts = job.read_attempts()
    step = job.read_progress().step
    reached = step if job.engine in RESUME_ANYWHERE else job.read_checkpoint_step()
    vanished = attempts.vanished + attempts.running
    if reached > attempts.checkpoint_step:
        vanished = min(vanished, int(attempts.running))
    if vanished > _MAX_RESUMES:
        _fail(
            job,
            f"its worker vanished {vanished} times without a new checkpoint after step {reached}, and was resumed "
            f"{_MAX_RESUMES} times: something ends it from outside, as systems do where memory runs out. worker.log "
            "in the trainer's data folder may say what. Free some memory, or train with less, and start it again.",
        )
        return False
    if attempts.running:
        job.log(f"the worker before vanished; resume {vanished} of at most {_MAX_RESUMES} without a new checkpoint")
    job.write_attempts(replace(attempts, running=True, vanished=vanished, checkpoint_step=reached))
    return True


def _run_engine(job: Job) -> None:
    try:
        if job.engine not in ENGINES:
            raise TrainingError(f"this trainer has no engine {job.engine!r}; it has {', '.join(ENGINES)}")
        step = job.read_progress().step
        job.write_progress(Progress("training", step, doing="starting"))
        job.log(f"training with the engine {job.engine!r} from step {step} of {job.parameters['iterations']}")
        ENGINES[job.engine](job, _reporter(job))
    except JobGoneError:
        raise
    except TrainingError as error:
        _fail(job, str(error))
    except Exception as error:  # noqa: BLE001 - whatever an engine raises ends its own job, never the queue
        _fail_or_try_again(job, error)
    else:
        job.write_progress(Progress("ready", job.parameters["iterations"]))
        job.write_attempts(replace(job.read_attempts(), running=False))
        job.log("ready")


def _fail_or_try_again(job: Job, error: Exception) -> None:
    failure = f"{type(error).__name__}: {error}"
    attempts = job.read_attempts()
    attempts = replace(attempts, running=False, errors=attempts.errors + 1)
    job.write_attempts(attempts)
    job.log("".join(traceback.format_exception(error)).rstrip())
    if attempts.errors >= _MAX_ERRORS:
        _fail(job, failure)
    else:
        job.log(f"{failure}; it is tried once more")


def _fail(job: Job, failure: str) -> None:
    job.write_progress(Progress("failed", job.read_progress().step, error=failure))
    job.write_attempts(replace(job.read_attempts(), running=False))
    job.log(f"failed: {failure}")


def _reporter(job: Job) -> Report:
    """Write progress at once where something else is done, else every `_SECONDS_BETWEEN_REPORTS`: files are synced."""
    reported = -_SECONDS_BETWEEN_REPORTS
    stage = ""

    def report(step: int, seconds_left: float | None, doing: str) -> None:
        nonlocal reported, stage
        now = time.monotonic()
        # "captioning 3 of 12 images" is the same stage as 4 of 12.
        is_new = stage != (stage := re.sub(r"[\d.,]+", "", doing))
        if is_new or now - reported >= _SECONDS_BETWEEN_REPORTS:
            reported = now
            job.write_progress(Progress("training", step, seconds_left, doing=doing))

    return report


# --- the process ------------------------------------------------------------------------------------------------------


def work(data: Path, slot: int) -> None:
    """Train one job, and begin anew for the next. Comes back when nothing is left to do."""
    # The worker before may have been an engine that wrote on to its last moment.
    Jobs(data).sweep_remains()
    if train_next(data, slot, on_claim=lambda job: _watch(job, data, slot)):
        _begin_anew(data, slot)


def _watch(job: Job, data: Path, slot: int) -> None:
    """Leave a training whose job was deleted, where its engine does not notice by itself."""

    def look() -> None:
        while not job.is_gone:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        time.sleep(_SECONDS_TO_NOTICE)
        _begin_anew(data, slot)

    threading.Thread(target=look, daemon=True).start()


def _begin_anew(data: Path, slot: int) -> None:
    """Become a fresh worker: same process, same place, nothing kept. The locks go with what is left behind."""
    if sys.platform != "win32":
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - no shell is wanted
    spawn(data, slot, dict(os.environ))
    os._exit(0)


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="bfl_mcp.trainer.worker", description=__doc__)
    parser.add_argument("--slot", type=int, default=0)
    parser.add_argument("--data", type=Path, required=True)
    chosen = parser.parse_args()
    work(chosen.data, chosen.slot)


if __name__ == "__main__":
    main()
