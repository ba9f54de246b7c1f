"""The real server process, spoken to in raw lines of JSON-RPC, with everything that was said written down."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

ROOT: Final = Path(__file__).parents[2]

_INITIALIZE: Final = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "torture", "version": "0"},
}


@dataclass(slots=True)
class Call:
    """A tool call and what came of it. `label` names the start it asks for."""

    server: str
    number: int
    label: str
    arguments: dict[str, Any]
    sent: float
    answered: float | None = None
    message: dict[str, Any] | None = None
    given_up: bool = False
    """Whether the host no longer waits: it cancelled the call or closed its end."""

    @property
    def structured(self) -> dict[str, Any] | None:
        """The structured content of a success."""
        result = (self.message or {}).get("result")
        if result is None or result.get("isError"):
            return None
        content = result.get("structuredContent")
        return content if isinstance(content, dict) else {}

    @property
    def error(self) -> str | None:
        """The words of an error, whichever way it came."""
        message = self.message or {}
        if "error" in message:
            return f"JSON-RPC error: {message['error'].get('message')}"
        result = message.get("result")
        if result is None or not result.get("isError"):
            return None
        return " ".join(part.get("text", "") for part in result["content"])


class Server:
    """One server process. Its answers are collected by a thread of its own."""

    def __init__(self, name: str, environment: dict[str, str], log: Callable[[str, str], None]) -> None:
        self.name = name
        self.faults: list[str] = []
        """Lines on standard output that are no JSON-RPC."""
        self.errors: list[str] = []
        self.calls: list[Call] = []
        self.struck_at = float("inf")
        """When it was ended by a signal: its last line may be half a line then."""
        self.disk_was_full = False
        """Whether there was a time when it could write nothing down."""
        self.began = time.monotonic()
        self.ended: float | None = None
        self._log = log
        self._changed = threading.Condition()
        self._waiting: dict[int, Call] = {}
        self._numbers = iter(range(1, 1_000_000))
        clean = {name: value for name, value in os.environ.items() if not name.startswith("BFL_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bfl_mcp"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={**clean, **environment},
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._stdin: IO[bytes] = self.process.stdin
        self._writing = threading.Lock()
        self._readers = [
            threading.Thread(target=self._read_answers, args=(self.process.stdout,), daemon=True),
            threading.Thread(target=self._read_errors, args=(self.process.stderr,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def greet(self) -> None:
        """Shake hands, and wait until it is done."""
        hello = self._send("initialize", _INITIALIZE)
        self.wait(hello, 30)
        self._write({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def call(self, tool: str, label: str, arguments: dict[str, Any]) -> Call:
        """Call a tool and do not wait."""
        return self._send("tools/call", {"name": tool, "arguments": arguments}, label)

    def cancel(self, call: Call) -> None:
        call.given_up = True
        params = {"requestId": call.number, "reason": "the person changed their mind"}
        self._write({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})

    def wait(self, call: Call, seconds: float) -> bool:
        """Wait for an answer; False where none came in time, or the process ended."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while call.answered is None:
                left = deadline - time.monotonic()
                if left <= 0 or not self._readers[0].is_alive():
                    break
                self._changed.wait(min(left, 0.2))
        return call.answered is not None

    @property
    def struck(self) -> bool:
        return self.struck_at != float("inf")

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        self.struck_at = time.monotonic()
        self._log(self.name, f"<- {number.name}")
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def fill_disk(self, size_bytes: int) -> None:
        """From now on no file of the process can grow beyond so many bytes, as on a full disk."""
        self.disk_was_full = True
        self._log(self.name, f"<- the disk is full at {size_bytes} bytes a file")
        self._limit_files(size_bytes)

    def free_disk(self) -> None:
        """Take the limit away."""
        self._limit_files(resource.RLIM_INFINITY)

    def close_stdin(self) -> None:
        self._log(self.name, "<- end of input")
        for call in self.calls:
            call.given_up = call.given_up or call.answered is None
        with self._writing, contextlib.suppress(OSError):
            self._stdin.close()

    def wait_for_end(self, seconds: float) -> bool:
        """Wait until the process has ended and all it wrote was read; False where it has not in time."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        self.ended = time.monotonic()
        for reader in self._readers:
            reader.join(5)
        self._log(self.name, f"ended with {status}")
        return True

    def leaves_children(self) -> bool:
        """Whether something of its process group still runs after its end."""
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def destroy(self) -> None:
        """End it whatever happens, and give back what it held."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join(5)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _limit_files(self, size_bytes: int) -> None:
        if not hasattr(resource, "prlimit"):
            return
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        soft = hard if size_bytes == resource.RLIM_INFINITY else size_bytes
        with contextlib.suppress(ProcessLookupError, PermissionError):
            resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (soft, hard))

    def _send(self, method: str, params: dict[str, Any], label: str = "") -> Call:
        with self._changed:
            call = Call(self.name, next(self._numbers), label, params.get("arguments", {}), time.monotonic())
            self._waiting[call.number] = call
        if method == "tools/call":
            self.calls.append(call)
        self._write({"jsonrpc": "2.0", "id": call.number, "method": method, "params": params})
        return call

    def _write(self, message: dict[str, Any]) -> None:
        self._log(self.name, f"<- {json.dumps(message)}")
        # It may be gone already.
        with self._writing, contextlib.suppress(OSError, ValueError):
            self._stdin.write(json.dumps(message).encode() + b"\n")
            self._stdin.flush()

    def _read_answers(self, stream: IO[bytes]) -> None:
        for line in stream:
            self._log(self.name, f"-> {line.decode(errors='replace').rstrip()}")
            self._take(line)
        with self._changed:
            self._changed.notify_all()

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
            good = message["jsonrpc"] == "2.0"
        except (ValueError, KeyError, TypeError):
            good, message = False, {}
        if not good and not (self.struck and not line.endswith(b"\n")):
            self.faults.append(repr(line[:300]))
        call = self._waiting.get(message.get("id"))
        if call is not None and "method" not in message:
            with self._changed:
                call.message, call.answered = message, time.monotonic()
                self._changed.notify_all()

    def _read_errors(self, stream: IO[bytes]) -> None:
        for line in stream:
            text = line.decode(errors="replace").rstrip()
            self.errors.append(text)
            self._log(self.name, f"!! {text}")
