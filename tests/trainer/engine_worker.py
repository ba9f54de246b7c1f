"""A worker with engines made for tests: `python -m tests.trainer.engine_worker --slot N --data FOLDER`.

They do what a real engine may do to its worker: break, end it, hang, write into what is gone, go on from checkpoints.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bfl_mcp.trainer.engines import ENGINES, Report, TrainingError
from bfl_mcp.trainer.jobs import Job
from bfl_mcp.trainer.worker import main


def count_attempt(job: Job) -> int:
    """How many times this training was begun, this one included."""
    with (job.folder / "begun.txt").open("a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
    return len((job.folder / "begun.txt").read_text(encoding="utf-8").splitlines())


def break_down(job: Job, report: Report) -> None:
    """Raise in the first so many attempts."""
    if count_attempt(job) <= job.options["times"]:
        raise ValueError("the engine broke")


def refuse(job: Job, report: Report) -> None:
    count_attempt(job)
    raise TrainingError("This cannot be trained; use other pictures.")


def vanish(job: Job, report: Report) -> None:
    """End the process as the system does where memory runs out, in the first so many attempts."""
    attempt = count_attempt(job)
    if attempt <= job.options["times"]:
        every = job.options.get("checkpoint_every")
        if every and attempt % every == 0:
            write_checkpoint(job, attempt, "")
        os.kill(os.getpid(), signal.SIGKILL)


def step(job: Job, report: Report) -> None:
    """Write down each step, as a training does with its weights, and a checkpoint at each tenth."""
    iterations: int = job.parameters["iterations"]
    newest = job.read_checkpoint_step()
    done = (job.folder / "checkpoints" / f"step-{newest:06}.pt").read_text("utf-8") if newest else ""
    for number in range(newest + 1, iterations + 1):
        time.sleep(0.005)
        done += f"{number}\n"
        if number % 10 == 0:
            write_checkpoint(job, number, done)
        report(number, (iterations - number) * 0.005, f"training, step {number} of {iterations}")
    (job.folder / "result.txt").write_text(done, encoding="utf-8")


def write_checkpoint(job: Job, number: int, content: str) -> None:
    folder = job.folder / "checkpoints"
    folder.mkdir(exist_ok=True)
    part = folder / f".step-{number:06}.pt.part"
    part.write_text(content, encoding="utf-8")
    part.replace(folder / f"step-{number:06}.pt")


def meet(job: Job, report: Report) -> None:
    """Come to an end only when as many trainings are under way at once as were asked for."""
    data = job.folder.parents[1]
    (data / f"here-{job.finetune_id}").touch()
    deadline = time.monotonic() + 20
    while len(list(data.glob("here-*"))) < job.options["together"]:
        if time.monotonic() > deadline:
            raise TrainingError("nobody came")
        time.sleep(0.02)


def hang(job: Job, report: Report) -> None:
    """Neither end nor report, as while a large model is loaded."""
    count_attempt(job)
    report(3, None, "loading the model")
    threading.Event().wait()


def write_on(job: Job, report: Report) -> None:
    """Make the job's folder again whenever it is gone, and report never."""
    report(3, None, "writing")
    while True:
        (job.folder / "cache").mkdir(parents=True, exist_ok=True)
        time.sleep(0.01)


MADE_FOR_TESTS: dict[str, Callable[[Job, Report], None]] = {
    function.__name__: function for function in (break_down, refuse, vanish, step, meet, hang, write_on)
}

if __name__ == "__main__":
    os.chdir(Path(__file__).parents[2])
    ENGINES.update(MADE_FOR_TESTS)
    main()
