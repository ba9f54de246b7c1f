"""`bfl-mcp trainer`: the trainer over HTTP, for the machine with the GPU.

It never answers without a key: one that was given, or one it makes at its first start and shows that once.
"""

import ipaddress
import os
import secrets
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr

from bfl_mcp import __version__
from bfl_mcp.config import Settings, is_loopback, read_settings
from bfl_mcp.errors import ConfigError, quoted
from bfl_mcp.trainer.hardware import Hardware, choose_engine, probe

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8642
_KEY_FILE: Final = "key"
# Of the second that a person waits after Ctrl-C; the rest is for the process to end.
_SECONDS_TO_FINISH: Final = 0.6


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line says. None is left to the settings."""

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    gpus: int | None = None
    """None is every GPU there is."""
    data: Path | None = None
    flags: tuple[tuple[str, Any], ...] = ()
    """Settings by the name of their variable."""


def run_trainer(wanted: Wanted) -> int:
    """Answer until Ctrl-C and return the exit status: 0 ended as asked, 2 cannot be used as configured."""
    try:
        settings = read_settings(**dict(wanted.flags))
        data = (wanted.data or settings.home / "trainer").absolute()
        hardware = Hardware(is_installed=False) if settings.engine == "practice" else probe()
        slots = _count_slots(wanted.gpus, settings, hardware)
        listener = _listen(wanted.host, wanted.port)
        # Last of all: one that is made is shown now or never.
        key, origin = _find_key(settings, data)
    except ConfigError as error:
        print(error, file=sys.stderr)  # noqa: T201 - what a command says
        return 2
    except KeyboardInterrupt:
        # Looking at the hardware takes seconds.
        return 130
    stopping = _catch_signals()
    with listener:
        host, port = listener.getsockname()[:2]
        lines = (_describe(settings, hardware, slots, data), _describe_key(key, origin, data))
        print(*lines, _describe_other_end(host, port, key if origin == "made" else None), sep="\n\n", flush=True)  # noqa: T201
        try:
            app = _build(settings, data, key, hardware, slots)
        except OSError as error:
            print(_explain_folder(data, error), file=sys.stderr)  # noqa: T201
            return 2
        return _answer(app, listener, stopping, data, slots)


# --- what is needed before it can answer ------------------------------------------------------------------------------


def _find_key(settings: Settings, data: Path) -> tuple[SecretStr, str]:
    """The key, and where it is from: `given`, `kept` or `made`."""
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        if settings.trainer_key is not None:
            return settings.trainer_key, "given"
        return _keep_key(data / _KEY_FILE)
    except OSError as error:
        raise ConfigError(_explain_folder(data, error)) from None


def _explain_folder(data: Path, error: OSError) -> str:
    return (
        f"The trainer cannot keep its data and its key in {quoted(data)}: {error.strerror or error}. Name a folder "
        "that this user may write with --data, or in BFL_MCP_HOME."
    )


def _keep_key(path: Path) -> tuple[SecretStr, str]:
    try:
        # Whoever is first makes it: of two trainers that start together, the second finds it.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        kept = path.read_text(encoding="utf-8", errors="replace").strip()
        if not kept or not kept.isascii() or not kept.isprintable() or " " in kept:
            raise ConfigError(
                f"{quoted(path)} holds no key, and without one the trainer would let everybody in. Delete the file to "
                "have a new key made, or set BFL_TRAINER_KEY."
            ) from None
        return SecretStr(kept), "kept"
    key = secrets.token_urlsafe(32)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(key + "\n")
        file.flush()
        os.fsync(file.fileno())
    return SecretStr(key), "made"


def _count_slots(gpus: int | None, settings: Settings, hardware: Hardware) -> int:
    there = len(hardware.devices)
    if settings.engine == "flux2" and not hardware.is_installed:
        raise ConfigError(
            f"The engine flux2 cannot train here: {hardware.problem}. Install them with "
            "pip install -c constraints.txt '.[train]', or start with --engine practice to rehearse."
        )
    if gpus is not None and there and gpus > there:
        raise ConfigError(
            f"--gpus {gpus} are more than the {there} that PyTorch finds here. Use --gpus {there} or all."
        )
    return gpus or there or 1


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or type(error).__name__
        raise ConfigError(
            f"The trainer cannot listen on {quoted(host)}, port {port}: {reason}. Choose others with --host and "
            "--port; --port 0 takes a free one."
        ) from None
    # asyncio does it for sockets of its own. Without it each answer waits 40 ms for the client's acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _build(settings: Settings, data: Path, key: SecretStr, hardware: Hardware, slots: int) -> Any:
    from bfl_mcp.trainer.app import create_app

    return create_app(
        data,
        api_key=key,
        max_upload_mb=settings.max_upload_mb,
        practice_seconds=settings.practice_seconds,
        engine=choose_engine(settings.engine, hardware),
        model=settings.model,
        captioner=settings.captioner,
        max_px=settings.max_px,
        gpus=slots,
        hardware=hardware,
    )


# --- what it says -----------------------------------------------------------------------------------------------------


def _describe(settings: Settings, hardware: Hardware, slots: int, data: Path) -> str:
    lines = [f"bfl-mcp trainer {__version__}"]
    if choose_engine(settings.engine, hardware) == "practice":
        lines.append("Engine:  practice. It goes through the motions and trains nothing.")
        if settings.engine == "auto":
            lines.append(f"         For real training something is missing: {hardware.problem}.")
    else:
        where = "; ".join(map(str, hardware.devices[:slots])) or "the CPU, which is slow: PyTorch finds no GPU"
        lines += [f"Engine:  flux2 on {where}", f"Model:   {settings.model}"]
    if slots > 1:
        lines.append(f"At once: up to {slots} finetunes")
    lines.append(f"Data:    {data}")
    return "\n".join(lines)


def _describe_key(key: SecretStr, origin: str, data: Path) -> str:
    if origin == "made":
        return (
            f"Key:     {key.get_secret_value()}\n"
            f"         Made now and shown this once; {data / _KEY_FILE} keeps it, readable for this user alone."
        )
    return (
        "Key:     the one in BFL_TRAINER_KEY" if origin == "given" else f"Key:     the one kept in {data / _KEY_FILE}"
    )


def _describe_other_end(host: str, port: int, key: SecretStr | None) -> str:
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{port}"
    secret = key.get_secret_value() if key is not None else "the key"
    if is_loopback(url):
        return (
            f"In the chat host on this machine set:\n"
            f"  BFL_API_URL={url}\n"
            f"  BFL_API_KEY={secret}\n"
            "From another machine the same works through a tunnel, kept open there:\n"
            f"  ssh -N -L {port}:{shown}:{port} USER@THIS-MACHINE\n"
            "Ctrl-C ends the trainer; a finetune in training goes on by itself."
        )
    everywhere = " (every address of this machine)" if ipaddress.ip_address(host).is_unspecified else ""
    return (
        f"Listening on {url}{everywhere} without encryption. TLS belongs in front, or\n"
        "the key and the pictures can be read on the way: put a reverse proxy with a certificate before it.\n"
        "In the chat host set:\n"
        "  BFL_API_URL=https://NAME-OF-THE-PROXY\n"
        f"  BFL_API_KEY={secret}\n"
        "Ctrl-C ends the trainer; a finetune in training goes on by itself."
    )


# --- answering --------------------------------------------------------------------------------------------------------


def _catch_signals() -> threading.Event:
    """What is set by Ctrl-C, or by a system that wants the process to end."""
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    return stopping


def _answer(app: Any, listener: socket.socket, stopping: threading.Event, data: Path, slots: int) -> int:
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, server_header=False))
    # In a thread it leaves the signals to us: an upload in progress must not hold up Ctrl-C.
    answering = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    answering.start()
    # With a timeout, or Windows would not hear Ctrl-C.
    while answering.is_alive() and not stopping.wait(0.2):
        pass
    if not stopping.is_set():
        print("The trainer ended by itself; what it said before is the reason.", file=sys.stderr)  # noqa: T201
        return 1
    server.should_exit = True
    answering.join(_SECONDS_TO_FINISH)
    print(_describe_end(data, slots), flush=True)  # noqa: T201 - what a command says
    # Threads that read an upload would keep the process alive. Nothing is half done: a finetune is there whole or not.
    os._exit(0)


def _describe_end(data: Path, slots: int) -> str:
    from bfl_mcp.trainer.worker import Workers

    busy = Workers(data, slots).count_busy()
    if not busy:
        return "Stopped. No finetune is in training."
    if busy == 1:
        return "Stopped. A finetune is in training and goes on by itself. Start the trainer again to ask for it."
    return (
        f"Stopped. {busy} finetunes are in training and go on by themselves. Start the trainer again to ask for them."
    )
