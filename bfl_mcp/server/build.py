"""Puts the server together: settings, provider, client, tools."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.server.request_state import RequestStateSecurity
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, InputRequiredResult
from pydantic import ValidationError

from bfl_mcp import __version__
from bfl_mcp.config import Settings, is_bfl_host
from bfl_mcp.errors import ConfigError, quote_foreign, quoted
from bfl_mcp.finetunes import spend
from bfl_mcp.finetunes.background import Call
from bfl_mcp.finetunes.consent import Consents
from bfl_mcp.finetunes.desk import Desk
from bfl_mcp.finetunes.export import Exports
from bfl_mcp.finetunes.packing import Packing
from bfl_mcp.finetunes.past import Past
from bfl_mcp.finetunes.price import Prices
from bfl_mcp.finetunes.provider import choose_provider
from bfl_mcp.finetunes.sending import Sender
from bfl_mcp.finetunes.start import Starts
from bfl_mcp.server import tools as our
from bfl_mcp.server.desk import DESK_TOOLS
from bfl_mcp.server.schema import error_result, failure_result
from bfl_mcp.server.tools import IN_HAND, TOOLS, App, InHand

if TYPE_CHECKING:
    from bfl_mcp.client import BFLClient, Transport

_INSTRUCTIONS = """\
Finetunes FLUX image models from a local folder of pictures, over Black Forest Labs' finetuning API.
1. Ask the person for the folder, what it shows (mode) and a trigger word. Never guess a folder.
2. check_dataset judges the folder: tell the person its findings. view_dataset shows the images; write_captions \
writes captions for what you see, once the person agrees. create_finetune with dry_run=true shows what would be sent. \
Show the person the result before starting for real. For another trainer, export_dataset writes the same clean copy to \
the disk instead.
3. create_finetune starts one training and returns its finetune_id. Where it costs money it first asks the person, or \
asks you to ask them. A repeat is not sent again.
4. get_finetune_details with wait_seconds=45 follows it; repeat until the state is ready or failed.
Where an answer says practice, nothing is really trained: say so to the person.
Every answer ends with the next step; a failed start says whether anything was sent or charged."""


class Connection:
    """The ways to providers, each opened when first needed: until then no HTTP library is loaded."""

    def __init__(self, settings: Settings, transport: "Transport | None" = None) -> None:
        self._settings = settings
        self._transport = transport
        self._clients: dict[str, BFLClient] = {}
        self._opening = anyio.Lock()

    async def client(self) -> "BFLClient":
        """The way to the configured provider."""
        return await self._open(self._settings.provider_url or "")

    async def client_for(self, provider: str) -> "BFLClient | None":
        """The way to the provider that trained a finetune, empty for the trainer inside this process.

        None where the key must not go: a provider other than the configured one, unless both are BFL's.
        """
        configured = self._settings.provider_url or ""
        both_bfl = is_bfl_host(provider) and is_bfl_host(configured)
        return await self._open(provider) if provider in ("", configured) or both_bfl else None

    async def aclose(self) -> None:
        for client in self._clients.values():
            await client.aclose()

    async def _open(self, provider: str) -> "BFLClient":
        async with self._opening:
            if provider not in self._clients:
                # Importing takes long enough to keep a ping waiting.
                self._clients[provider] = await anyio.to_thread.run_sync(self._make_client, provider)
            return self._clients[provider]

    def _make_client(self, provider: str) -> "BFLClient":
        from bfl_mcp.client import BFLClient

        if self._transport is not None or provider:
            # A fake that stands in for the embedded trainer needs an address to be asked at.
            return BFLClient(provider or _EMBEDDED_URL, self._settings.api_key, transport=self._transport)
        return BFLClient(_EMBEDDED_URL, app=_embedded_app(self._settings))


_LATE_ANSWER_SECONDS: Final = 24 * 3600.0


async def _tell_nobody(_done: float, _total: float, _doing: str) -> None:
    """Progress where no request is there to report to."""


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
            engine=settings.engine,
            model=settings.model,
            captioner=settings.captioner,
            max_px=settings.max_px,
            tells_paths=True,
        )
    except OSError as error:
        raise ConfigError(
            f"The trainer inside this server cannot keep its data in {quoted(data)}: {error.strerror or error}. "
            "Nothing was sent. Set BFL_MCP_HOME to a folder that this user may write."
        ) from None


class Server(MCPServer[App]):
    """The SDK's server, with argument errors in words a model can act on."""

    sender: Sender | None = None

    @property
    def on_the_wire(self) -> bool:
        """Whether a start is being sent, which is worth waiting for before the process ends."""
        return self.sender is not None and self.sender.on_the_wire > 0

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[App, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        # What it lists is what it takes, whoever put it there.
        tools = {tool.name: tool for tool in await self.list_tools()}
        if name not in tools:
            return error_result(
                f"There is no tool {quoted(name, 60)}. Nothing was sent or charged. The tools are: {', '.join(tools)}."
            )
        on_progress = context.report_progress if context is not None else _tell_nobody
        in_hand = InHand(Call(our.ANSWER_SECONDS, on_progress))
        IN_HAND.set(in_hand)
        try:
            with in_hand.asking:
                return await super().call_tool(name, arguments, context)
        except UnexpectedToolError as error:
            # It happened before the tool itself began, where nothing else puts it into words.
            return failure_result(error.__cause__ or error, name)
        except MCPError:
            # In the older revisions the question is a request to the host, which may answer it with an error.
            if in_hand.asked_about is None:
                raise
            return failure_result(spend.unusable_answer(), name)
        except ToolError as error:
            if isinstance(error.__cause__, ValidationError):
                return error_result(_explain(error.__cause__, list(tools[name].input_schema["properties"])))
            if in_hand.asked_about is not None:
                # Between the question and the tool itself there is only the host's answer.
                return failure_result(spend.unusable_answer(), name)
            return error_result(str(error.__cause__ or error))
        return failure_result(spend.no_answer(), name)


def build_server(settings: Settings, transport: "Transport | None" = None) -> Server:
    """Make the MCP server.

    `transport` carries the provider's requests instead of the network or the embedded trainer.
    """

    @asynccontextmanager
    async def lifespan(_: MCPServer[App]) -> AsyncIterator[App]:
        connection = Connection(settings, transport)
        async with anyio.create_task_group() as tasks:
            provider = choose_provider(settings)
            packing = Packing(settings, provider, tasks)
            prices = Prices(provider, connection.client)
            past = Past(settings, provider, connection.client)
            consents = Consents(settings, provider, packing, prices, past)
            sender = Sender(settings, provider, connection.client, packing, prices, past)
            desk = Desk(settings, provider, packing, prices)
            starts = Starts(packing, consents, sender, past, tasks)
            exports = Exports(settings, provider, packing, tasks)
            server.sender = sender
            try:
                yield App(connection, desk, starts, past, exports, settings)
            finally:
                await sender.close()
                packing.close()
                exports.close()
                tasks.cancel_scope.cancel()
        await connection.aclose()

    server = Server(
        name="bfl-mcp",
        title="FLUX finetuning",
        version=__version__,
        instructions=_INSTRUCTIONS,
        tools=[*DESK_TOOLS, *TOOLS],
        lifespan=lifespan,
        log_level="WARNING",
        subscriptions=False,
        # A late answer is refused in our words, by the gate; the SDK's would be an error of the protocol.
        request_state_security=RequestStateSecurity.ephemeral(ttl=_LATE_ANSWER_SECONDS),
    )
    return server


# What pydantic finds wrong, in words; the braces are its own names for the bounds.
_FAULTS: Final = {
    "missing": "is required",
    "extra_forbidden": "is no argument of this tool",
    "string_type": "must be a text",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "list_type": "must be a list",
    "too_long": "must have at most {max_length} entries",
    "model_type": "must be an object with its own fields",
    "model_attributes_type": "must be an object with its own fields",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "finite_number": "must be a number",
}


_FAULTS_SHOWN: Final = 20


def _explain(error: ValidationError, accepted: list[str]) -> str:
    """All faulty arguments at once, without the values they came with."""
    lines = []
    faults = error.errors(include_url=False, include_input=False)
    for fault in faults[:_FAULTS_SHOWN]:
        name = quote_foreign(".".join(map(str, fault["loc"])), 60)
        words = _FAULTS.get(fault["type"], "has a value that cannot be used").format(**fault.get("ctx", {}))
        lines.append(f"- {name} {words}")
    if more := len(faults) - len(lines):
        lines.append(f"- … and {more} more")
    return "\n".join(
        ["These arguments cannot be used. Nothing was sent or charged.", *lines, f"Accepted: {', '.join(accepted)}."]
    )
