"""The key of the person: in no answer, log, journal, crash or command line. The server as a process of its own."""

import base64
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil  # type: ignore[import-untyped]
import pytest

from tests.fakes.bfl import FakeBFL
from tests.pictures import fill_folder
from tests.server.test_stdio import INITIALIZE, INITIALIZED, answer, call, running, send

SECRET = "bfl/0123+4567=89abcdef"
FORMS = (
    SECRET,
    quote(SECRET, safe=""),
    base64.b64encode(SECRET.encode()).decode().rstrip("="),
    base64.urlsafe_b64encode(SECRET.encode()).decode().rstrip("="),
)


def leaks(text: str) -> list[str]:
    return [form for form in FORMS if form in text]


@contextmanager
def repeater() -> Iterator[str]:
    """A provider that answers everything with everything it was sent, in several codings."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._repeat(200)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self._repeat(422)

        def _repeat(self, status: int) -> None:
            said = " ".join([str(self.headers), *FORMS])
            body = json.dumps({"detail": said, "finetunes": [said], "finetune_details": {"note": said}, "status": said})
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("form", [SECRET, f'  "{SECRET}"  ', f"'{SECRET}'\n", f"\t{SECRET}\r\n"])
def test_a_key_is_read_through_what_copying_left_around_it(home: Path, tmp_path: Path, form: str) -> None:
    """Spaces, quotation marks, line breaks: people paste."""
    bfl = FakeBFL(SECRET)
    folder = fill_folder(tmp_path / "pictures", count=1)
    with bfl.serve() as url, running(home, BFL_API_KEY=form, BFL_API_URL=url) as process:
        send(process, INITIALIZE, INITIALIZED)
        send(process, call(2, "create_finetune", {"folder": str(folder), "finetune_comment": "x", "mode": "style"}))
        assert answer(process, 2)["result"]["structuredContent"]["started"] is True
        process.communicate(timeout=10)

    assert {request.headers["x-key"] for request in bfl.requests} == {SECRET}


def test_the_key_is_nowhere_to_be_seen(home: Path, tmp_path: Path) -> None:
    """Not even where the provider sends it back in every answer, or where the server crashes with all details on."""
    folder = fill_folder(tmp_path / "pictures", count=1)
    request = {"folder": str(folder), "finetune_comment": "x", "mode": "style"}
    debugging = {"PYTHONDEVMODE": "1", "PYTHONASYNCIODEBUG": "1", "PYTHONFAULTHANDLER": "1"}
    with repeater() as url, running(home, BFL_API_KEY=SECRET, BFL_API_URL=url, **debugging) as process:
        send(process, INITIALIZE, INITIALIZED)
        said = []
        calls: list[tuple[str, dict[str, Any]]] = [
            ("create_finetune", {**request, "dry_run": True}),
            ("create_finetune", request),
            ("get_finetune_details", {"finetune_id": "x"}),
            ("get_finetune_details", {}),
            ("get_finetune_details", {"finetune_id": ["x"]}),
        ]
        for number, (tool, arguments) in enumerate(calls, start=2):
            send(process, call(number, tool, arguments))
            said.append(answer(process, number))
        commands = [" ".join(psutil.Process(process.pid).cmdline())]
        out, errors = process.communicate(timeout=20)
    kept = "".join(path.read_bytes().decode("latin-1") for path in home.rglob("*") if path.is_file())

    assert all(message.get("result") for message in said)
    assert "[API key]" in json.dumps(said)
    for text in (json.dumps(said), out.decode(), errors.decode(), kept, *commands):
        assert leaks(text) == []


def test_a_key_in_the_wrong_variable_stops_the_server_without_showing_it(home: Path) -> None:
    """The host shows what the server says on standard error."""
    for variable in ("BFL_API_URL", "BFL_MCP_HOME", "BFL_MCP_ALLOWED_DIRS", "BFL_MCP_SPEND_LIMIT_USD"):
        run = subprocess.run(
            [sys.executable, "-m", "bfl_mcp"],
            env={**os.environ, "BFL_MCP_HOME": str(home), variable: SECRET},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

        assert run.returncode == 2
        assert variable in run.stderr
        assert leaks(run.stdout + run.stderr) == []


def test_what_the_server_keeps_is_for_this_user_alone(home: Path, tmp_path: Path) -> None:
    """Pictures, captions, journal: nobody else on a shared machine may read them, whatever the umask."""
    folder = fill_folder(tmp_path / "pictures", count=2)
    request = {"folder": str(folder), "finetune_comment": "x", "mode": "style"}
    umask = os.umask(0)
    try:
        with running(home) as process:
            send(process, INITIALIZE, INITIALIZED, call(2, "create_finetune", request))
            assert answer(process, 2)["result"]["structuredContent"]["started"] is True
            send(process, call(3, "get_finetune_details", {"wait_seconds": 5}))
            answer(process, 3)
            modes = {
                str(path.relative_to(home)): (path.is_dir(), stat.S_IMODE(path.stat().st_mode))
                for path in home.rglob("*")
            }
            process.communicate(timeout=10)
    finally:
        os.umask(umask)

    assert any(name.endswith("001.jpg") for name in modes)
    wrong = {name: oct(mode) for name, (is_dir, mode) in modes.items() if mode != (0o700 if is_dir else 0o600)}
    assert wrong == {}


def test_what_libraries_print_does_not_reach_the_host(home: Path, tmp_path: Path) -> None:
    """A decoder that prints, a library that writes to descriptor 1, a child process: none breaks the conversation."""
    noisy = tmp_path / "noisy"
    noisy.mkdir()
    (noisy / "sitecustomize.py").write_text(
        "import builtins, os, subprocess, sys\n"
        "original = builtins.__import__\n"
        "def loud(name, *rest, **more):\n"
        "    if name.startswith('PIL'):\n"
        "        print('a print of', name)\n"
        "        sys.stdout.write('a write')\n"
        "        sys.stdout.flush()\n"
        "        os.write(1, b'descriptor one\\n')\n"
        "        subprocess.run(['echo', 'a child'])\n"
        "    return original(name, *rest, **more)\n"
        "builtins.__import__ = loud\n"
    )
    folder = fill_folder(tmp_path / "pictures", count=1)
    request = {"folder": str(folder), "finetune_comment": "x", "mode": "style", "dry_run": True}
    path = os.pathsep.join([str(noisy), str(Path(__file__).parents[2])])
    with running(home, PYTHONPATH=path) as process:
        send(process, INITIALIZE, INITIALIZED, call(2, "create_finetune", request))
        told = answer(process, 2)["result"]["structuredContent"]
        out, errors = process.communicate(timeout=10)

    assert told["images"] == 1
    assert out == b""
    for noise in (b"a print of PIL", b"a write", b"descriptor one", b"a child"):
        assert noise in errors
