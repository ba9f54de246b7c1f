"""Looking for GPUs: in another process, once, and with half a sentence where there are none."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bfl_mcp.contract import TRAINING_PACKAGES
from bfl_mcp.trainer.hardware import probe
from tests.trainer.processes import REPOSITORY

# What PyTorch says on a machine with two GPUs, on a second look with one of them in use by somebody else.
TWO_GPUS = """
import os
from types import SimpleNamespace as Facts

print("a library greets")
with open(os.environ["COUNT_FILE"], "a") as file:
    file.write("x" if "BFL_API_KEY" not in os.environ else "key!")


class cuda:
    is_available = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 2)
    get_device_properties = staticmethod(lambda n: Facts(name=f"GPU {n}\\x1b[2J", total_memory=(n + 1) << 34))

    @staticmethod
    def mem_get_info(n):
        if n == 1:
            raise RuntimeError("in use")
        return 1 << 33, 1 << 34


version = Facts(hip=None)
"""
PROGRAM = """
import json, sys
from dataclasses import asdict
from bfl_mcp.trainer.hardware import choose_engine, probe
seen = [asdict(probe()), asdict(probe())]
print(json.dumps({"seen": seen, "auto": choose_engine("auto"), "torch": "torch" in sys.modules}))
"""


def look(folder: Path, torch: str) -> dict[str, Any]:
    """What is seen where PyTorch is this."""
    for name in TRAINING_PACKAGES:
        (folder / f"{name}.py").write_text(torch if name == "torch" else "raise AssertionError", encoding="utf-8")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(REPOSITORY)]),
        "BFL_API_KEY": "test-key",
        "COUNT_FILE": str(folder / "count.txt"),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=50, check=True
    )
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_gpus_are_asked_for_once_by_another_process(tmp_path: Path) -> None:
    """PyTorch takes seconds and gigabytes; the process that answers chats must have neither, and hand on no key."""
    told = look(tmp_path, TWO_GPUS)

    first, second = told["seen"]
    assert first == second
    assert [device["name"] for device in first["devices"]] == [r"GPU 0\x1b[2J", r"GPU 1\x1b[2J"]
    assert [device["total_bytes"] >> 30 for device in first["devices"]] == [16, 32]
    assert [device["free_bytes"] >> 30 for device in first["devices"]] == [8, 0]
    assert {device["backend"] for device in first["devices"]} == {"cuda"}
    assert (told["auto"], told["torch"], first["problem"]) == ("flux2", False, "")
    assert (tmp_path / "count.txt").read_text(encoding="utf-8") == "x"


@pytest.mark.parametrize(
    ("torch", "words"),
    [
        ("raise ImportError('libcudart.so is missing')", "PyTorch cannot be used here: ImportError: libcudart.so is"),
        ("import os; os._exit(3)", "PyTorch cannot be used here: exit status 3"),
        ("import os; os.close(1); os._exit(0)", "PyTorch could not be asked for GPUs"),
        ("class cuda:\n    is_available = staticmethod(lambda: False)", "PyTorch finds no CUDA or ROCm GPU"),
    ],
)
def test_where_pytorch_fails_or_finds_none_practice_is_chosen_and_the_reason_known(
    tmp_path: Path, torch: str, words: str
) -> None:
    """A broken driver is the most common reason of all; it must not end the server."""
    told = look(tmp_path, torch)

    assert told["auto"] == "practice"
    assert told["seen"][0]["devices"] == []
    assert words in told["seen"][0]["problem"]


def test_of_this_machine_something_is_always_said() -> None:
    """GPUs, or why there are none."""
    hardware = probe()

    assert bool(hardware.devices) != bool(hardware.problem)
