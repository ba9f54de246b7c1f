"""The commands. With none, serve MCP on standard input and output, as chat hosts start it."""

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bfl_mcp import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    from bfl_mcp.server.build import Server

_WIRE_SECONDS_ON_SIGNAL: Final = 2.0


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit status: 0 done, 1 failed, 2 cannot be used as configured."""
    parser = argparse.ArgumentParser(
        prog="bfl-mcp",
        description="MCP server: from a folder of images to a FLUX finetune, in conversation.",
        epilog="Without a command it serves MCP on standard input and output, for a chat host to start. "
        "Settings are environment variables: see the README.",
    )
    parser.add_argument("--version", action="version", version=f"bfl-mcp {__version__}")
    parser.add_argument(
        "--allow",
        nargs="+",
        metavar="DIR",
        action="extend",
        help="folders below which an agent may name folders of images; default: the home directory. The same as "
        "BFL_MCP_ALLOWED_DIRS",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="show a whole conversation against the practice trainer; needs no key and no network",
        description="Start the server as a host would and run dry run, start and status until the finetune is ready. "
        "The practice trainer goes through the motions; nothing is trained, nothing leaves this machine.",
    )
    demo.add_argument("folder", nargs="?", type=Path, help="folder of images; default: the examples of this project")
    _add_check(commands)
    chosen = parser.parse_args(arguments)
    if chosen.command == "check":
        from bfl_mcp.report.judged import Wanted
        from bfl_mcp.report.run import Asked, run_check

        wanted = Wanted(chosen.mode, chosen.trigger_word, chosen.iterations)
        return run_check(Asked(chosen.folder, wanted, chosen.html, chosen.json))
    if chosen.command == "demo":
        from bfl_mcp.demo import run_demo

        return run_demo(chosen.folder)
    return _serve(chosen.allow)


def _add_check(commands: Any) -> None:
    check = commands.add_parser(
        "check",
        help="judge a folder of images for training: faults, warnings, and what will be changed in the copy",
        description="Look at every image and caption of a folder, as the tool check_dataset does, and print what was "
        "found: damage, size, blur, duplicates, captions. Sends nothing, and changes nothing in the folder.",
        epilog="Exit status: 0 ready, 1 ready with warnings, 2 not ready. A folder that cannot be read, and a report "
        "that cannot be written, are 2 as well, with a sentence on standard error.",
    )
    check.add_argument("folder", help="folder with the images directly in it")
    check.add_argument(
        "--html",
        metavar="FILE",
        help="write the report as one page with small pictures, too; nothing is written over but an earlier report",
    )
    check.add_argument("--json", action="store_true", help="print what check_dataset answers with detail=full, as JSON")
    check.add_argument("--mode", help="what the images teach, as in create_finetune, for the checks that depend on it")
    check.add_argument("--trigger-word", metavar="WORD", help="check that the captions hold it")
    check.add_argument("--iterations", type=int, metavar="N", help="training steps, to tell the price")


def _serve(allowed: list[str] | None) -> int:
    import gc

    # The SDK builds some hundred models while it is imported; collecting garbage meanwhile finds none and costs a
    # tenth.
    gc.disable()
    from bfl_mcp.config import read_settings
    from bfl_mcp.errors import ConfigError
    from bfl_mcp.server import build_server

    try:
        flags = {} if allowed is None else {"BFL_MCP_ALLOWED_DIRS": tuple(allowed)}
        server = build_server(read_settings(**flags))
    except ConfigError as error:
        print(error, file=sys.stderr)  # noqa: T201 - hosts show standard error in their logs
        return 2
    gc.freeze()
    gc.enable()
    if sys.stdin.isatty():
        hint = "bfl-mcp waits for a chat host on standard input. To see it work, run: bfl-mcp demo. Ctrl-C ends it."
        print(hint, file=sys.stderr)  # noqa: T201

    def leave(number: int) -> None:
        # A second signal means at once.
        if stopping.is_set() or not server.on_the_wire:
            os._exit(128 + number)
        stopping.set()
        threading.Thread(target=_leave_soon, args=(number, server), daemon=True).start()

    stopping = threading.Event()
    # The SDK's reader thread would keep the process alive until the host closes its end.
    _on_signal(leave)
    server.run("stdio")
    # A thread that waits for a sleeping disk, or a decoder that does not come back, would keep the process alive.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _on_signal(leave: "Callable[[int], None]") -> None:
    """Call `leave` with the number of a signal that asks the process to end."""
    asking = (signal.SIGINT, signal.SIGTERM)
    if os.name != "posix":
        for number in asking:
            signal.signal(number, lambda number, _: leave(number))
        return
    # Python's own handlers run in the main thread, between two of its steps: one that comes just before it waits for
    # the host would be heard when the host speaks again. A thread that waits for nothing else hears it at once.
    heard, told = os.pipe()
    os.set_blocking(told, False)
    for number in asking:
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)

    def listen() -> None:
        while byte := os.read(heard, 1):
            if byte[0] in asking:
                leave(byte[0])

    threading.Thread(target=listen, daemon=True, name="bfl-mcp-signals").start()


def _leave_soon(number: int, server: "Server") -> None:
    """End the process when no start is on the wire any more, or after two seconds: the journal knows of it then."""
    deadline = time.monotonic() + _WIRE_SECONDS_ON_SIGNAL
    while server.on_the_wire and time.monotonic() < deadline:
        time.sleep(0.01)
    os._exit(128 + number)
