"""Starting a worker: a process that shares nothing with the one that starts it, and sees one GPU."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bfl_mcp.trainer.jobs import open_private

_SECRETS: Final = frozenset({"BFL_API_KEY", "BFL_TRAINER_KEY"})


def build_environment(slot: int, slots: int) -> dict[str, str]:
    """What a worker may know: no key, and of several GPUs its own."""
    package_root = str(Path(__file__).parents[2])
    environment = {name: value for name, value in os.environ.items() if name not in _SECRETS}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    if slots > 1:
        name, gpu = choose_gpu(environment, slot)
        environment[name] = gpu
    return environment


def choose_gpu(environment: Mapping[str, str], slot: int) -> tuple[str, str]:
    """The variable that limits a process to one GPU, and its value for a slot: of those the person left visible."""
    name = next((name for name in ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES") if environment.get(name)), None)
    if name is None:
        return "CUDA_VISIBLE_DEVICES", str(slot)
    visible = [gpu.strip() for gpu in environment[name].split(",")]
    return name, visible[slot] if slot < len(visible) else str(slot)


def spawn(data: Path, slot: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a worker that shares nothing with this process: not its session, not its streams, not its keys."""
    command = [sys.executable, "-P", "-m", "bfl_mcp.trainer.worker", "--slot", str(slot), "--data", str(data)]
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
