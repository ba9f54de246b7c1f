"""A hub of models on loopback: as much of its protocol as a download needs, from a folder."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40
REPOSITORY = "somebody/klein"


@dataclass
class Hub:
    """The only repository is `somebody/klein`; `somebody/gated` wants a licence accepted."""

    folder: Path
    url: str = ""
    sent: list[str] = field(default_factory=list)
    cut_after_bytes: int | None = None
    """The next large file ends there, once, as when a network goes away."""


@contextmanager
def hub(folder: Path) -> Iterator[Hub]:
    shared = Hub(folder)

    class Handler(_Handler):
        hub = shared

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        shared.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield shared
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).removeprefix("/")
        if path.startswith("api/models/somebody/gated"):
            self._answer(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        elif path == f"api/models/{REPOSITORY}/revision/main":
            self._json({"id": REPOSITORY, "sha": COMMIT, "siblings": []})
        elif path == f"api/models/{REPOSITORY}/tree/{COMMIT}":
            self._json([self._entry(file) for file in sorted(self.hub.folder.rglob("*")) if file.is_file()])
        elif path.startswith(prefix := f"{REPOSITORY}/resolve/{COMMIT}/"):
            self._file(self.hub.folder / path.removeprefix(prefix))
        else:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815 - the name it has above

    def _entry(self, file: Path) -> dict[str, object]:
        return {
            "type": "file",
            "path": file.relative_to(self.hub.folder).as_posix(),
            "size": file.stat().st_size,
            "oid": hashlib.sha1(file.read_bytes()).hexdigest(),  # noqa: S324 - as the hub names files
        }

    def _file(self, file: Path) -> None:
        content = file.read_bytes()
        etag = hashlib.sha1(content).hexdigest()  # noqa: S324 - as above
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        begin = self.headers.get("Range", "")
        first = int(begin.removeprefix("bytes=").split("-")[0]) if begin else 0
        if self.command == "GET":
            self.hub.sent.append(f"{file.relative_to(self.hub.folder).as_posix()} from {first}")
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        self._answer(206 if first else 200, content[first:], headers)

    def _json(self, content: object) -> None:
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.hub.cut_after_bytes
        if cut is not None and len(content) > cut:
            self.hub.cut_after_bytes = None
            self.wfile.write(content[:cut])
            self.close_connection = True
            return
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name it has above
        """Say nothing."""
