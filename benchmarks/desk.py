"""How long the desk takes for 20 photographs beside libvips that only shrinks them, and its memory for 1 000.

    python -m benchmarks.desk --vips PYTHON [--rounds 7]
    python -m benchmarks.desk --images 1000

PYTHON is an interpreter with `pyvips` and `pyvips-binary`, from an environment of its own: they are no dependencies.
Ours decodes, judges and packs all; libvips only shrinks to one megapixel, with as many threads as there are cores,
once into memory and once into JPEGs. Both are warm, take turns, and medians are compared: of the time by the clock, and
of the processors' time, which other work on the machine disturbs less. The second form starts a server as a host would,
and checks a folder of 2-megapixel pictures in it; it needs Linux.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

import anyio
from mcp import Client, StdioServerParameters
from PIL import Image

from benchmarks.pictures import Kind, fill_folder
from benchmarks.resident import find_children, read_resident
from bfl_mcp.contract import BFL_MAX_IMAGES, BFL_MAX_MEGAPIXELS, MAX_IMAGES
from bfl_mcp.dataset.archive import examine_dataset
from bfl_mcp.dataset.folder import read_dataset
from bfl_mcp.dataset.judge import Plan, judge
from bfl_mcp.dataset.looks import measure

_RATIO_LIMIT: Final = 1.3
_RISE_LIMIT_MB: Final = 300
Taken = tuple[float, float]
"""Seconds by the clock, and of processors."""

_SMALL: Final = Kind("2 megapixels", size=(1632, 1224))

# Prints the seconds of one pass, by the clock and of processors, for each line it reads: "memory" or "jpeg".
_VIPS: Final = """
import math, os, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
os.environ["VIPS_CONCURRENCY"] = "1"  # A picture a core is the quickest way to have many.
import pyvips

pyvips.cache_set_max(0)
files = sorted(Path(sys.argv[1]).iterdir())

def shrink(file, into):
    head = pyvips.Image.new_from_file(str(file))
    scale = math.sqrt(1_000_000 / (head.width * head.height))
    size = {"height": int(head.height * scale), "size": "force"}
    small = pyvips.Image.thumbnail(str(file), int(head.width * scale), **size)
    return small.write_to_memory() if into == "memory" else small.jpegsave_buffer(Q=95, subsample_mode="off")

print(pyvips.version(0), pyvips.version(1), pyvips.version(2), flush=True)
with ThreadPoolExecutor(os.cpu_count()) as pool:
    for line in sys.stdin:
        began, used = time.perf_counter(), time.process_time()
        for _ in pool.map(lambda file: shrink(file, line.strip()), files):
            pass
        print(time.perf_counter() - began, time.process_time() - used, flush=True)
"""


def main() -> int:
    """Measure what was asked for and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.desk", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--vips", metavar="PYTHON", help="interpreter that has pyvips")
    parser.add_argument("--rounds", type=int, default=7, help="measured passes of each (default: %(default)s)")
    parser.add_argument("--images", type=int, help="measure memory with so many pictures of 2 megapixels instead")
    chosen = parser.parse_args()
    if chosen.images is None and chosen.vips is None:
        parser.error("give --vips or --images")
    with tempfile.TemporaryDirectory(prefix="bfl-mcp-benchmark-") as scratch:
        if chosen.images is not None:
            anyio.run(_measure_memory, Path(scratch), chosen.images)
        else:
            _measure_speed(Path(scratch) / "pictures", chosen.vips, chosen.rounds)
    return 0


# --- speed ------------------------------------------------------------------------------------------------------------


def _measure_speed(folder: Path, vips_python: str, rounds: int) -> None:
    files, megabytes = fill_folder(folder, Kind("baseline"), most=BFL_MAX_IMAGES)
    os.sync()
    vips = subprocess.Popen(
        [vips_python, "-c", _VIPS, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with vips:
        assert vips.stdin is not None
        assert vips.stdout is not None
        version = ".".join(vips.stdout.readline().split())

        def ask(into: str) -> Taken:
            print(into, file=vips.stdin, flush=True)
            assert vips.stdout is not None
            clock, processors = vips.stdout.readline().split()
            return float(clock), float(processors)

        passes: dict[str, Callable[[], Taken]] = {
            "ours: decoded, judged, archive built": lambda: _examine(folder),
            f"libvips {version}: shrunk into memory": lambda: ask("memory"),
            f"libvips {version}: shrunk into JPEGs": lambda: ask("jpeg"),
        }
        for once in passes.values():
            once()
        taken: dict[str, list[Taken]] = {name: [] for name in passes}
        for _ in range(rounds):
            for name, once in passes.items():
                taken[name].append(once())
        vips.stdin.close()
    print(f"{files} pictures of 12 megapixels, {megabytes:.0f} MB, {os.cpu_count()} cores, {rounds} rounds, medians")
    print(f"{'':40} {'clock s':>8} {'ratio':>6} {'processors s':>13} {'ratio':>6}")
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in taken.items()}
    ours = next(iter(medians.values()))
    for name, (clock, processors) in medians.items():
        print(f"{name:40} {clock:8.2f} {ours[0] / clock:6.2f} {processors:13.2f} {ours[1] / processors:6.2f}")
    print(f"ratio: ours to this. Aim: at most {_RATIO_LIMIT}")
    _print_parts(sorted(folder.iterdir()))


def _examine(folder: Path) -> Taken:
    began, used = time.perf_counter(), time.process_time()
    with read_dataset(folder) as dataset:
        examined = examine_dataset(dataset, max_images=MAX_IMAGES, max_megapixels=BFL_MAX_MEGAPIXELS)
    judge(dataset, examined, Plan())
    assert examined.archive is not None
    with closing(examined.archive):
        return time.perf_counter() - began, time.process_time() - used


def _print_parts(files: list[Path]) -> None:
    """What one picture takes on one core, by the parts it is made of."""
    names = ("decode at 1/2", "shrink (Lanczos)", "measure", "code")
    parts = [0.0] * len(names)
    with tempfile.TemporaryFile() as scratch:
        for path in files:
            with Image.open(path) as image:
                times = [time.process_time()]
                image.draft("RGB", (1731, 1299))
                image.load()
                times.append(time.process_time())
                small = image.resize((1154, 866), Image.Resampling.LANCZOS)
                times.append(time.process_time())
                measure(small)
                times.append(time.process_time())
                small.save(scratch, "JPEG", quality=95, subsampling=0)
                times.append(time.process_time())
            parts = [so_far + after - before for so_far, before, after in zip(parts, times, times[1:], strict=False)]
    told = ", ".join(f"{name} {part / len(files) * 1000:.0f} ms" for name, part in zip(names, parts, strict=True))
    print(f"one picture of ours: {told}")


# --- memory -----------------------------------------------------------------------------------------------------------


async def _measure_memory(scratch: Path, images: int) -> None:
    files, megabytes = fill_folder(scratch / "pictures", _SMALL, most=images)
    fill_folder(scratch / "few", _SMALL, most=3)
    os.sync()
    settings = {"BFL_MCP_HOME": str(scratch / "home"), "BFL_MCP_ALLOWED_DIRS": str(scratch)}
    before = find_children(os.getpid())
    server = StdioServerParameters(command=sys.executable, args=["-m", "bfl_mcp"], env=settings)
    async with Client(server) as client:
        (pid,) = find_children(os.getpid()) - before
        await _check(client, scratch / "few")
        idle = read_resident(pid)
        began = time.perf_counter()
        calls = await _check(client, scratch / "pictures")
        seconds = time.perf_counter() - began
        after = read_resident(pid)
    rise = after.peak_mb - idle.now_mb
    print(f"{files} pictures of 2 megapixels, {megabytes:.0f} MB: checked in {seconds:.1f} s, {calls} calls")
    print(f"memory, MB of 1 000 000 bytes: idle {idle.now_mb:.0f}, peak {after.peak_mb:.0f}, rise {rise:.0f}")
    print(f"promised: rise below {_RISE_LIMIT_MB} MB")


async def _check(client: Client, folder: Path) -> int:
    """Check a folder to its end; the number of calls it took."""
    calls = 0
    while True:
        calls += 1
        answer = await client.call_tool("check_dataset", {"folder": str(folder)})
        if not answer.is_error:
            return calls
        if "Still looking" not in str(answer.content):
            raise RuntimeError(f"check_dataset failed: {answer.content}")


if __name__ == "__main__":
    raise SystemExit(main())
