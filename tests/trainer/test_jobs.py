"""A finetune is a folder: whole or not there, whoever looks and whenever."""

import json
import os
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest

from bfl_mcp.trainer.jobs import Job, JobGoneError, Jobs, Progress
from tests.trainer.archives import start
from tests.trainer.processes import names


def make(jobs: Jobs, **parameters: Any) -> Job:
    return jobs.create({"iterations": 100, **parameters}, "practice", {"practice_seconds": 60}, lambda _: None)


def test_a_finetune_is_invisible_until_it_is_whole(data: Path) -> None:
    """Made under another name and renamed last: a worker must never take up half a dataset."""
    jobs = Jobs(data)
    seen: list[Any] = []

    def fill(dataset: Path) -> None:
        seen.append((jobs.all(), jobs.unfinished(), names(data / "finetunes"), dataset.is_dir()))

    job = jobs.create({"iterations": 100}, "practice", {}, fill)

    [(listed, unfinished, folders, dataset_exists)] = seen
    assert (listed, unfinished, folders) == ([], [], [f".new-{job.finetune_id}"])
    assert dataset_exists
    assert names(data / "finetunes") == [job.finetune_id]
    assert names(job.folder) == ["dataset", "progress.json", "request.json"]
    assert jobs.all() == [job]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_finetune_that_cannot_be_filled_leaves_nothing(data: Path, failure: type[BaseException]) -> None:
    """A refused archive costs no disk, and neither does a server that is told to stop."""

    def fill(dataset: Path) -> None:
        (dataset / "001.jpg").write_bytes(b"half")
        raise failure

    with pytest.raises(failure):
        Jobs(data).create({}, "practice", {}, fill)

    assert not names(data / "finetunes")


async def test_a_half_made_folder_is_invisible_to_the_api(api: httpx.AsyncClient, data: Path) -> None:
    """What a process that died left behind is no finetune, even with all its files in it."""
    whole = (await api.post("/v1/finetune", json=start())).json()["finetune_id"]
    half = str(uuid.uuid4())
    (data / "finetunes" / whole).rename(data / "finetunes" / f".new-{half}")

    assert (await api.get("/v1/my_finetunes")).json() == {"finetunes": []}
    for finetune_id in (half, f".new-{half}"):
        assert (await api.get("/v1/finetune_details", params={"finetune_id": finetune_id})).status_code == 404
        assert (await api.post("/v1/delete_finetune", json={"finetune_id": finetune_id})).status_code == 404
    assert not Jobs(data).unfinished()


def test_what_the_dead_left_is_swept_when_a_finetune_is_made(data: Path) -> None:
    """Half-made folders may be somebody's upload in progress, so only old ones go; deleted ones go at once."""
    jobs = Jobs(data)
    for name in (".new-young", ".new-old", ".deleted-young"):
        (data / "finetunes" / name).mkdir()
    long_ago = time.time() - 25 * 3600
    os.utime(data / "finetunes" / ".new-old", (long_ago, long_ago))

    job = make(jobs)

    assert names(data / "finetunes") == [".new-young", job.finetune_id]


def test_only_folders_named_by_an_id_are_finetunes(data: Path) -> None:
    """People put things into folders, and their systems do too."""
    jobs = Jobs(data)
    job = make(jobs)
    (data / "finetunes" / "notes").mkdir()
    (data / "finetunes" / ".DS_Store").write_bytes(b"junk")
    (data / "finetunes" / str(uuid.uuid4())).mkdir()
    (data / "finetunes" / str(uuid.uuid4())).write_bytes(b"a file")

    assert [found.finetune_id for found in jobs.all()] == [job.finetune_id]


def test_the_queue_is_in_the_order_of_arrival(data: Path) -> None:
    """Ids are random, so the order must come from the time; who is done is not in it."""
    jobs = Jobs(data)
    made = [make(jobs) for _ in range(10)]
    made[3].write_progress(Progress("ready", 100))
    made[5].write_progress(Progress("failed", 10, error="it broke"))
    made[0].write_progress(Progress("training", 10))

    assert jobs.all() == made
    assert jobs.unfinished() == [job for number, job in enumerate(made) if number not in (3, 5)]


def test_deleting_happens_once(data: Path) -> None:
    """Of many who delete at the same time one is told that it did, and nobody fails."""
    jobs = Jobs(data)
    job = make(jobs)
    told: list[bool] = []
    together = threading.Barrier(8)

    def delete() -> None:
        together.wait(10)
        told.append(Jobs(data).delete(job.finetune_id))

    threads = [threading.Thread(target=delete) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert sorted(told) == [False] * 7 + [True]
    assert not names(data / "finetunes")


def test_a_deleted_finetune_takes_no_more_news(data: Path) -> None:
    """A worker learns of the deletion by trying to write, and must not make the folder again."""
    jobs = Jobs(data)
    job = make(jobs)
    jobs.delete(job.finetune_id)

    with pytest.raises(JobGoneError):
        job.write_progress(Progress("training", 5))
    with pytest.raises(JobGoneError):
        job.read_progress()
    with pytest.raises(JobGoneError):
        job.log("still here")

    assert not names(data / "finetunes")


def test_progress_is_always_read_whole(data: Path) -> None:
    """It is replaced, not rewritten: who reads in the midst of it sees the old one or the new one."""
    job = make(Jobs(data))
    job.write_progress(Progress("training", 0))
    ended = threading.Event()

    def write() -> None:
        for step in range(100):
            job.write_progress(Progress("training", step, error="x" * (step % 7) * 1000))
        ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    steps = []
    while not ended.is_set():
        steps.append(job.read_progress().step)
    writer.join(10)

    assert len(steps) > 10
    assert steps == sorted(steps)
    assert names(job.folder) == ["dataset", "progress.json", "request.json"]


def test_only_the_owner_may_look_into_the_folders(data: Path) -> None:
    """They hold people's pictures, and the machine may be shared."""
    job = make(Jobs(data / "deeper"))

    folders = [data / "deeper" / "finetunes", job.folder, job.folder / "dataset"]

    assert [oct(folder.stat().st_mode & 0o777) for folder in folders] == ["0o700"] * 3


def test_a_request_is_kept_as_it_was_made(data: Path) -> None:
    """The engine and its options are fixed with the job: a server started otherwise changes nothing."""
    job = make(Jobs(data), finetune_comment="größe", learning_rate=None)

    request = json.loads((job.folder / "request.json").read_bytes())

    assert request == {
        "parameters": {"iterations": 100, "finetune_comment": "größe", "learning_rate": None},
        "engine": "practice",
        "options": {"practice_seconds": 60},
        "created": job.created,
    }
    assert Jobs(data).find(job.finetune_id) == job


@pytest.mark.parametrize("name", ["request.json", "progress.json"])
@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"state": "dancing"}', '{"parameters": 1}', "\x00"])
def test_one_damaged_finetune_does_not_speak_for_the_others(data: Path, name: str, content: str) -> None:
    """A crash of the machine or another version may leave any content; the other finetunes go on."""
    jobs = Jobs(data)
    damaged, good = (jobs.create({"iterations": 100}, "practice", {}, lambda _: None) for _ in range(2))
    (damaged.folder / name).write_text(content)

    assert good.finetune_id in [job.finetune_id for job in jobs.all()]
    assert [job.finetune_id for job in jobs.unfinished()] == [good.finetune_id]


def test_what_a_newer_version_adds_to_the_progress_is_left_alone(data: Path) -> None:
    """People go back to an older version with their finetunes."""
    job = Jobs(data).create({"iterations": 100}, "practice", {}, lambda _: None)
    (job.folder / "progress.json").write_text('{"state": "training", "step": 7, "loss": 0.1}')

    assert job.read_progress() == Progress("training", 7)
