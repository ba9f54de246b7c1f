"""The process that trains: one for each data folder, first come first trained, gone when the queue is empty.

It belongs to nobody: it survives the server that started it, and if it is killed, whoever next sees unfinished work and
a free lock starts another, which takes the job up where it was. The lock dies with its process.
"""

import argparse
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from bfl_mcp.trainer.engines import ENGINES, Report
from bfl_mcp.trainer.jobs import Job, JobGoneError, Jobs, Progress, open_private

_SECONDS_BETWEEN_REPORTS: Final = 0.5


class Worker:
    """The one worker of a data folder, seen from a process that may have to start it."""

    def __init__(self, data: Path) -> None:
        self._data = data.absolute()
        self._child: subprocess.Popen[bytes] | None = None
        self._woken_again = False
        self._starting = threading.Lock()

    def wake(self) -> None:
        """Start a worker unless one is at work. Call it after work has been put down, or seen undone."""
        with self._starting:
            if self._child is not None and self._child.poll() is None:
                # It may have had its last look at the queue, with only its end to come.
                self._woken_again = True
                return
            lock = _lock(self._data)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                return
            lock.release()
            self._woken_again = False
            self._child = _spawn(self._data)
            threading.Thread(target=self._outlive, args=(self._child,), daemon=True).start()

    def _outlive(self, child: "subprocess.Popen[bytes]") -> None:
        """Wait for a worker's end, and start the next if it was woken for work that it may not have seen."""
        child.wait()
        with self._starting:
            missed = self._woken_again and self._child is child
        # Whoever removed the folder wants no worker.
        if missed and self._data.is_dir() and Jobs(self._data).unfinished():
            self.wake()


def drain(data: Path) -> None:
    """Train what is unfinished, in order, until nothing is. Returns at once where another worker is at it."""
    jobs = Jobs(data)
    lock = _lock(data)
    # Looked at again after the lock is free: a job put down just before that found the lock taken, and started nobody.
    while jobs.unfinished():
        try:
            # Whoever looks whether the lock is free holds it for a moment.
            lock.acquire(timeout=1)
        except Timeout:
            return
        try:
            while waiting := jobs.unfinished():
                _train(waiting[0])
        finally:
            lock.release()


def _lock(data: Path) -> FileLock:
    return FileLock(data / "worker.lock", mode=0o600)


def _train(job: Job) -> None:
    try:
        try:
            if job.engine not in ENGINES:
                raise LookupError(f"this trainer has no engine {job.engine!r}; it has {', '.join(ENGINES)}")
            step = job.read_progress().step
            job.log(f"training with the engine {job.engine!r} from step {step} of {job.parameters['iterations']}")
            ENGINES[job.engine](job, _reporter(job))
        except JobGoneError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever an engine raises ends its own job, never the queue
            failure = f"{type(error).__name__}: {error}"
            job.write_progress(Progress("failed", job.read_progress().step, error=failure))
            job.log(f"failed: {failure}")
        else:
            job.write_progress(Progress("ready", job.parameters["iterations"]))
            job.log("ready")
    except JobGoneError:
        # Deleted under our hands: nothing is left to say, and nowhere to say it.
        return


def _reporter(job: Job) -> Report:
    """Write progress at most every `_SECONDS_BETWEEN_REPORTS`, each write being a synced file."""
    reported = -_SECONDS_BETWEEN_REPORTS

    def report(step: int, seconds_left: float | None, doing: str) -> None:
        nonlocal reported
        now = time.monotonic()
        if now - reported >= _SECONDS_BETWEEN_REPORTS:
            reported = now
            job.write_progress(Progress("training", step, seconds_left, doing=doing))

    return report


def _spawn(data: Path) -> subprocess.Popen[bytes]:
    """Start a worker that shares nothing with this process: not its session, not its streams, not its key."""
    package_root = str(Path(__file__).parents[2])
    environment = {name: value for name, value in os.environ.items() if name != "BFL_API_KEY"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-P", "-m", "bfl_mcp.trainer.worker", "--data", str(data)]
    with open_private(data / "worker.log", "ab") as log:
        if sys.platform != "win32":
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=environment,
                cwd=data,
                start_new_session=True,
            )
        detached = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
        # A host may keep its servers in a job that ends with it; not every such job lets a process leave.
        for flags in (detached | subprocess.CREATE_BREAKAWAY_FROM_JOB, detached):
            try:
                return subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    env=environment,
                    cwd=data,
                    creationflags=flags,
                )
            except PermissionError:
                continue
        raise PermissionError("no detached process can be started here")


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="bfl_mcp.trainer.worker", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    drain(parser.parse_args().data)


if __name__ == "__main__":
    main()
