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
    _add_trainer(commands)
    chosen = parser.parse_args(arguments)
    if chosen.command == "check":
        from bfl_mcp.report.judged import Wanted
        from bfl_mcp.report.run import Asked, run_check

        wanted = Wanted(chosen.mode, chosen.trigger_word, chosen.iterations)
        return run_check(Asked(chosen.folder, wanted, chosen.html, chosen.json))
    if chosen.command == "trainer":
        return _run_trainer(chosen)
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


def _add_trainer(commands: Any) -> None:
    trainer = commands.add_parser(
        "trainer",
        help="answer BFL's finetuning API on this machine, and train here: for the machine with the GPU",
        description="Answer BFL's finetuning API over HTTP and train what it is sent, one finetune for each GPU at a "
        "time. It prints what to set in the chat host. Ctrl-C ends it; a finetune in training goes on in a process of "
        "its own, and whatever was left undone is taken up at the next start.",
        epilog="Every request needs the key: the one in BFL_TRAINER_KEY, or one that is made at the first start, shown "
        "that once, and kept in the data folder. It speaks plain HTTP: on any address but this machine's own, TLS "
        "belongs in front, such as a reverse proxy with a certificate. GET /healthz answers without a key. "
        "BFL_TRAINER_CAPTIONER, BFL_TRAINER_MAX_PX and BFL_TRAINER_MAX_UPLOAD_MB count here too: see the README. "
        "Exit status: 0 ended as asked, 2 cannot be used as configured, with a sentence on standard error.",
    )
    trainer.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; default: %(default)s, this machine alone"
    )
    trainer.add_argument(
        "--port", type=_read_port, default=8642, help="port to listen on; default: %(default)s; 0 takes a free one"
    )
    trainer.add_argument(
        "--engine",
        choices=("auto", "practice", "flux2"),
        help="what trains: flux2 really does, practice goes through the motions; default: BFL_TRAINER_ENGINE, or auto, "
        "which is flux2 where the extra [train] and a CUDA or ROCm GPU are",
    )
    trainer.add_argument(
        "--model",
        metavar="NAME",
        help="base model: a name at the Hugging Face hub, or a folder; default: BFL_TRAINER_MODEL, or FLUX.2 [klein] "
        "Base 4B",
    )
    trainer.add_argument(
        "--gpus",
        type=_read_gpus,
        default=None,
        metavar="N",
        help="how many GPUs to train on, one finetune on each; default: all",
    )
    trainer.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder for finetunes and the key; default: trainer/ in BFL_MCP_HOME, where the trainer inside the server "
        "keeps its own",
    )


def _read_port(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; they are 0 to 65535")
    return int(text)


def _read_gpus(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number from 1 to 64 nor 'all'")
    return int(text)


def _run_trainer(chosen: argparse.Namespace) -> int:
    from bfl_mcp.trainer.serve import Wanted, run_trainer

    model = chosen.model
    if model is not None and Path(model).expanduser().is_dir():
        # On a command line a folder may be named from where one is; the worker is somewhere else.
        model = str(Path(model).expanduser().absolute())
    flags = {"BFL_TRAINER_ENGINE": chosen.engine, "BFL_TRAINER_MODEL": model}
    given = tuple((name, value) for name, value in flags.items() if value is not None)
    data = chosen.data.expanduser() if chosen.data is not None else None
    return run_trainer(Wanted(chosen.host, chosen.port, chosen.gpus, data, given))


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
