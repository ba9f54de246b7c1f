"""What a training can run on: looked at from another process, because PyTorch has no place in this one."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import Any, Final

from bfl_mcp.config import is_training_installed
from bfl_mcp.contract import Engine
from bfl_mcp.errors import quote_foreign

GIB: Final = 1 << 30
# On a cold disk PyTorch takes half a minute to load.
_PROBE_SECONDS: Final = 40
_PROBE: Final = """
import json, torch
devices = []
if torch.cuda.is_available():
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        try:
            free = torch.cuda.mem_get_info(number)[0]
        except RuntimeError:
            free = 0
        devices.append({
            "name": facts.name,
            "total_bytes": facts.total_memory,
            "free_bytes": free,
            "backend": "rocm" if torch.version.hip else "cuda",
        })
print(json.dumps(devices))
"""
_SECRETS: Final = frozenset({"BFL_API_KEY", "BFL_TRAINER_KEY", "HF_TOKEN"})


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU that PyTorch can use."""

    name: str
    total_bytes: int
    free_bytes: int
    backend: str
    """`cuda` or `rocm`."""

    def __str__(self) -> str:
        return f"{self.name}, {self.total_bytes / GIB:.1f} GiB"


@dataclass(frozen=True, slots=True)
class Hardware:
    """The GPUs of this machine, and why there are none where there are none."""

    is_installed: bool
    """Whether the packages of the extra `[train]` are there."""
    devices: tuple[Device, ...] = ()
    problem: str = ""
    """Half a sentence."""

    def smallest(self, count: int) -> Device | None:
        """Of the first so many GPUs the one with the least memory: any of them may get a job. None on the CPU."""
        return min(self.devices[:count], key=lambda device: device.total_bytes, default=None)


def probe() -> Hardware:
    """Look at this machine, once for each process: PyTorch is loaded by a child, and takes seconds."""
    global _seen  # noqa: PLW0603 - what the machine has does not change
    with _looking:
        if _seen is None:
            seen = _look() if is_training_installed() else Hardware(False, (), _NOT_INSTALLED)
            if seen.problem == _TOO_SLOW:
                # The first time after a start of the machine; the next look may be quicker.
                return seen
            _seen = seen
        return _seen


def choose_engine(wanted: str, hardware: Hardware | None = None) -> Engine:
    """What trains: `auto` is flux2 where its packages and a GPU are. Any other word means itself."""
    if wanted == "auto":
        return "flux2" if (hardware or probe()).devices else "practice"
    return "flux2" if wanted == "flux2" else "practice"


_NOT_INSTALLED: Final = "the packages of the extra [train] are not installed"
_TOO_SLOW: Final = f"PyTorch did not answer within {_PROBE_SECONDS} seconds"
_looking: Final = threading.Lock()
_seen: Hardware | None = None


def _look() -> Hardware:
    environment = {name: value for name, value in os.environ.items() if name not in _SECRETS}
    try:
        # With -P nothing is imported from the folder the person happens to be in.
        done = subprocess.run(
            [sys.executable, "-P", "-c", _PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=_PROBE_SECONDS,
            check=True,
        )
        devices = tuple(_read_device(told) for told in json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        return Hardware(True, (), _TOO_SLOW)
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip() or f"exit status {error.returncode}").splitlines()[-1]
        return Hardware(True, (), f"PyTorch cannot be used here: {quote_foreign(last)}")
    except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
        return Hardware(True, (), f"PyTorch could not be asked for GPUs ({type(error).__name__})")
    return Hardware(True, devices, "" if devices else "PyTorch finds no CUDA or ROCm GPU")


def _read_device(told: dict[str, Any]) -> Device:
    return Device(
        quote_foreign(told["name"], 60), int(told["total_bytes"]), int(told["free_bytes"]), str(told["backend"])
    )
