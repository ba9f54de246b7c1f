"""Resident memory of a Linux process, as the kernel counts it in /proc. One MB is 1 000 000 bytes."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Resident:
    """Memory of a process now, and the most it ever held."""

    now_mb: float
    peak_mb: float


def read_resident(pid: int) -> Resident:
    """Read VmRSS and VmHWM of a running process."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    now, peak = (int(fields[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM"))
    return Resident(now, peak)


def find_children(pid: int) -> set[int]:
    """Ids of the running processes that a process started."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name between the brackets may hold spaces and brackets.
            state, parent = path.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[:2]
        except OSError:
            continue  # ended meanwhile
        if int(parent) == pid and state != "Z":
            found.add(int(path.parent.name))
    return found
