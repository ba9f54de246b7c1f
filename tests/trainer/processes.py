"""Waiting with a deadline, what lies in a folder, the processes of a data folder, and servers of their own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]

REPOSITORY = Path(__file__).parents[2]


def wait_until(condition: Callable[[], object], seconds: float = 15) -> None:
    """Look again and again until something holds; fail where it does not within the time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so within {seconds} seconds"
        time.sleep(0.01)


def names(folder: Path) -> list[str]:
    """Everything directly in a folder, hidden things too."""
    return sorted(path.name for path in folder.iterdir())


def paths(folder: Path) -> set[Path]:
    """Everything in a folder, at any depth."""
    return set(folder.rglob("*"))


def workers(data: Path) -> list[psutil.Process]:
    """The living workers of exactly this folder."""
    found = []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            if "bfl_mcp.trainer.worker" in command and command[-1] == str(data):
                found.append(process)
        except psutil.Error:
            continue
    return found


def end_workers(data: Path) -> None:
    for process in workers(data):
        end(process)


def end(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
    wait_until(lambda: is_over(process))


def is_over(process: psutil.Process) -> bool:
    """Whether it has ended, even if nobody has asked for its status yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@dataclass(frozen=True)
class Server:
    """A trainer in a process of its own."""

    process: subprocess.Popen[str]
    url: str

    def client(self, key: str = "test-key") -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"x-key": key}, timeout=30, trust_env=False)

    def memory_mb(self, field: str) -> float:
        """`VmRSS` is what it holds now, `VmHWM` the most it ever held."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        line = next(line for line in status.splitlines() if line.startswith(f"{field}:"))
        return int(line.split()[1]) / 1000

    def open_files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


@contextmanager
def serving(data: Path, *, max_upload_mb: float = 10, practice_seconds: float = 60) -> Iterator[Server]:
    command = [sys.executable, "-m", "tests.trainer.serve", str(data), str(max_upload_mb), str(practice_seconds)]
    environment = {**os.environ, "BFL_API_KEY": "test-key"}
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Server(process, f"http://127.0.0.1:{int(process.stdout.readline())}")
        finally:
            process.kill()
