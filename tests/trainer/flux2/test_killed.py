"""A worker that is killed at any moment loses nothing: the real process, the real signal, the identical file."""

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bfl_mcp.trainer.jobs import Job, Progress
from tests.trainer.flux2.work import FULL, Done, Models, put
from tests.trainer.processes import REPOSITORY, wait_until

pytest.importorskip("torch")
pytest.importorskip("diffusers")


def moments(dice: random.Random) -> Iterator[Callable[[Progress], bool]]:
    """Five moments by chance: before the training, in it (twice after its first checkpoint), and behind it."""
    early = dice.choice(["captioning", "embedding", "encoding", "opening", "training"])
    before, after, again = dice.randrange(1, 50), dice.randrange(50, 95), dice.randrange(50, 95)
    yield lambda progress: progress.doing.startswith((early, "training"))
    yield lambda progress: progress.step >= before
    yield lambda progress: progress.step >= after
    yield lambda progress: progress.step >= again
    yield lambda progress: progress.step == 100


def kill_five_times(job: Job, data: Path) -> int:
    """Run the worker of a data folder over and over, killed five times, and give how often it was."""
    dice, kills = random.Random(job.parameters["finetune_type"]), 0
    command = [sys.executable, "-m", "bfl_mcp.trainer.worker", "--data", str(data)]
    for moment in moments(dice):
        # What the one before it reported last must not pass for its own word.
        before = (job.folder / "progress.json").stat().st_mtime_ns
        with subprocess.Popen(command, cwd=REPOSITORY) as worker:

            def has_come(
                moment: Callable[[Progress], bool] = moment,
                before: int = before,
                worker: subprocess.Popen[bytes] = worker,
            ) -> bool:
                told = (job.folder / "progress.json").stat().st_mtime_ns != before
                return worker.poll() is not None or (told and moment(job.read_progress()))

            wait_until(has_come, 90)
            time.sleep(dice.uniform(0, 0.5))
            worker.kill()
            kills += worker.wait() == -9
    subprocess.run(command, cwd=REPOSITORY, check=True, timeout=120)
    return kills


@pytest.mark.timeout(300)
def test_a_worker_killed_five_times_ends_with_the_identical_files(
    lora: Done, full: Done, models: Models, tmp_path: Path
) -> None:
    """Nobody trains for hours again because a machine was switched off: not one bit may depend on it."""
    jobs = {
        "lora": put(tmp_path / "lora", models),
        "full": put(tmp_path / "full", models, **FULL),
    }

    with ThreadPoolExecutor() as threads:
        kills = list(threads.map(kill_five_times, jobs.values(), [tmp_path / kind for kind in jobs]))

    for job, done in zip(jobs.values(), (lora, full), strict=True):
        log = (job.folder / "log.txt").read_text(encoding="utf-8")
        assert job.read_progress() == Progress("ready", 100), log
        for name in ("lora.safetensors", "losses.json", "captions.json"):
            assert (job.folder / name).read_bytes() == (done.job.folder / name).read_bytes(), (name, log)
        for sample in (done.job.folder / "samples").iterdir():
            assert (job.folder / "samples" / sample.name).read_bytes() == sample.read_bytes(), (sample.name, log)
        assert not [path for path in job.folder.rglob("*") if path.name.endswith(".part")]
    # The last moment is close to the end, which a quick machine may reach first.
    assert min(kills) >= 4
