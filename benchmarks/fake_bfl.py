"""A stand-in for BFL's API on this machine: takes a start of any size in constant memory and keeps nothing."""

import json
import multiprocessing
import select
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from multiprocessing.connection import Connection
from typing import Any

_BLOCK_BYTES = 1 << 18


@contextmanager
def running_fake() -> Iterator[str]:
    """Serve from a process of its own, so that its work is not the measured one's. Gives the URL."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(there,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}"
    finally:
        process.kill()
        process.join()


def _serve(parent: Connection) -> None:
    with HTTPServer(("127.0.0.1", 0), _Handler) as server:
        parent.send(server.server_address[1])
        server.serve_forever()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    connection: socket.socket

    def do_GET(self) -> None:
        self._answer(200, {"finetunes": []})

    def do_POST(self) -> None:
        announced = int(self.headers["content-length"])
        first, last, arrived = self._discard(announced)
        # Nothing may follow what was announced: the client waits for the answer now.
        more = bool(select.select([self.connection], [], [], 0)[0])
        if self.path != "/v1/finetune":
            self._answer(404, {"detail": "Not Found"})
        elif arrived != announced or more or first != b"{" or last != b"}":
            self._answer(422, {"detail": f"{announced} bytes announced, {arrived} arrived, more behind: {more}"})
        else:
            self._answer(200, {"finetune_id": str(uuid.uuid4())})

    def _discard(self, length: int) -> tuple[bytes, bytes, int]:
        """Read a body and forget it. Returns its first byte, its last byte and its length."""
        block = memoryview(bytearray(_BLOCK_BYTES))
        first, last, arrived = b"", b"", 0
        while arrived < length:
            count = self.rfile.readinto1(block[: min(_BLOCK_BYTES, length - arrived)])
            if not count:
                break
            first = first or bytes(block[:1])
            last = bytes(block[count - 1 : count])
            arrived += count
        return first, last, arrived

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass
