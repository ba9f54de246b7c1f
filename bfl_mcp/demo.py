"""A conversation with the real server, as a host would have it, printed for people."""

import os
import shutil
import signal
import sys
import tempfile
import textwrap
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Final

import anyio
from mcp import Client, StdioServerParameters
from mcp_types import CallToolResult, TextContent

_BAR_WIDTH: Final = 30
# A practice training takes ten seconds; a demo that has waited this long has failed.
_PATIENCE_SECONDS: Final = 120


def run_demo(folder: Path | None) -> int:
    """Run dry run, start and status until ready. Returns 0 only if the finetune became ready."""
    if isinstance(sys.stdout, TextIOWrapper):
        # A Windows console may lack the signs used here.
        sys.stdout.reconfigure(errors="replace")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    status = 1
    try:
        status = _converse_in_private(folder)
    except* KeyboardInterrupt:
        _line("\nStopped.")
        status = 130
    except* BrokenPipeError:
        # The reader has seen enough: `bfl-mcp demo | head`. Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def _converse_in_private(folder: Path | None) -> int:
    with tempfile.TemporaryDirectory(prefix="bfl-mcp-demo-", ignore_cleanup_errors=True) as home:
        if folder is None:
            request = {"folder": str(_examples()), "mode": "product", "trigger_word": "TOKBOT"}
        else:
            request = {"folder": str(folder.expanduser().absolute()), "mode": "general", "trigger_word": "TOK"}
        return anyio.run(_converse, {**request, "finetune_comment": "demo"}, home)


def _examples() -> Path:
    """The project's own pictures: beside the package in a checkout, inside it once installed."""
    package = Path(__file__).parent
    inside = package / "examples"
    return inside if inside.is_dir() else package.parent / "examples"


async def _converse(request: dict[str, str], home: str) -> int:
    _say(
        "A conversation between a chat assistant (▶) and this server (◀), on this machine alone. The practice trainer "
        "goes through the motions in about ten seconds: nothing is trained, sent anywhere or charged."
    )
    # The SDK passes on PATH, HOME and the like, and none of the BFL_ variables. With -P nothing is imported from the
    # folder the person happens to be in, not even this package.
    environment = {"BFL_MCP_HOME": home, "BFL_TRAINER_ENGINE": "practice", "PYTHONPATH": str(Path(__file__).parents[1])}
    server = StdioServerParameters(
        command=sys.executable, args=["-P", "-m", "bfl_mcp", "--allow", request["folder"]], env=environment
    )
    async with Client(server) as client:
        rehearsal = await _call(client, "create_finetune", {**request, "dry_run": True})
        if rehearsal.is_error:
            return 1
        started = await _call(client, "create_finetune", request)
        if started.is_error or started.structured_content is None:
            return 1
        return await _follow(client, str(started.structured_content["finetune_id"]))


async def _follow(client: Client, finetune_id: str) -> int:
    _print_call("get_finetune_details", {"finetune_id": finetune_id, "wait_seconds": 1})
    with anyio.move_on_after(_PATIENCE_SECONDS):
        while True:
            answer = await client.call_tool("get_finetune_details", {"finetune_id": finetune_id, "wait_seconds": 1})
            facts: dict[str, Any] = answer.structured_content or {}
            if answer.is_error or facts.get("state") in ("ready", "failed"):
                _print_bar(1.0 if facts.get("state") == "ready" else None, "")
                _end_bar()
                _print_answer(answer)
                return 0 if facts.get("state") == "ready" else 1
            _print_bar(facts.get("progress"), facts["state"])
    _end_bar()
    _say(f"The finetune was not ready after {_PATIENCE_SECONDS} seconds.")
    return 1


async def _call(client: Client, name: str, arguments: dict[str, Any]) -> CallToolResult:
    _print_call(name, arguments)
    answer = await client.call_tool(name, arguments)
    _print_answer(answer)
    return answer


def _print_call(name: str, arguments: dict[str, Any]) -> None:
    _line(f"▶ {name}")
    for key, value in arguments.items():
        _line(f"    {key} = {value}")
    _line()


def _print_answer(answer: CallToolResult) -> None:
    text = "\n".join(block.text for block in answer.content if isinstance(block, TextContent))
    first, *rest = text.splitlines() or [""]
    _line(textwrap.fill(first, _width(), initial_indent="✗ " if answer.is_error else "◀ ", subsequent_indent="  "))
    for line in rest:
        indent = " " * (4 + len(line) - len(line.lstrip()))
        _line(textwrap.fill(line.strip(), _width(), initial_indent=indent, subsequent_indent=indent + "  "))
    _line()


def _print_bar(progress: float | None, state: str) -> None:
    if not sys.stdout.isatty():
        return
    full = round((progress or 0) * _BAR_WIDTH)
    bar = "█" * full + "░" * (_BAR_WIDTH - full)
    sys.stdout.write(f"\r    {bar} {progress or 0:4.0%} {state:10}")
    sys.stdout.flush()


def _end_bar() -> None:
    if sys.stdout.isatty():
        _line("\n")


def _say(text: str) -> None:
    _line(textwrap.fill(text, _width()))
    _line()


def _line(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _width() -> int:
    return min(shutil.get_terminal_size().columns, 100)
