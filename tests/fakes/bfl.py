"""BFL's finetuning API as it was observed: it checks the key, opens the ZIP it gets, and remembers every request.

One set of answers with three faces: `transport()` for any address, so that BFL's own host names can be tested without a
network, `serve()` for real sockets on loopback, and `app()` for what lives inside the server's process.
"""

import base64
import io
import json
import socket
import threading
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

from bfl_mcp.contract import TRAINER_HEADER

KEY = "test-key"


@dataclass
class Answer:
    """What the fake says next. `cut` closes the connection after so many bytes of the answer, 0 for none at all."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None

    def encoded(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        return json.dumps(self.body).encode()


@dataclass
class Request:
    """A request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def archive(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(io.BytesIO(base64.b64decode(self.json()["file_data"], validate=True)))


class FakeBFL:
    """An account at BFL in the year when it trained."""

    def __init__(self, key: str | None = KEY) -> None:
        self.key = key
        self.training_open = True
        self.need: dict[str, Any] | None = None
        """Once set, this is a trainer of ours, and answers so to what a training takes."""
        self.requests: list[Request] = []
        self.finetunes: dict[str, dict[str, Any]] = {}
        self.results: dict[str, dict[str, Any]] = {}
        self._next: dict[tuple[str, str], list[Answer | Exception]] = {}

    def say_next(self, method: str, path: str, *answers: Answer | Exception) -> None:
        """Answer the next requests to an endpoint so; afterwards as usual. An exception is raised by `transport()`."""
        self._next.setdefault((method, path), []).extend(answers)

    def fail_read(self, path: str, answer: Answer | Exception, times: int = 1) -> None:
        """Fail readings as often as it takes for the client to give up."""
        self.say_next("GET", path, *[answer] * (4 * times))

    def starts(self) -> list[Request]:
        """The starts that arrived; a probe without images is none."""
        return [
            request
            for request in self.requests
            if (request.method, request.path) == ("POST", "/v1/finetune") and b"file_data" in request.body
        ]

    def add_finetune(self, status: str = "Pending", **details: Any) -> str:
        finetune_id = str(uuid.uuid4())
        self.finetunes[finetune_id] = {"finetune_comment": "cats", "trigger_word": "TOK", "iterations": 300, **details}
        self.results[finetune_id] = {"id": finetune_id, "status": status, "result": None, "progress": None}
        return finetune_id

    def respond(self, request: Request) -> Answer:
        self.requests.append(request)
        answer = self._respond(request)
        if self.need is not None:
            answer.headers = {**answer.headers, TRAINER_HEADER: "0.1.0"}
        return answer

    def _respond(self, request: Request) -> Answer:
        if self.key is not None and request.headers.get("x-key") != self.key:
            return Answer(403, {"detail": "Not authenticated - Invalid Authentication"})
        endpoint = request.method, request.path
        if waiting := self._next.get(endpoint):
            answer = waiting.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        return self._usual(endpoint, request)

    def _usual(self, endpoint: tuple[str, str], request: Request) -> Answer:
        match endpoint:
            case "POST", "/v1/finetune_need" if self.need is not None:
                return Answer(200, self.need)
            case "POST", "/v1/finetune" if self.training_open:
                return self._start(request)
            case "GET", "/v1/finetune_details":
                return self._known(self.finetunes.get(request.query["finetune_id"]), "finetune_details")
            case "GET", "/v1/get_result":
                result = self.results.get(request.query["id"])
                return Answer(200, result) if result else Answer(404, {"detail": "Task not found"})
            case "GET", "/v1/my_finetunes":
                return Answer(200, {"finetunes": list(self.finetunes)})
            case "POST", "/v1/delete_finetune":
                return self._known(self.finetunes.pop(request.json()["finetune_id"], None), "deleted")
            case "GET", "/v1/credits":
                return Answer(200, {"credits": 1013.5})
        return Answer(404, {"detail": "Not Found"})

    def transport(self) -> httpx.MockTransport:
        """The fake at any address, without sockets."""

        async def handle(request: httpx.Request) -> httpx.Response:
            body = await request.aread()
            headers = dict(request.headers)
            asked = Request(request.method, request.url.path, dict(request.url.params), headers, body)
            answer = self.respond(asked)
            return httpx.Response(answer.status, content=answer.encoded(), headers=answer.headers)

        return httpx.MockTransport(handle)

    def app(self) -> Any:
        """The fake as an ASGI application: it stands in for the trainer inside a process."""

        async def answer(scope: dict[str, Any], receive: Any, send: Any) -> None:
            body = b""
            while (message := await receive()).get("more_body"):
                body += message["body"]
            query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            asked = Request(scope["method"], scope["path"], query, headers, body + message["body"])
            said = self.respond(asked)
            pairs = [(name.encode(), value.encode()) for name, value in said.headers.items()]
            await send({"type": "http.response.start", "status": said.status, "headers": pairs})
            await send({"type": "http.response.body", "body": said.encoded()})

        return answer

    @contextmanager
    def serve(self) -> Iterator[str]:
        """The fake on a real socket of this machine; gives its address."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def _start(self, request: Request) -> Answer:
        body = request.json()
        missing = [name for name in ("file_data", "finetune_comment", "mode") if name not in body]
        if missing:
            faults = [
                {"type": "missing", "loc": ["body", name], "msg": "Field required", "input": body} for name in missing
            ]
            return Answer(422, {"detail": faults})
        try:
            with request.archive() as archive:
                assert archive.testzip() is None
        except (ValueError, zipfile.BadZipFile):
            fault = {"type": "value_error", "loc": ["body", "file_data"], "msg": "Value error, Invalid zip file"}
            return Answer(422, {"detail": [{**fault, "input": body}]})
        finetune_id = self.add_finetune(**{name: value for name, value in body.items() if name != "file_data"})
        return Answer(200, {"finetune_id": finetune_id})

    @staticmethod
    def _known(found: dict[str, Any] | None, key: str) -> Answer:
        if found is None:
            return Answer(404, {"detail": "Finetune not found or access denied"})
        return Answer(200, {key: found})


def _handler(fake: FakeBFL) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def _answer(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = fake.respond(Request(self.command, parts.path, query, headers, body))
            content = answer.encoded()
            self.send_response(answer.status)
            for name, value in {"content-type": "application/json", **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            if answer.cut == 0:
                self._drop()
                return
            self.end_headers()
            if answer.cut is None:
                self.wfile.write(content)
            else:
                self.wfile.write(content[: answer.cut])
                self._drop()

        def _drop(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
            pass

    return Handler
