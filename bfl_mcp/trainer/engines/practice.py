"""The practice engine: goes through the motions of a training and trains nothing. Every answer about it says so."""

import time
from collections.abc import Callable

from bfl_mcp.trainer.jobs import Job

_REPORTS_A_SECOND = 10


def practice(job: Job, report: Callable[[int, float | None, str], None]) -> None:
    """Walk through the iterations in the time the job gives, from the step it had reached."""
    iterations: int = job.parameters["iterations"]
    seconds_a_step = job.options["practice_seconds"] / iterations
    first = job.read_progress().step
    began = time.monotonic()
    while True:
        done = min(iterations, first + int((time.monotonic() - began) / seconds_a_step))
        report(done, (iterations - done) * seconds_a_step, "")
        if done == iterations:
            return
        time.sleep(min(1 / _REPORTS_A_SECOND, seconds_a_step * (iterations - done)))
