"""How much memory the server takes while it packs and sends 500 MB of pictures, and how long a ping waits meanwhile.

    python -m benchmarks.memory [--megabytes 500] [--kinds baseline exif-upright …] [--max-megapixels 0]

For each kind of picture a fresh server is started as a host would start it, with a fake of BFL's API on 127.0.0.1 as
provider. Idle is what it holds after a dry run on a few small pictures, so that everything that is imported late counts
as idle. Needs Linux, and free disk for twice the megabytes.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio
from mcp import Client, StdioServerParameters
from PIL import Image

from benchmarks.fake_bfl import running_fake
from benchmarks.pictures import KINDS, Kind, fill_folder
from benchmarks.resident import Resident, find_children, read_resident

_RISE_LIMIT_MB: Final = 60
_PING_LIMIT_MS: Final = 50
_SECONDS_BETWEEN_PINGS: Final = 0.05
_SECONDS_BETWEEN_SAMPLES: Final = 0.02
_SECONDS_IDLE: Final = 1.0


Work = Callable[[], Coroutine[Any, Any, None]]
"""Goes on until it is cancelled."""


@dataclass(slots=True)
class Result:
    """What one server did with one folder. The pings' round trips are in milliseconds, by what went on meanwhile."""

    kind: str
    files: int
    megabytes: float
    fresh: Resident = field(default_factory=lambda: Resident(0, 0))
    idle: Resident = field(default_factory=lambda: Resident(0, 0))
    after: Resident = field(default_factory=lambda: Resident(0, 0))
    sampled_peak_mb: float = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"packing": 0.0, "sending": 0.0})
    pings: dict[str, list[float]] = field(default_factory=lambda: {"idle": [], "packing": [], "sending": []})

    @property
    def rise_mb(self) -> float:
        """From idle to the highest the kernel ever counted."""
        return self.after.peak_mb - self.idle.now_mb


def main() -> int:
    """Measure the chosen kinds and print a table."""
    names = [kind.name for kind in KINDS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--megabytes", type=float, default=500, help="size of each folder (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=names, default=names, help="default: all of %(choices)s")
    parser.add_argument(
        "--max-megapixels", type=float, default=0, help="shrink pictures to this; 0 (default) keeps every size"
    )
    chosen = parser.parse_args()
    print(
        f"12-megapixel pictures, BFL_MCP_MAX_MEGAPIXELS={chosen.max_megapixels:g}, {os.cpu_count()} cores, "
        "MB of 1 000 000 bytes, pings every 50 ms in the same session"
    )
    print(_HEAD)
    for kind in KINDS:
        if kind.name in chosen.kinds:
            with tempfile.TemporaryDirectory(prefix="bfl-mcp-benchmark-") as scratch:
                print(_row(_measure(Path(scratch), kind, chosen.megabytes, chosen.max_megapixels)), flush=True)
    print(_FOOT)
    return 0


def _measure(scratch: Path, kind: Kind, megabytes: float, max_megapixels: float) -> Result:
    files, written = fill_folder(scratch / "pictures", kind, megabytes)
    small = scratch / "small"
    small.mkdir()
    for number in range(3):
        Image.effect_noise((320, 240), 30 + number).convert("RGB").save(small / f"{number}.jpg")
    # What was written lately would otherwise be brought to the disk while we measure.
    os.sync()
    result = Result(kind.name, files, written)
    with running_fake() as url:
        settings = {
            "BFL_API_URL": url,
            "BFL_MCP_HOME": str(scratch / "home"),
            "BFL_MCP_ALLOWED_DIRS": str(scratch),
            "BFL_MCP_MAX_MEGAPIXELS": str(max_megapixels),
        }
        anyio.run(_converse, scratch, settings, result)
    return result


async def _converse(scratch: Path, settings: dict[str, str], result: Result) -> None:
    before = find_children(os.getpid())
    server = StdioServerParameters(command=sys.executable, args=["-m", "bfl_mcp"], env=settings)
    # Later protocols have no ping.
    async with Client(server, mode="legacy") as client:
        (pid,) = find_children(os.getpid()) - before
        await anyio.sleep(_SECONDS_IDLE)
        result.fresh = read_resident(pid)
        await _submit(client, scratch / "small", dry_run=True)
        async with _meanwhile(_ping_every(client, lambda: "idle", result)):
            await anyio.sleep(_SECONDS_IDLE)
        result.idle = read_resident(pid)
        await _submit_measured(client, pid, scratch / "pictures", result)
        result.after = read_resident(pid)


async def _submit_measured(client: Client, pid: int, folder: Path, result: Result) -> None:
    phase = "packing"
    started = time.perf_counter()

    async def on_progress(_done: float, _total: float | None, message: str | None) -> None:
        nonlocal phase, started
        if phase == "packing" and message and message.startswith("sending"):
            result.seconds[phase] = time.perf_counter() - started
            phase, started = "sending", time.perf_counter()

    pings = _ping_every(client, lambda: phase, result)
    async with _meanwhile(pings, _sample_every(pid, result)):
        await _submit(client, folder, progress_callback=on_progress)
    result.seconds[phase] = time.perf_counter() - started


async def _submit(client: Client, folder: Path, *, dry_run: bool = False, **options: Any) -> None:
    arguments = {"folder": str(folder), "finetune_comment": "benchmark", "mode": "general", "dry_run": dry_run}
    answer = await client.call_tool("create_finetune", arguments, **options)
    if answer.is_error or (answer.structured_content or {}).get("started") is dry_run:
        raise RuntimeError(f"create_finetune failed: {answer.content}")


@asynccontextmanager
async def _meanwhile(*works: Work) -> AsyncIterator[None]:
    """Run endless work beside the block."""
    async with anyio.create_task_group() as group:
        for work in works:
            group.start_soon(work)
        yield
        group.cancel_scope.cancel()


def _ping_every(client: Client, phase: Callable[[], str], result: Result) -> Work:
    async def ping() -> None:
        while True:
            now, sent = phase(), time.perf_counter()
            await client.session.send_ping()
            waited = time.perf_counter() - sent
            result.pings[now].append(waited * 1000)
            await anyio.sleep(max(0.0, _SECONDS_BETWEEN_PINGS - waited))

    return ping


def _sample_every(pid: int, result: Result) -> Work:
    async def sample() -> None:
        while True:
            result.sampled_peak_mb = max(result.sampled_peak_mb, read_resident(pid).now_mb)
            await anyio.sleep(_SECONDS_BETWEEN_SAMPLES)

    return sample


_HEAD: Final = (
    f"{'kind':12} {'files':>5} {'MB':>5} │ {'pack s':>6} {'send s':>6} │ "
    f"{'fresh':>5} {'idle':>5} {'peak':>5} {'(seen)':>7} {'rise MB':>7} │ "
    f"{'ping ms: idle':>13} {'packing':>11} {'sending':>11}"
)

_FOOT: Final = f"""\
fresh: after initialize; idle: after a small dry run; peak: VmHWM (seen: highest VmRSS, looked at every 20 ms).
rise: peak over idle. ping ms: longest wait (99th percentile).
Promised: rise under {_RISE_LIMIT_MB} MB for baseline and exif-upright; a ping waits at most {_PING_LIMIT_MS} ms."""


def _row(result: Result) -> str:
    idle, packing, sending = (_worst(pings) for pings in result.pings.values())
    return (
        f"{result.kind:12} {result.files:5} {result.megabytes:5.0f} │ "
        f"{result.seconds['packing']:6.1f} {result.seconds['sending']:6.1f} │ "
        f"{result.fresh.now_mb:5.1f} {result.idle.now_mb:5.1f} {result.after.peak_mb:5.1f} "
        f"({result.sampled_peak_mb:5.1f}) {result.rise_mb:7.1f} │ {idle:>13} {packing:>11} {sending:>11}"
    )


def _worst(pings: list[float]) -> str:
    """The longest wait, and the one that 99 of 100 stay under."""
    if not pings:
        return "–"
    ordered = sorted(pings)
    return f"{ordered[-1]:.0f} ({ordered[(len(ordered) - 1) * 99 // 100]:.0f})"


if __name__ == "__main__":
    raise SystemExit(main())
