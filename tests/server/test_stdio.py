"""What only a process can show: the wire, signals, memory of who started whom."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from bfl_mcp.finetunes.journal import Journal
from tests.fakes.bfl import Answer, FakeBFL, Request
from tests.pictures import fill_folder, picture

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "0"}},
}
INITIALIZED = {"jsonrpc": "2.0", "method": "notifications/initialized"}


def call(number: int, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    params = {"name": name, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}


@contextmanager
def running(home: Path, **environment: str) -> Iterator["subprocess.Popen[bytes]"]:
    """The server as a host starts it; killed if a test leaves it alive."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bfl_mcp"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "BFL_MCP_HOME": str(home), "BFL_TRAINER_PRACTICE_SECONDS": "1", **environment},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def send(process: "subprocess.Popen[bytes]", *messages: dict[str, Any]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"".join(json.dumps(message).encode() + b"\n" for message in messages))
    process.stdin.flush()


def answer(process: "subprocess.Popen[bytes]", number: int) -> dict[str, Any]:
    """The answer to request `number`; every line before it must be JSON-RPC too."""
    assert process.stdout is not None
    while line := process.stdout.readline():
        message = json.loads(line)
        assert message["jsonrpc"] == "2.0"
        if message.get("id") == number:
            return dict(message)
    pytest.fail("the server closed its output")


def test_every_line_of_a_whole_conversation_is_json_rpc(home: Path, tmp_path: Path) -> None:
    """One stray line on stdout breaks a host's connection, whatever library printed it."""
    folder = fill_folder(tmp_path / "pictures")
    request = {"folder": str(folder), "finetune_comment": "cats", "mode": "style"}
    with running(home) as process:
        send(process, INITIALIZE, INITIALIZED, {"jsonrpc": "2.0", "id": 2, "method": "tools/list"})
        send(process, call(3, "create_finetune", request), call(4, "nonsense", {}), call(5, "create_finetune", {}))
        started = answer(process, 3)["result"]
        send(process, {"jsonrpc": "2.0", "id": 6, "method": "no/such/method"})
        finetune_id = started["structuredContent"]["finetune_id"]
        send(process, call(7, "get_finetune_details", {"finetune_id": finetune_id, "wait_seconds": 1}))
        answer(process, 7)
        out, errors = process.communicate(timeout=10)

    assert process.returncode == 0
    assert [json.loads(line)["jsonrpc"] for line in out.splitlines()] == ["2.0"] * len(out.splitlines())
    assert errors == b""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_within_a_second(home: Path, number: signal.Signals) -> None:
    """Ctrl-C in a terminal, SIGTERM from a host; the SDK alone would wait for the host to close its end."""
    with running(home) as process:
        send(process, INITIALIZE)
        answer(process, 1)
        began = time.monotonic()
        process.send_signal(number)
        status = process.wait(timeout=5)

    assert time.monotonic() - began < 1
    assert status == 128 + number


def test_a_signal_ends_the_server_while_it_waits_in_a_call(home: Path, tmp_path: Path) -> None:
    """A person who presses Ctrl-C does not want to wait for the answer."""
    folder = fill_folder(tmp_path / "pictures", count=1)
    request = {"folder": str(folder), "finetune_comment": "cats", "mode": "style"}
    with running(home, BFL_TRAINER_PRACTICE_SECONDS="30") as process:
        send(process, INITIALIZE, INITIALIZED, call(2, "create_finetune", request))
        finetune_id = answer(process, 2)["result"]["structuredContent"]["finetune_id"]
        send(process, call(3, "get_finetune_details", {"finetune_id": finetune_id, "wait_seconds": 45}))
        send(process, call(4, "nonsense", {}))
        answer(process, 4)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait(timeout=5)
    stop_worker(home)

    assert time.monotonic() - began < 1


def stop_worker(home: Path) -> None:
    """End the worker of this test's own data folder, found by the folder in its command line."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes()
        except OSError:
            continue
        if str(home / "trainer").encode() in command:
            os.kill(int(entry.parent.name), signal.SIGKILL)


class SlowProvider(FakeBFL):
    """Makes a start at once, and answers it a while later."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.arrived = threading.Event()

    def _start(self, request: Request) -> Answer:
        answer = super()._start(request)
        self.arrived.set()
        time.sleep(self.seconds)
        return answer


@pytest.mark.parametrize("end", ["stdin", "SIGTERM", "SIGINT"])
def test_an_ending_server_lets_a_start_on_the_wire_finish(home: Path, tmp_path: Path, end: str) -> None:
    """The window is closed while the answer is on its way: the id is in the journal, not lost."""
    folder = fill_folder(tmp_path / "pictures", count=1)
    request = {"folder": str(folder), "finetune_comment": "cats", "mode": "style"}
    bfl = SlowProvider(1.0)
    with bfl.serve() as url, running(home, BFL_API_URL=url, BFL_API_KEY="test-key") as process:
        send(process, INITIALIZE, INITIALIZED, call(2, "create_finetune", request))
        assert bfl.arrived.wait(10)
        if end == "stdin":
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
        else:
            process.send_signal(signal.Signals[end])
        process.wait(timeout=10)

    [entry] = Journal(home)._select("1")
    assert (entry.state, entry.finetune_id) == ("started", next(iter(bfl.finetunes)))


def test_a_signal_waits_two_seconds_at_most(home: Path, tmp_path: Path) -> None:
    """Hosts kill harder after a while; what is not known by then is settled by the next server."""
    folder = fill_folder(tmp_path / "pictures", count=1)
    request = {"folder": str(folder), "finetune_comment": "cats", "mode": "style"}
    bfl = SlowProvider(6.0)
    with bfl.serve() as url:
        with running(home, BFL_API_URL=url, BFL_API_KEY="test-key") as process:
            send(process, INITIALIZE, INITIALIZED, call(2, "create_finetune", request))
            assert bfl.arrived.wait(10)
            began = time.monotonic()
            process.terminate()
            process.wait(timeout=10)
            took = time.monotonic() - began
        with running(home, BFL_API_URL=url, BFL_API_KEY="test-key") as process:
            send(process, INITIALIZE, INITIALIZED, call(2, "create_finetune", request))
            settled = answer(process, 2)["result"]["structuredContent"]

    assert 1.5 < took < 3
    assert (settled["started"], settled["finetune_id"]) == (False, next(iter(bfl.finetunes)))
    assert len(bfl.starts()) == 1


def test_the_training_survives_the_host(home: Path, tmp_path: Path) -> None:
    """Hosts kill their servers when a window closes; a finetune that was started goes on and is found again."""
    folder = fill_folder(tmp_path / "pictures", count=1)
    request = {"folder": str(folder), "finetune_comment": "cats", "mode": "style"}
    with running(home) as process:
        send(process, INITIALIZE, INITIALIZED, call(2, "create_finetune", request))
        finetune_id = answer(process, 2)["result"]["structuredContent"]["finetune_id"]
        process.kill()

    deadline = time.monotonic() + 20
    progress = home / "trainer" / "finetunes" / finetune_id / "progress.json"
    while json.loads(progress.read_bytes())["state"] != "ready":
        assert time.monotonic() < deadline, "nobody trained it"
        time.sleep(0.05)
    with running(home) as process:
        send(process, INITIALIZE, INITIALIZED, call(2, "get_finetune_details", {"finetune_id": finetune_id}))
        assert answer(process, 2)["result"]["structuredContent"]["state"] == "ready"


def test_pings_are_answered_while_pictures_are_packed(home: Path, tmp_path: Path) -> None:
    """A host that hears nothing takes the server for dead: 50 ms, while both cores work on pictures."""
    folder = fill_folder(tmp_path / "pictures", count=12, size=(3000, 2000))
    picture(3000, 2000).convert("RGBA").save(folder / "seen-through.png")
    request = {"folder": str(folder), "finetune_comment": "cats", "mode": "style", "dry_run": True}
    times = []
    packed: dict[str, Any] = {}
    with running(home) as process:
        send(process, INITIALIZE, INITIALIZED, call(2, "create_finetune", {**request, "folder": str(tmp_path)}))
        answer(process, 2)
        send(process, call(3, "create_finetune", request))
        assert process.stdout is not None
        for number in range(100, 10_000):
            sent = time.monotonic()
            send(process, {"jsonrpc": "2.0", "id": number, "method": "ping"})
            message = json.loads(process.stdout.readline())
            if message["id"] == 3:
                packed = message
                message = json.loads(process.stdout.readline())
            times.append(time.monotonic() - sent)
            if packed:
                break
            time.sleep(0.005)

    assert packed["result"]["structuredContent"]["images"] == 13
    assert len(times) > 20
    # A busy machine may hold one in twenty up; the rest must be quick.
    times.sort()
    assert times[len(times) * 95 // 100] < 0.05
    assert times[-1] < 0.25


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_both_eras_work_over_stdio(home: Path, mode: str) -> None:
    """The first request fixes the era for the process."""
    server = StdioServerParameters(command=sys.executable, args=["-m", "bfl_mcp"], env={"BFL_MCP_HOME": str(home)})
    async with Client(server, mode=mode) as client:
        names = [tool.name for tool in (await client.list_tools()).tools]

    desk = ["check_dataset", "view_dataset", "write_captions", "export_dataset"]
    assert names == [*desk, "create_finetune", "get_finetune_details"]


async def test_the_example_configuration_starts_the_server(home: Path, tmp_path: Path) -> None:
    """What a person pastes into a host, with the one placeholder filled in."""
    example = Path(__file__).parents[2] / "config.example.json"
    script = Path(sys.executable).with_name("bfl-mcp")
    filled = tmp_path / "claude_desktop_config.json"
    text = example.read_text(encoding="utf-8").replace("/ABSOLUTE/PATH/TO/bfl_mcp/.venv/bin/bfl-mcp", str(script))
    filled.write_text(text, encoding="utf-8")

    [entry] = json.loads(filled.read_text(encoding="utf-8"))["mcpServers"].values()
    assert entry["env"].get("BFL_API_KEY", "") == ""
    server = StdioServerParameters(**{**entry, "env": {**entry["env"], "BFL_MCP_HOME": str(home)}})
    async with Client(server) as client:
        assert len((await client.list_tools()).tools) == 6
