"""Progress in words: what is being done, how much of it is done, and how long it still takes."""

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from bfl_mcp.trainer.engines import Report
from bfl_mcp.trainer.jobs import Job

# As many steps as there are between two checkpoints, so that writing one is part of the pace.
_STEPS_OF_PACE: Final = 50
_STEPS_A_LINE: Final = 10
_LOSSES_IN_MEAN: Final = 10


class Telling:
    """Tells the worker, and whoever reads the log, where one finetune stands.

    The worker's number of seconds is for the whole finetune, which nobody knows before the first steps of training.
    What an earlier stage still takes is said in words.
    """

    def __init__(self, job: Job, report: Report, step: int) -> None:
        self._job, self._report, self._step = job, report, step
        self._iterations: int = job.parameters["iterations"]
        self._ends: deque[float] = deque(maxlen=_STEPS_OF_PACE + 1)
        # A download tells from several threads.
        self._speaking = threading.Lock()

    def log(self, line: str) -> None:
        with self._speaking:
            self._job.log(line)

    def say(self, doing: str, seconds_left: float | None = None) -> None:
        """Report that something is being done. Raises JobGoneError where the finetune was deleted."""
        with self._speaking:
            self._report(self._step, seconds_left, doing)

    def begin(self, doing: str) -> None:
        """Report and log something of which no parts can be counted."""
        self.log(doing)
        self.say(doing)

    def counting(self, form: str) -> Callable[[int, int], None]:
        """Give a function that takes how many are done and how many there are. `form` names both, as `{}`."""
        return self._timed(form.format)

    def counting_bytes(self, doing: str) -> Callable[[int, int], None]:
        """Give a function that takes the bytes done and those there are."""
        return self._timed(lambda done, total: f"{doing}, {done / 1e9:.1f} of {total / 1e9:.1f} GB")

    def counting_samples(self) -> Callable[[int, int], None]:
        """Give a function that takes the sampling steps done and those there are: the last stage that takes long."""
        began: tuple[float, int] | None = None

        def tell(done: int, total: int) -> None:
            nonlocal began
            now = time.monotonic()
            if began is None:
                began = now, done
                self.log("sampling the same prompts before and after")
            self.say(f"sampling before and after, step {done} of {total}", _estimate(began, now, done, total))

        return tell

    def training(self, losses: Sequence[float], later_steps: float) -> None:
        """Report one step more. `later_steps` is how many steps of training what comes after it takes as long as."""
        self._step = len(losses)
        self._ends.append(time.monotonic())
        pace = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1) if len(self._ends) > 2 else None
        seconds_left = None if pace is None else pace * (self._iterations - self._step + later_steps)
        mean = statistics.fmean(losses[-_LOSSES_IN_MEAN:])
        doing = f"training, step {self._step} of {self._iterations}, loss {mean:.3f}"
        self.say(doing, seconds_left)
        if self._step % _STEPS_A_LINE == 0 or self._step == self._iterations:
            self.log(doing if pace is None else f"{doing}, {pace:.2f} s a step")

    def _timed(self, put: Callable[[int, int], str]) -> Callable[[int, int], None]:
        began: tuple[float, int] | None = None

        def tell(done: int, total: int) -> None:
            nonlocal began
            now = time.monotonic()
            if began is None:
                began = now, done
                self.log(put(done, total))
            left = _estimate(began, now, done, total)
            self.say(put(done, total) + ("" if left is None else f" (about {_in_words(left)} to go)"))

        return tell


def _estimate(began: tuple[float, int], now: float, done: int, total: int) -> float | None:
    """Seconds until all is done at the pace since it began, None while there is none."""
    done_since = done - began[1]
    return None if done_since <= 0 or done >= total else (now - began[0]) / done_since * (total - done)


def _in_words(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{round(seconds / 3600)} h"
