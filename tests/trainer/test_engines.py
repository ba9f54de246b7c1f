"""What an engine may do to its worker, and a worker to its job: nothing is lost, nothing is trained twice."""

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bfl_mcp.trainer.jobs import Attempts, Job, Jobs, Progress
from bfl_mcp.trainer.spawn import choose_gpu
from bfl_mcp.trainer.worker import drain
from tests.trainer.archives import start
from tests.trainer.conftest import connect, make_app
from tests.trainer.processes import REPOSITORY, names, wait_until, workers


def put(data: Path, engine: str, iterations: int = 100, **options: Any) -> Job:
    return Jobs(data).create({"iterations": iterations}, engine, options, lambda _: None)


@contextmanager
def working(data: Path, slot: int = 0) -> Iterator["subprocess.Popen[str]"]:
    """A worker that knows the engines made for tests."""
    command = [sys.executable, "-m", "tests.trainer.engine_worker", "--slot", str(slot), "--data", str(data)]
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as worker:
        try:
            yield worker
        finally:
            worker.kill()


def work_to_the_end(data: Path, starts: int = 1) -> int:
    """Start a worker, and another where one vanished, at most so many. How many it took."""
    for number in range(1, starts + 1):
        with working(data) as worker:
            worker.wait(30)
        if not Jobs(data).unfinished():
            return number
    raise AssertionError(f"unfinished after {starts} workers")


def attempts(job: Job) -> int:
    return len((job.folder / "begun.txt").read_text(encoding="utf-8").splitlines())


def log(job: Job) -> str:
    path = job.folder / "log.txt"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def wait_for_attempt(job: Job, number: int) -> None:
    wait_until(lambda: log(job).count("training with") >= number)


# --- exceptions -------------------------------------------------------------------------------------------------------


def test_an_exception_is_tried_once_more(data: Path) -> None:
    """A hiccup of a driver or a network share must not cost a night's training."""
    job = put(data, "break_down", times=1)

    assert work_to_the_end(data) == 1

    assert job.read_progress() == Progress("ready", 100)
    assert attempts(job) == 2
    assert "ValueError: the engine broke; it is tried once more" in log(job)
    assert 'raise ValueError("the engine broke")' in log(job)


def test_an_exception_that_comes_again_ends_the_job(data: Path) -> None:
    """What breaks twice breaks always; the next in the queue gets its turn."""
    job, other = put(data, "break_down", times=99), put(data, "practice", practice_seconds=0.05)

    work_to_the_end(data)

    assert job.read_progress() == Progress("failed", error="ValueError: the engine broke")
    assert attempts(job) == 2
    assert other.read_progress().state == "ready"


def test_a_sentence_of_the_engine_ends_the_job_at_once(data: Path) -> None:
    """It says that a retry would end the same; it is for the person, so it stands there alone."""
    job = put(data, "refuse")

    work_to_the_end(data)

    assert job.read_progress() == Progress("failed", error="This cannot be trained; use other pictures.")
    assert attempts(job) == 1


def test_flux2_without_its_packages_fails_with_what_to_install(data: Path) -> None:
    """The job may be older than the environment; no traceback tells anybody what to do."""
    program = (
        "import sys, pathlib; sys.modules['torch'] = None; from bfl_mcp.trainer.worker import drain; "
        "drain(pathlib.Path(sys.argv[1]))"
    )
    job = put(data, "flux2")

    subprocess.run([sys.executable, "-c", program, str(data)], cwd=REPOSITORY, check=True, timeout=30)

    progress = job.read_progress()
    assert progress.state == "failed"
    assert "extra [train]" in (progress.error or "")
    assert log(job).count("training with") == 1


# --- workers that vanish ----------------------------------------------------------------------------------------------


def test_a_worker_that_vanishes_is_resumed_ten_times_and_no_more(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends eleven workers without a checkpoint between them will end the twelfth: the queue must go on."""
    job, other = put(data, "vanish", times=99), put(data, "practice", practice_seconds=0.05)

    assert work_to_the_end(data, starts=20) == 12

    progress = job.read_progress()
    assert progress.state == "failed"
    assert "vanished 11 times without a new checkpoint after step 0" in (progress.error or "")
    assert attempts(job) == 11
    assert other.read_progress().state == "ready"


def test_the_tenth_resume_may_still_succeed(data: Path) -> None:
    """The bound itself is allowed."""
    job = put(data, "vanish", times=10)

    assert work_to_the_end(data, starts=20) == 11

    assert job.read_progress().state == "ready"


def test_a_new_checkpoint_starts_the_count_anew(data: Path) -> None:
    """On a machine that is switched off every evening a long training still comes to its end."""
    job = put(data, "vanish", times=24, checkpoint_every=8)

    assert work_to_the_end(data, starts=40) == 25

    assert job.read_progress().state == "ready"
    assert job.read_attempts() == Attempts(vanished=1, checkpoint_step=24)


def test_kills_at_random_moments_change_nothing_of_what_comes_out(data: Path) -> None:
    """Every step is done once, in its order, however often the worker is killed."""
    chance = random.Random(7)
    job, undisturbed = put(data, "step", iterations=500), put(data, "step", iterations=500)

    for number in range(1, 9):
        with working(data) as worker:
            wait_for_attempt(job, number)
            time.sleep(chance.uniform(0, 0.15))
            worker.kill()
            worker.wait(10)
    work_to_the_end(data)

    assert log(job).count("training with") == 9
    assert job.read_progress() == Progress("ready", 500)
    assert (job.folder / "result.txt").read_bytes() == (undisturbed.folder / "result.txt").read_bytes()


def test_practice_counts_every_report_as_a_checkpoint(data: Path) -> None:
    """It goes on from the step it reported: whoever kills it again and again sees it go on, not fail."""
    job = put(data, "practice", practice_seconds=60)
    job.write_progress(Progress("training", 70))
    job.write_attempts(Attempts(running=True, vanished=10, checkpoint_step=60))

    with working(data):
        wait_until(lambda: job.read_progress().doing == "practising")

    assert job.read_attempts() == Attempts(running=True, vanished=1, checkpoint_step=70)


# --- several at once --------------------------------------------------------------------------------------------------


def test_two_slots_train_two_jobs_at_once(data: Path) -> None:
    """A second GPU is there to be used: neither training ends before the other has begun."""
    jobs = [put(data, "meet", together=2) for _ in range(2)]

    with working(data, 0) as one, working(data, 1) as two:
        assert (one.wait(40), two.wait(40)) == (0, 0)

    assert [job.read_progress() for job in jobs] == [Progress("ready", 100)] * 2


def test_many_slots_never_train_the_same_job(data: Path) -> None:
    """Each job has a lock of its own, and who comes late looks for another."""
    jobs = [put(data, "practice", practice_seconds=0.05) for _ in range(12)]

    with working(data, 0) as one, working(data, 1) as two, working(data, 2) as three:
        wait_until(lambda: not Jobs(data).unfinished(), 40)
        for worker in (one, two, three):
            worker.wait(30)

    assert [job.read_progress().state for job in jobs] == ["ready"] * 12
    assert [log(job).count("training with") for job in jobs] == [1] * 12
    assert names(data / "locks") == []


def test_a_second_worker_of_the_same_slot_trains_nothing(data: Path) -> None:
    """Two trainings on one GPU would take each other's memory."""
    jobs = [put(data, "meet", together=2) for _ in range(2)]

    with working(data, 0):
        wait_until(lambda: any(job.read_progress().state == "training" for job in jobs))
        drain(data, 0)

        assert sorted(job.read_progress().state for job in jobs) == ["queued", "training"]


async def test_the_app_starts_a_worker_for_each_gpu_and_no_more(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sees its own GPU, and of those alone that the person left visible."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")

    async with connect(make_app(data, gpus=2)) as api:
        for _ in range(3):
            assert (await api.post("/v1/finetune", json=start())).status_code == 200
        wait_until(lambda: [job.read_progress().state for job in Jobs(data).all()].count("training") == 2)
        for job in Jobs(data).all():
            await api.get("/v1/finetune_details", params={"finetune_id": job.finetune_id})

    assert [job.read_progress().state for job in Jobs(data).all()] == ["training", "training", "queued"]
    assert sorted(worker.environ()["CUDA_VISIBLE_DEVICES"] for worker in workers(data)) == ["4", "6"]


@pytest.mark.parametrize(
    ("environment", "chosen"),
    [
        ({}, ("CUDA_VISIBLE_DEVICES", "1")),
        ({"CUDA_VISIBLE_DEVICES": ""}, ("CUDA_VISIBLE_DEVICES", "1")),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8f, GPU-2a"}, ("CUDA_VISIBLE_DEVICES", "GPU-2a")),
        ({"HIP_VISIBLE_DEVICES": "3,5"}, ("HIP_VISIBLE_DEVICES", "5")),
    ],
)
def test_a_slot_is_one_of_the_gpus_that_the_person_left_visible(
    environment: dict[str, str], chosen: tuple[str, str]
) -> None:
    """ROCm has a variable of its own; GPUs may be named by their serial number."""
    assert choose_gpu(environment, 1) == chosen


# --- deleting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["step", "hang", "write_on"])
def test_deleting_a_running_finetune_gives_its_worker_to_the_next(data: Path, engine: str) -> None:
    """An engine that reports, one that loads for minutes and one that writes on: the GPU is free within seconds."""
    job = put(data, engine, iterations=100_000)
    other = put(data, "practice", practice_seconds=0.05)

    with working(data) as worker:
        wait_until(lambda: job.read_progress().step > 0)
        began = time.monotonic()
        assert Jobs(data).delete(job.finetune_id)
        wait_until(lambda: other.read_progress().state == "ready", 20)
        took = time.monotonic() - began
        assert worker.wait(20) == 0

    assert took < 12
    assert names(data / "finetunes") == [other.finetune_id]


def test_each_training_has_a_process_that_begins_afresh(data: Path) -> None:
    """What an engine leaves in the memory of a GPU would be missing to the next; and what broke once is loaded anew."""
    broken, other = put(data, "break_down", times=1), put(data, "break_down", times=0)

    with working(data) as worker:
        assert worker.wait(30) == 0

    pids = [(job.folder / "begun.txt").read_text("utf-8").split() for job in (broken, other)]
    assert pids == [[str(worker.pid)] * 2, [str(worker.pid)]]
    assert other.read_progress().state == "ready"
