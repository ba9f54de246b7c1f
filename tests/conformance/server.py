"""Our server with the suite's fixtures on it, over HTTP: `python -m tests.conformance.server HOME`.

It is what `build_server` makes, with its own tools still there, so the overrides, the sealing of states and the
options under test are those that hosts get. It prints its port, and answers until it is ended.
"""

import json
import socket
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from mcp import MCPDeprecationWarning
from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver.prompts import Prompt
from mcp.server.mcpserver.prompts.base import Message, UserMessage
from mcp.server.streamable_http import EventCallback, EventId, EventMessage, EventStore, StreamId
from mcp_types import (
    Completion,
    CompletionArgument,
    CompletionContext,
    EmptyResult,
    JSONRPCMessage,
    PromptReference,
    ResourceTemplateReference,
    SetLevelRequestParams,
    SubscribeRequestParams,
    UnsubscribeRequestParams,
)

from bfl_mcp.config import Settings
from bfl_mcp.server import build_server
from bfl_mcp.server.build import Server
from tests.conformance import rounds, tools


def fixture_server(home: Path) -> Server:
    """The server that hosts get, and on it everything that the suite asks for by name."""
    server = build_server(Settings.model_validate({"BFL_MCP_HOME": home}))
    for tool in [*tools.TOOLS, *rounds.TOOLS]:
        server.add_tool(tool, structured_output=False)
    registered = server._tool_manager.get_tool(tools.json_schema_2020_12_tool.__name__)
    assert registered is not None
    # No function's signature gives all these keywords.
    registered.parameters = tools.JSON_SCHEMA_2020_12
    add_resources(server)
    add_prompts(server)
    server.completion()(complete)  # type: ignore[no-untyped-call]
    # Requests of the older revisions that the SDK's class leaves to whoever needs them.
    server._lowlevel_server.add_request_handler("logging/setLevel", SetLevelRequestParams, accept)
    server._lowlevel_server.add_request_handler("resources/subscribe", SubscribeRequestParams, accept)
    server._lowlevel_server.add_request_handler("resources/unsubscribe", UnsubscribeRequestParams, accept)
    return server


def add_resources(server: Server) -> None:
    @server.resource("test://static-text", description="A text", mime_type="text/plain")
    def static_text() -> str:
        return "This is the content of the static text resource."

    @server.resource("test://static-binary", description="A picture", mime_type="image/png")
    def static_binary() -> bytes:
        return tools.png()

    @server.resource("test://watched-resource", description="Never changes", mime_type="text/plain")
    def watched_resource() -> str:
        return "Watch me."

    @server.resource("test://template/{id}/data", description="Data by its id", mime_type="application/json")
    def template(id: str) -> str:  # noqa: A002 - the suite's name
        return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})


def add_prompts(server: Server) -> None:
    prompts: list[Callable[..., Any]] = [
        test_simple_prompt,
        test_prompt_with_arguments,
        test_prompt_with_embedded_resource,
        test_prompt_with_image,
        rounds.test_input_required_result_prompt,
    ]
    for function in prompts:
        server.add_prompt(Prompt.from_function(function))


def test_simple_prompt() -> str:
    """A prompt that is always the same."""
    return "This is a simple prompt for testing."


def test_prompt_with_arguments(arg1: str, arg2: str) -> str:
    """A prompt of two arguments."""
    return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"


def test_prompt_with_embedded_resource(resourceUri: str) -> list[Message]:  # noqa: N803 - the suite's name
    """A prompt about a resource."""
    embedded = tools.resource(resourceUri, "text/plain", "Embedded resource content for testing.")
    return [UserMessage(embedded), UserMessage("Please process the embedded resource above.")]


def test_prompt_with_image() -> list[Message]:
    """A prompt about a picture."""
    return [UserMessage(tools.image()), UserMessage("Please analyze the image above.")]


async def complete(
    ref: PromptReference | ResourceTemplateReference, argument: CompletionArgument, _context: CompletionContext | None
) -> Completion:
    """Cities for every argument of every prompt."""
    cities = ["paris", "park city", "parma"] if isinstance(ref, PromptReference) else []
    return Completion(values=[city for city in cities if city.startswith(argument.value)])


async def accept(_ctx: ServerRequestContext[Any, Any], _params: Any) -> EmptyResult:
    return EmptyResult()


class Kept(EventStore):
    """What was sent on each stream, so that a client that comes back gets the rest (SEP-1699)."""

    def __init__(self) -> None:
        self.events: list[tuple[StreamId, JSONRPCMessage | None]] = []

    async def store_event(self, stream_id: StreamId, message: JSONRPCMessage | None) -> EventId:
        self.events.append((stream_id, message))
        return str(len(self.events))

    async def replay_events_after(self, last_event_id: EventId, send_callback: EventCallback) -> StreamId | None:
        seen = int(last_event_id)
        stream, _ = self.events[seen - 1]
        for number, (of, message) in enumerate(self.events[seen:], seen + 1):
            if of == stream and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


def main() -> None:
    # The older revision demands a log to the client, which the newer one deprecates.
    warnings.simplefilter("ignore", MCPDeprecationWarning)
    app = fixture_server(Path(sys.argv[1])).streamable_http_app(event_store=Kept(), retry_interval=100)
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)  # noqa: T201 - whoever started it reads this
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listener])


if __name__ == "__main__":
    main()
