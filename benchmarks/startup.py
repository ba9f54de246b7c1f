"""How long the server takes from its start to its first answers, beside a bare server of one tool on the same SDK.

    python -m benchmarks.startup [--runs 15]

The servers are started in turn, each the same number of times, by hand over standard input and output, so that no
client is measured with them. Run it twice after an installation: the first run compiles.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from benchmarks.resident import read_resident

_RATIO_LIMIT: Final = 1.10
_LIST_LIMIT_KB: Final = 20.0
_WARM_UPS: Final = 2

_BARE: Final = """\
from mcp.server import MCPServer

server = MCPServer("bare")


@server.tool()
def add(a: int, b: int) -> int:
    return a + b


server.run("stdio")
"""


@dataclass(frozen=True, slots=True)
class Start:
    """One start of one server."""

    initialize_ms: float
    list_ms: float
    list_bytes: int
    rss_mb: float


def main() -> int:
    """Start all servers in turn and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=15, help="measured starts of each server (default: %(default)s)")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory(prefix="bfl-mcp-benchmark-") as scratch:
        starts = _measure(_commands(Path(scratch)), Path(scratch), runs)
    bare = starts["bare"]
    print(f"{runs} starts each, in turn, {os.cpu_count()} cores; ms from spawn to answer, MB of 1 000 000 bytes")
    print(_HEAD)
    for name, of_server in starts.items():
        print(_row(name, of_server, bare))
    print(_FOOT)
    return 0


def _commands(scratch: Path) -> dict[str, list[str]]:
    bare = scratch / "bare.py"
    bare.write_text(_BARE, encoding="utf-8")
    commands = {"bare": [sys.executable, str(bare)], "python -m bfl_mcp": [sys.executable, "-m", "bfl_mcp"]}
    script = Path(sys.executable).with_name("bfl-mcp")
    if script.is_file():
        commands["bfl-mcp"] = [str(script)]
    return commands


def _measure(commands: dict[str, list[str]], scratch: Path, runs: int) -> dict[str, list[Start]]:
    starts: dict[str, list[Start]] = {name: [] for name in commands}
    for run in range(_WARM_UPS + runs):
        # Each round begins with another server, so that none always follows the same one.
        names = list(commands)[run % len(commands) :] + list(commands)[: run % len(commands)]
        for name in names:
            start = _start(commands[name], scratch)
            if run >= _WARM_UPS:
                starts[name].append(start)
    return starts


def _start(command: list[str], scratch: Path) -> Start:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BFL_")}
    environment["BFL_MCP_HOME"] = str(scratch / "home")
    hello = {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "benchmark", "version": "1"},
    }
    begun = time.perf_counter()
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=scratch,
        env=environment,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            _send(server.stdin, id=1, method="initialize", params=hello)
            _read_answer(server.stdout, command)
            answered = time.perf_counter()
            _send(server.stdin, method="notifications/initialized")
            asked = time.perf_counter()
            _send(server.stdin, id=2, method="tools/list", params={})
            line = _read_answer(server.stdout, command)
            listed = time.perf_counter()
            rss_mb = read_resident(server.pid).now_mb
        finally:
            server.kill()
    return Start((answered - begun) * 1000, (listed - asked) * 1000, len(line), rss_mb)


def _send(stdin: IO[bytes], **message: Any) -> None:
    stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
    stdin.flush()


def _read_answer(stdout: IO[bytes], command: list[str]) -> bytes:
    line = stdout.readline()
    if not line or "result" not in json.loads(line):
        raise SystemExit(f"{command} gave no answer: {line!r}")
    return line


_HEAD: Final = (
    f"{'server':20} │ initialize {'median':>6} {'min':>6} {'ratio':>6} {'(min)':>7} │ "
    f"tools/list {'ms':>5} {'kB':>5} │ RSS MB"
)
_FOOT: Final = f"""\
ratio: to bare, of the medians (of the minima). tools/list: ms from asking, median; size of the whole line.
Promised: ratio at most {_RATIO_LIMIT:.2f}, tools/list under {_LIST_LIMIT_KB} kB."""


def _row(name: str, starts: list[Start], bare: list[Start]) -> str:
    times, bare_times = ([start.initialize_ms for start in of_server] for of_server in (starts, bare))
    median, lowest = statistics.median(times), min(times)
    return (
        f"{name:20} │ {median:17.0f} {lowest:6.0f} {median / statistics.median(bare_times):6.2f} "
        f"({lowest / min(bare_times):5.2f}) │ {statistics.median(start.list_ms for start in starts):16.1f} "
        f"{starts[0].list_bytes / 1000:5.1f} │ {statistics.median(start.rss_mb for start in starts):6.1f}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
