"""BFL's finetuning API on a real socket, with a ledger of every start that reached it and a script of what fails.

Written down to the bytes, because the faults are about bytes: where a connection is cut, and who knows what then. A
start is in the ledger, and visible in the list, from the moment its last byte is here.
"""

import base64
import contextlib
import hashlib
import io
import json
import socket
import struct
import threading
import time
import uuid
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal
from urllib.parse import parse_qs, urlsplit

KEY: Final = "test-key"

Stage = Literal["list", "listed", "head", "part", "complete", "answering", "answered"]
"""Where an exchange is. list, listed: the list was asked for, was told · head, part, complete: of a start, so much is
here · answering, answered: so much of its answer is gone."""

STAGES: Final[tuple[Stage, ...]] = ("list", "listed", "head", "part", "complete", "answering", "answered")

_TOLD: Final = ("finetune_comment", "trigger_word", "mode", "iterations", "priority", "finetune_type", "lora_rank")
"""What details tell back of a start, as seen in typed clients of 2025."""

_STATUS_WORDS: Final = {200: "OK", 402: "Payment Required", 404: "Not Found", 422: "Unprocessable Entity"}

_SMALL_BUFFER_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Deed:
    """What the provider does with one request.

    `share` is where it is cut, as a share of its bytes. `made` says whether a start counts although its answer is an
    error. `reset` cuts the hard way.
    """

    kind: Literal["answer", "cut request", "cut answer", "error", "refuse"] = "answer"
    share: float = 0.5
    status: int = 200
    made: bool = True
    delay_seconds: float = 0.0
    reset: bool = False


@dataclass(slots=True)
class Start:
    """A start whose whole body arrived. `counted` says whether the provider runs (and bills) it."""

    label: str
    key: str
    finetune_id: str
    counted: bool
    arrived: float
    due: float | None
    """When its whole answer with its id is on its way; None where that never is."""


@dataclass(slots=True)
class _Asked:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    head_bytes: int

    @property
    def length(self) -> int:
        return int(self.headers.get("content-length", 0))


class _CutError(Exception):
    """The connection is to be dropped here."""


@dataclass
class Provider:
    """One account at the provider, for one trial."""

    log: Callable[[str, str], None]
    starts: list[Start] = field(default_factory=list)
    next_starts: deque[Deed] = field(default_factory=deque)
    next_lists: deque[Deed] = field(default_factory=deque)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._finetunes: dict[str, dict[str, Any]] = {}
        self._watched: dict[Stage, Callable[[], None]] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()

    def watch(self, stage: Stage, strike: Callable[[], None]) -> None:
        """Call `strike` the next time an exchange reaches a stage; the exchange waits for it."""
        with self._lock:
            self._watched[stage] = strike

    def forget_watched(self) -> None:
        with self._lock:
            self._watched.clear()

    def add_foreign(self, parameters: Mapping[str, Any]) -> str:
        """A finetune that somebody else started on the same account."""
        finetune_id = str(uuid.uuid4())
        with self._lock:
            self._finetunes[finetune_id] = _details(parameters)
        self.log("provider", f"somebody else started {finetune_id}: {parameters}")
        return finetune_id

    @contextmanager
    def serve(self) -> Iterator[str]:
        """Answer on loopback for the block; gives the address."""
        listener = socket.socket()
        # Small, so that a start can be half-way on the wire.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER_BYTES)
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        listener.settimeout(0.05)
        accepting = threading.Thread(target=self._accept, args=(listener,), daemon=True)
        accepting.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            self._closing.set()
            accepting.join()
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.settimeout(60)
                threading.Thread(target=self._serve_connection, args=(connection,), daemon=True).start()

    def _serve_connection(self, connection: socket.socket) -> None:
        wire = _Wire(connection)
        with connection, contextlib.suppress(OSError, _CutError):
            while (asked := wire.read_head()) is not None:
                if asked.headers.get("x-key") != KEY:
                    self.problems.append(f"{asked.method} {asked.path} came without the key")
                if (asked.method, asked.path) == ("POST", "/v1/finetune"):
                    self._take_start(wire, asked)
                else:
                    wire.read(asked.length)
                    self._take_question(wire, asked)

    def _take_start(self, wire: "_Wire", asked: _Asked) -> None:
        deed = self._next(self.next_starts)
        self._reach("head")
        if deed.kind == "cut request":
            # One byte is missing at least.
            whole = asked.head_bytes + asked.length
            wire.read(max(0, min(int(deed.share * whole), whole - 1) - asked.head_bytes))
            self.log("provider", f"cuts a start at {deed.share:.0%} of {whole} bytes")
            wire.cut(reset=deed.reset)
        body = wire.read(int(deed.share * asked.length))
        self._reach("part")
        body += wire.read(asked.length - len(body))
        start = self._keep(json.loads(body), deed)
        self._reach("complete")
        self._closing.wait(deed.delay_seconds)
        status, answer = _answer_to_start(deed, start)
        if deed.kind == "cut answer":
            self._cut_answer(wire, deed, answer)
        self._answer(wire, status, answer, deed.share, "answering")
        self.log("provider", f"answered {status} to the start {start.finetune_id}")
        self._reach("answered")

    def _keep(self, body: dict[str, Any], deed: Deed) -> Start:
        counted = deed.made and deed.kind != "refuse"
        archive = base64.b64decode(body.pop("file_data"), validate=True)
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            if opened.testzip() is not None:
                self.problems.append("a start came with a broken archive")
        label = body["finetune_comment"][:1]
        identity = [hashlib.sha256(archive).hexdigest(), {n: v for n, v in body.items() if n != "finetune_comment"}]
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        now = time.monotonic()
        due = now + deed.delay_seconds if deed.kind == "answer" else None
        start = Start(label, key, str(uuid.uuid4()), counted, now, due)
        with self._lock:
            self.starts.append(start)
            if counted:
                self._finetunes[start.finetune_id] = _details(body)
        words = "runs it" if counted else "will not run it"
        self.log("provider", f"has the whole start {label} as {start.finetune_id}, and {words}; key {key[:12]}")
        return start

    def _take_question(self, wire: "_Wire", asked: _Asked) -> None:
        match asked.method, asked.path:
            case "GET", "/v1/my_finetunes":
                self._take_list(wire)
            case "GET", "/v1/finetune_details":
                self._tell(wire, self._known(asked.query.get("finetune_id", "")), "finetune_details")
            case "GET", "/v1/get_result":
                known = self._known(asked.query.get("id", ""))
                result = {"id": asked.query.get("id"), "status": "Pending", "result": None, "progress": None}
                self._answer(wire, 200 if known else 404, result if known else {"detail": "Task not found"})
            case "GET", "/v1/credits":
                self._answer(wire, 200, {"credits": 1013.5})
            case _:
                self._answer(wire, 404, {"detail": "Not Found"})

    def _take_list(self, wire: "_Wire") -> None:
        self._reach("list")
        deed = self._next(self.next_lists)
        with self._lock:
            listed = {"finetunes": list(self._finetunes)}
        self._closing.wait(deed.delay_seconds)
        if deed.kind == "cut answer":
            self._cut_answer(wire, deed, listed)
        if deed.kind == "error":
            self.log("provider", f"answers {deed.status} to the list")
            self._answer(wire, deed.status, {"detail": "Internal Server Error"})
            return
        self._answer(wire, 200, listed)
        self.log("provider", f"listed {len(listed['finetunes'])} finetunes")
        self._reach("listed")

    def _tell(self, wire: "_Wire", known: dict[str, Any] | None, name: str) -> None:
        if known is None:
            self._answer(wire, 404, {"detail": "Finetune not found or access denied"})
        else:
            self._answer(wire, 200, {name: known})

    def _known(self, finetune_id: str) -> dict[str, Any] | None:
        with self._lock:
            return self._finetunes.get(finetune_id)

    def _cut_answer(self, wire: "_Wire", deed: Deed, answer: object) -> None:
        data = _encode(200, answer)
        kept = min(int(deed.share * len(data)), len(data) - 1)
        self.log("provider", f"cuts its answer after {kept} of {len(data)} bytes")
        wire.write(data[:kept])
        wire.cut(reset=deed.reset)

    def _answer(
        self, wire: "_Wire", status: int, answer: object, share: float = 1.0, stage: Stage | None = None
    ) -> None:
        data = _encode(status, answer)
        wire.write(data[: int(share * len(data))])
        if stage is not None:
            self._reach(stage)
        wire.write(data[int(share * len(data)) :])

    def _reach(self, stage: Stage) -> None:
        with self._lock:
            strike = self._watched.pop(stage, None)
        if strike is not None:
            strike()

    def _next(self, deeds: deque[Deed]) -> Deed:
        with self._lock:
            return deeds.popleft() if deeds else Deed()


class _Wire:
    """One connection, read by the byte."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._rest = b""

    def read_head(self) -> _Asked | None:
        """The next request's head, or None where the other side has left."""
        while b"\r\n\r\n" not in self._rest:
            if not self._fill():
                return None
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        parts = urlsplit(target)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        return _Asked(method, parts.path, query, headers, len(head) + 4)

    def read(self, size: int) -> bytes:
        """Exactly so many bytes.

        Raises:
            _CutError: The other side left before.
        """
        while len(self._rest) < size:
            if not self._fill():
                raise _CutError
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def write(self, data: bytes) -> None:
        self._connection.sendall(data)

    def cut(self, *, reset: bool) -> None:
        """Drop the connection.

        Raises:
            _CutError: Always.
        """
        if reset:
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
        raise _CutError

    def _fill(self) -> bool:
        data = self._connection.recv(_SMALL_BUFFER_BYTES)
        self._rest += data
        return bool(data)


def _answer_to_start(deed: Deed, start: Start) -> tuple[int, object]:
    match deed.kind:
        case "error":
            return deed.status, b"<html>upstream failed</html>"
        case "refuse":
            return deed.status, {"detail": "Insufficient credits"}
        case _:
            return 200, {"finetune_id": start.finetune_id}


def _encode(status: int, answer: object) -> bytes:
    content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    head = (
        f"HTTP/1.1 {status} {_STATUS_WORDS.get(status, 'Trouble')}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def _details(parameters: Mapping[str, Any]) -> dict[str, Any]:
    told = {name: parameters[name] for name in _TOLD if name in parameters}
    return {**told, "timestamp": datetime.now(UTC).isoformat()}
