"""Puts the server together: settings, provider, client, tools."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, InputRequiredResult
from pydantic import ValidationError

from bfl_mcp import __version__
from bfl_mcp.config import Settings
from bfl_mcp.errors import ConfigError, quote_foreign
from bfl_mcp.finetunes.provider import choose_provider
from bfl_mcp.server.schema import error_result
from bfl_mcp.server.tools import TOOLS, App

if TYPE_CHECKING:
    from bfl_mcp.client import BFLClient, Transport

_INSTRUCTIONS = """\
Finetunes FLUX image models from a local folder of pictures, over Black Forest Labs' finetuning API.
1. Ask the person for the folder, what it shows (mode) and a trigger word. Never guess a folder.
2. create_finetune with dry_run=true shows what would be sent. Show the person the result before starting for real.
3. create_finetune starts one training and returns its finetune_id at once. Keep that id; never start twice.
4. get_finetune_details with wait_seconds=45 follows it; repeat until the state is ready or failed.
Where an answer says practice, nothing is really trained: say so to the person.
Every answer ends with the next step; a failed start says whether anything was sent or charged."""


class Connection:
    """The way to the provider, opened when a tool first needs it: until then no HTTP library is loaded."""

    def __init__(self, settings: Settings, transport: "Transport | None" = None) -> None:
        self._settings = settings
        self._transport = transport
        self._client: BFLClient | None = None
        self._opening = anyio.Lock()

    async def client(self) -> "BFLClient":
        """The client, opened once."""
        async with self._opening:
            if self._client is None:
                # Importing takes long enough to keep a ping waiting.
                self._client = await anyio.to_thread.run_sync(self._open)
            return self._client

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    def _open(self) -> "BFLClient":
        from bfl_mcp.client import BFLClient

        settings = self._settings
        if self._transport is not None or settings.provider_url is not None:
            # A fake that stands in for the embedded trainer needs an address to be asked at.
            url = settings.provider_url or _EMBEDDED_URL
            return BFLClient(url, settings.api_key, transport=self._transport)
        return BFLClient(_EMBEDDED_URL, app=_embedded_app(settings))


# Nothing listens there: the request never leaves the process.
_EMBEDDED_URL = "http://trainer.invalid"


def _embedded_app(settings: Settings) -> Any:
    """The trainer inside this process: the one place where the server takes it."""
    from bfl_mcp.trainer.app import create_app

    data = settings.home / "trainer"
    try:
        return create_app(
            data,
            api_key=None,
            max_upload_mb=settings.max_upload_mb,
            practice_seconds=settings.practice_seconds,
        )
    except OSError as error:
        raise ConfigError(
            f"The trainer inside this server cannot keep its data in {str(data)!r}: {error.strerror or error}. Nothing "
            "was sent. Set BFL_MCP_HOME to a folder that this user may write."
        ) from None


class Server(MCPServer[App]):
    """The SDK's server, with argument errors in words a model can act on."""

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[App, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        tools = {tool.name: tool for tool in TOOLS}
        if name not in tools:
            return error_result(f"There is no tool {quote_foreign(name, 60)!r}. The tools are: {', '.join(tools)}.")
        try:
            return await super().call_tool(name, arguments, context)
        except ToolError as error:
            if not isinstance(error.__cause__, ValidationError):
                raise
            return error_result(_explain(error.__cause__, list(tools[name].parameters["properties"])))


def build_server(settings: Settings, transport: "Transport | None" = None) -> Server:
    """Make the MCP server.

    `transport` carries the provider's requests instead of the network or the embedded trainer.
    """

    @asynccontextmanager
    async def lifespan(_: MCPServer[App]) -> AsyncIterator[App]:
        connection = Connection(settings, transport)
        try:
            yield App(settings, choose_provider(settings), connection)
        finally:
            await connection.aclose()

    return Server(
        name="bfl-mcp",
        title="FLUX finetuning",
        version=__version__,
        instructions=_INSTRUCTIONS,
        tools=TOOLS,
        lifespan=lifespan,
        log_level="WARNING",
        subscriptions=False,
    )


# What pydantic finds wrong, in words; the braces are its own names for the bounds.
_FAULTS: Final = {
    "missing": "is required",
    "extra_forbidden": "is no argument of this tool",
    "string_type": "must be a text",
    "string_too_short": "must not be empty",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "finite_number": "must be a number",
}


def _explain(error: ValidationError, accepted: list[str]) -> str:
    """All faulty arguments at once, without the values they came with."""
    lines = []
    for fault in error.errors(include_url=False, include_input=False):
        name = quote_foreign(".".join(map(str, fault["loc"])), 60)
        words = _FAULTS.get(fault["type"], "has a value that cannot be used").format(**fault.get("ctx", {}))
        lines.append(f"- {name} {words}")
    return "\n".join(
        ["These arguments cannot be used. Nothing was sent or charged.", *lines, f"Accepted: {', '.join(accepted)}."]
    )
