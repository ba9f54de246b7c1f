"""The worker: one for each folder, its own master, and never missing while there is work."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
import pytest
from filelock import FileLock, Timeout

from bfl_mcp.trainer.jobs import Job, Jobs, Progress
from bfl_mcp.trainer.worker import Workers, drain
from tests.trainer.archives import good_archive, start
from tests.trainer.conftest import connect, make_app
from tests.trainer.processes import Server, end, is_over, names, serving, wait_until, workers


def put(data: Path, seconds: float = 0.05, engine: str = "practice", **parameters: Any) -> Job:
    """A job in the queue, and nobody told."""
    return Jobs(data).create({"iterations": 100, **parameters}, engine, {"practice_seconds": seconds}, lambda _: None)


def state(job: Job) -> str:
    return job.read_progress().state


def log(job: Job) -> str:
    path = job.folder / "log.txt"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def only_worker(data: Path) -> psutil.Process:
    """The one worker, once it is at work."""
    wait_until(lambda: any(state(job) == "training" for job in Jobs(data).all()))
    [worker] = workers(data)
    return worker


async def post(api: httpx.AsyncClient) -> Job:
    answer = await api.post("/v1/finetune", json=start(iterations=100))
    job = Jobs(Path(api.headers["data"])).find(answer.json()["finetune_id"])
    assert job is not None
    return job


def app(data: Path, practice_seconds: float) -> httpx.AsyncClient:
    """The embedded app, whose folder the client remembers."""
    return connect(make_app(data, practice_seconds=practice_seconds), data=str(data))


# --- draining ---------------------------------------------------------------------------------------------------------


def test_the_queue_is_drained_in_order_to_its_end(data: Path) -> None:
    """First come, first trained; one that failed or is unknown holds up nobody."""
    broken = put(data, iterations=0)
    foreign = put(data, engine="of tomorrow")
    good = [put(data) for _ in range(3)]

    drain(data)

    jobs = [broken, foreign, *good]
    assert [state(job) for job in jobs] == ["failed", "failed", "ready", "ready", "ready"]
    ends = [log(job).splitlines()[-1].split()[0] for job in jobs]
    assert ends == sorted(ends)
    assert foreign.read_progress().error == "this trainer has no engine 'of tomorrow'; it has practice, flux2"


@pytest.mark.parametrize("change", [{"engine": "of tomorrow"}, {"parameters": {"iterations": 0}}, {"parameters": {}}])
async def test_a_failure_of_the_engine_is_an_error_with_its_reason(data: Path, change: dict[str, Any]) -> None:
    """`Error` with `details.error`, as BFL tells it; the app goes on answering about such a job."""
    async with app(data, 0.05) as api:
        with FileLock(data / "worker-0.lock"):
            job = await post(api)
        request = json.loads((job.folder / "request.json").read_bytes())
        parameters = {**request["parameters"], **change.get("parameters", {"iterations": 100})}
        if change == {"parameters": {}}:
            del parameters["iterations"]
        (job.folder / "request.json").write_text(json.dumps({**request, **change, "parameters": parameters}), "utf-8")

        drain(data)

        answer = await api.get("/v1/get_result", params={"id": job.finetune_id})
        facts = await api.get("/v1/finetune_details", params={"finetune_id": job.finetune_id})
    task = answer.json()
    assert (answer.status_code, facts.status_code) == (200, 200)
    assert task["status"] == "Error"
    assert task["details"]["error"] == job.read_progress().error
    assert task["progress"] == 0
    assert facts.json()["finetune_details"]["state"] == "failed"


def test_practice_walks_through_the_steps_in_its_time_and_reports_twice_a_second(data: Path) -> None:
    """Each report is a synced file; a thousand of them a second would wear the disk for nobody."""
    job = put(data, seconds=1.7, iterations=500)
    seen: dict[int, Progress] = {}
    worker = threading.Thread(target=drain, args=(data,))
    began = time.monotonic()

    worker.start()
    while worker.is_alive():
        seen[(job.folder / "progress.json").stat().st_mtime_ns] = job.read_progress()
        worker.join(0.002)

    took = time.monotonic() - began
    # That it is starting is over in a moment, and may pass unseen.
    training = [progress for progress in seen.values() if progress.state == "training" and progress.doing != "starting"]
    steps = [progress.step for progress in training]
    assert 1.6 < took < 5
    assert 3 <= len(training) <= took * 2 + 1
    assert steps == sorted(set(steps))
    assert {progress.doing for progress in training} == {"practising"}
    assert all(progress.seconds_left == pytest.approx((500 - progress.step) * 1.7 / 500) for progress in training)
    assert job.read_progress() == Progress("ready", 500)
    assert names(job.folder) == ["attempts.json", "dataset", "log.txt", "progress.json", "request.json"]


def test_a_second_worker_leaves_at_once(data: Path) -> None:
    """Where one is at it, another has nothing to do: it neither trains nor waits for the end."""
    job = put(data, seconds=0.05)
    began = time.monotonic()

    with FileLock(data / "worker-0.lock"):
        drain(data)

    assert time.monotonic() - began < 5
    assert state(job) == "queued"


def test_a_job_put_down_after_the_last_look_under_the_lock_is_trained(data: Path) -> None:
    """Who put it found the lock taken and started nobody, so the worker looks again with the lock free."""
    first, late = put(data), put(data)
    # A look at so many takes long enough to miss one that comes in the midst of it.
    for number in range(1000):
        done = shutil.copytree(first.folder, first.folder.with_name(f"00000000-0000-0000-0000-{number:012}"))
        (done / "progress.json").write_text('{"state": "ready"}', encoding="utf-8")
    late.folder.rename(data / "aside")
    worker = threading.Thread(target=drain, args=(data,))

    worker.start()
    wait_until(lambda: state(first) == "ready")
    (data / "aside").rename(late.folder)
    try:
        FileLock(data / "worker-0.lock").acquire(timeout=0).lock.release()
    except Timeout:
        worker.join(10)
    else:
        # On a busy machine we may come too late for what is tried here: then it is ours to start a worker.
        drain(data)

    assert state(late) == "ready"


# --- the process ------------------------------------------------------------------------------------------------------


def test_the_worker_shares_nothing_with_the_server_that_started_it(data: Path) -> None:
    """Hosts kill their servers' process groups and read their streams; a training must not notice, nor know the key."""
    with serving(data, practice_seconds=60) as server, server.client() as client:
        client.post("/v1/finetune", json=start())
        worker = only_worker(data)

        assert psutil.Process(server.process.pid).environ()["BFL_API_KEY"] == "test-key"
        assert "BFL_API_KEY" not in worker.environ()
        assert os.getsid(worker.pid) == worker.pid != os.getsid(server.process.pid)
        assert os.getpgid(worker.pid) == worker.pid
        opened = {path.name: str(path.readlink()) for path in Path(f"/proc/{worker.pid}/fd").iterdir()}
        streams = {name: target for name, target in opened.items() if name in ("0", "1", "2")}
        assert streams == {"0": "/dev/null", "1": "/dev/null", "2": str(data / "worker.log")}
        assert not [target for target in opened.values() if target.startswith(("socket:", "pipe:"))]
        assert b"test-key" not in b"".join(path.read_bytes() for path in data.rglob("*") if path.is_file())


def test_the_worker_survives_its_server(data: Path) -> None:
    """A person closes the chat, the host kills the server, and the finetune still becomes ready."""
    with serving(data, practice_seconds=1) as server, server.client() as client:
        finetune_id = client.post("/v1/finetune", json=start()).json()["finetune_id"]
        worker = only_worker(data)
        server.process.kill()
        server.process.wait(10)

    job = Jobs(data).find(finetune_id)
    assert job is not None
    assert state(job) == "training"
    wait_until(lambda: state(job) == "ready")
    wait_until(lambda: is_over(worker))
    assert log(job).count("training with") == 1


def test_a_server_that_starts_takes_up_what_it_finds(data: Path) -> None:
    """After the machine was switched off nobody may ask for days: the work goes on by itself."""
    job = put(data)

    with serving(data):
        wait_until(lambda: state(job) == "ready")


@pytest.mark.parametrize(
    "look",
    [("/v1/get_result", "id"), ("/v1/finetune_details", "finetune_id"), ("/v1/my_finetunes", "unused")],
    ids=lambda look: look[0],
)
async def test_a_killed_worker_is_replaced_at_the_next_look_and_goes_on_where_it_was(
    data: Path, look: tuple[str, str]
) -> None:
    """The lock dies with its process, and progress is on disk: at most half a second is trained twice."""
    path, name = look
    async with app(data, 1.3) as api:
        job = await post(api)
        worker = only_worker(data)
        wait_until(lambda: job.read_progress().step >= 20)
        end(worker)
        step = job.read_progress().step

        await api.get(path, params={name: job.finetune_id})

        wait_until(lambda: log(job).count("training with") == 2)
        assert int(re.findall(r"from step (\d+) of 100", log(job))[1]) == step
        steps: list[int] = []

        def is_ready() -> bool:
            steps.append(job.read_progress().step)
            return state(job) == "ready"

        wait_until(is_ready)
        assert min(steps) == step


def test_the_engine_and_its_pace_are_fixed_with_the_job(data: Path) -> None:
    """A server started with other settings must not turn a rehearsal into something else half-way."""
    with serving(data, practice_seconds=60) as slow, slow.client() as client:
        finetune_id = client.post("/v1/finetune", json=start()).json()["finetune_id"]
        worker = only_worker(data)
        end(worker)

    with serving(data, practice_seconds=0.05) as quick, quick.client() as client:
        job = Jobs(data).find(finetune_id)
        assert job is not None
        wait_until(lambda: log(job).count("training with") == 2)
        facts = client.get("/v1/finetune_details", params={"finetune_id": finetune_id}).json()["finetune_details"]

    assert facts["engine"] == "practice"
    assert facts["state"] == "training"
    assert facts["seconds_left"] > 30


async def test_every_answer_about_a_practice_finetune_says_practice(data: Path) -> None:
    """From the start to the end: nobody may take it for a trained model."""
    async with app(data, 0.7) as api:
        created = (await api.post("/v1/finetune", json=start())).json()
        job = Jobs(data).find(created["finetune_id"])
        assert job is not None
        engines = {created["engine"]}
        states = set()
        while "ready" not in states:
            answer = await api.get("/v1/finetune_details", params={"finetune_id": job.finetune_id})
            states.add(answer.json()["finetune_details"]["state"])
            engines.add(answer.json()["finetune_details"]["engine"])

    assert engines == {"practice"}
    assert {"training", "ready"} <= states <= {"queued", "training", "ready"}


def test_a_relative_data_folder_means_the_same_to_the_worker(data: Path) -> None:
    """The worker runs inside the data folder, where a relative path would name another one."""
    program = (
        "import sys, pathlib; from bfl_mcp.trainer.worker import Workers; Workers(pathlib.Path(sys.argv[1])).wake()"
    )
    job = put(data)

    subprocess.run([sys.executable, "-W", "ignore", "-c", program, "data"], cwd=data.parent, check=True, timeout=30)

    wait_until(lambda: state(job) == "ready")
    assert names(data) == ["finetunes", "locks", "worker-0.lock", "worker.log"]


# --- nothing lost, nothing twice --------------------------------------------------------------------------------------


async def test_no_job_is_lost_between_two_workers(data: Path) -> None:
    """A job put down while a worker ends: it no longer looks, and yet it is there. Nobody asks afterwards."""
    chance = random.Random(5)
    jobs = []

    async with app(data, 0.05) as api:
        for _ in range(20):
            jobs.append(await post(api))
            time.sleep(chance.uniform(0, 0.35))  # noqa: ASYNC251 - the moments are what is tried
        wait_until(lambda: all(state(job) == "ready" for job in jobs))

    assert [log(job).count("training with") for job in jobs] == [1] * 20
    wait_until(lambda: not workers(data))


async def test_a_job_put_down_after_a_worker_s_last_look_is_trained(data: Path) -> None:
    """The worst moment of all, made on purpose: the worker is stopped where only its end is left."""
    async with app(data, 0.05) as api:
        first = await post(api)
        wait_until(lambda: bool(workers(data)))
        [worker] = workers(data)
        lock = FileLock(data / "worker-0.lock")
        wait_until(lambda: state(first) == "ready")
        # A worker that is quicker still is gone by now, which is as good a moment.
        with lock.acquire(timeout=10), suppress(psutil.NoSuchProcess):
            worker.suspend()
        second = await post(api)

        with suppress(psutil.NoSuchProcess):
            worker.resume()

        wait_until(lambda: state(second) == "ready")


def test_two_servers_over_one_folder_train_each_job_once(data: Path) -> None:
    """Both see the same work and the same free lock, and both may start a worker: only one gets to it."""
    made: list[str] = []

    def use(server: Server) -> None:
        with server.client() as client:
            for _ in range(4):
                finetune_id = client.post("/v1/finetune", json=start(good_archive(1), iterations=100)).json()[
                    "finetune_id"
                ]
                made.append(finetune_id)
                client.get("/v1/finetune_details", params={"finetune_id": finetune_id})

    with serving(data, practice_seconds=0.1) as one, serving(data, practice_seconds=0.1) as two:
        threads = [threading.Thread(target=use, args=(server,)) for server in (one, two)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        jobs = Jobs(data).all()
        wait_until(lambda: all(state(job) == "ready" for job in jobs))

    lines = sorted(line for job in jobs for line in log(job).splitlines())
    assert sorted(job.finetune_id for job in jobs) == sorted(made)
    assert len(jobs) == 8
    # By time: one begins, the same one ends, and only then the next begins.
    assert ["ready" in line for line in lines] == [False, True] * 8


# --- deleting ---------------------------------------------------------------------------------------------------------


async def test_deleting_removes_the_folder_in_every_state_and_the_worker_goes_on(data: Path) -> None:
    """There is no cancel at BFL: deleting is how a training is stopped."""
    async with app(data, 60) as api:
        running, queued = await post(api), await post(api)
        only_worker(data)
        quick = put(data)

        for job in (queued, running):
            assert (await api.post("/v1/delete_finetune", json={"finetune_id": job.finetune_id})).status_code == 200
            assert not job.folder.exists()

        wait_until(lambda: state(quick) == "ready")
        assert (await api.post("/v1/delete_finetune", json={"finetune_id": quick.finetune_id})).status_code == 200
    assert not names(data / "finetunes")
    wait_until(lambda: not workers(data))
    assert (data / "worker.log").read_bytes() == b""


def test_a_worker_that_cannot_work_is_not_started_at_every_look(data: Path) -> None:
    """As on a full disk, where nothing can be written down: thirty processes in a quarter of a minute help nobody."""
    job = put(data)
    # Where its attempts are to be counted nothing can be written.
    (job.folder / "attempts.json").mkdir()
    starting = Workers(data)

    starting.wake()
    first = starting._slots[0].child
    assert first is not None
    assert first.wait(30) == 1
    for _ in range(5):
        starting.wake()

    assert starting._slots[0].child is first
    assert names(job.folder) == ["attempts.json", "dataset", "progress.json", "request.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on files can be set here")
def test_what_a_full_disk_does_not_take_leaves_nothing_behind(data: Path) -> None:
    """A limit on the size of files stands for the full disk."""
    import resource

    job = put(data)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            job.write_progress(Progress("training", 7))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)

    assert names(job.folder) == ["dataset", "progress.json", "request.json"]
    assert job.read_progress() == Progress("queued")
