"""The tools that the protocol's own suite calls by name: what a tool can answer, ask and report.

The names, texts and numbers are the suite's. The questions are put by `Resolve`, as create_finetune puts its own.
"""

import base64
import io
import json
import wave
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

import anyio
from mcp.server.elicitation import AcceptedElicitation
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.resolve import Elicit, ElicitationResult, Resolve, Sample
from mcp_types import (
    AudioContent,
    ContentBlock,
    CreateMessageResult,
    EmbeddedResource,
    ImageContent,
    SamplingMessage,
    TextContent,
    TextResourceContents,
)
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic.alias_generators import to_camel

from tests.pictures import picture

_STEP_SECONDS: Final = 0.05


def png() -> bytes:
    """A picture as hosts get it."""
    stream = io.BytesIO()
    picture(8, 8).save(stream, "PNG")
    return stream.getvalue()


def image() -> ImageContent:
    return ImageContent(type="image", data=base64.b64encode(png()).decode(), mime_type="image/png")


def resource(uri: str, mime_type: str, text: str) -> EmbeddedResource:
    return EmbeddedResource(type="resource", resource=TextResourceContents(uri=uri, mime_type=mime_type, text=text))


def test_simple_text() -> str:
    """Answer a text."""
    return "This is a simple text response for testing."


def test_image_content() -> list[ContentBlock]:
    """Answer a picture."""
    return [image()]


def test_audio_content() -> list[ContentBlock]:
    """Answer a sound: a tenth of a second of silence."""
    stream = io.BytesIO()
    with wave.open(stream, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(1600))
    return [AudioContent(type="audio", data=base64.b64encode(stream.getvalue()).decode(), mime_type="audio/wav")]


def test_embedded_resource() -> list[ContentBlock]:
    """Answer a resource."""
    return [resource("test://embedded-resource", "text/plain", "This is an embedded resource content.")]


def test_multiple_content_types() -> list[ContentBlock]:
    """Answer a text, a picture and a resource."""
    data = json.dumps({"test": "data", "value": 123})
    return [
        TextContent(type="text", text="Multiple content types test:"),
        image(),
        resource("test://mixed-content-resource", "application/json", data),
    ]


async def test_tool_with_logging(ctx: Context) -> str:
    """Tell the client's log how the work goes on."""
    await ctx.info("Tool execution started")
    await anyio.sleep(_STEP_SECONDS)
    await ctx.info("Tool processing data")
    await anyio.sleep(_STEP_SECONDS)
    await ctx.info("Tool execution completed")
    return "Told in three lines."


async def test_logging_tool(ctx: Context) -> str:
    """Write to the client's log; 2026-07-28 forbids it to a client that did not ask for it."""
    await ctx.info("A line for those who asked for it")
    return "Done."


async def test_tool_with_progress(ctx: Context) -> str:
    """Report progress in three steps."""
    await ctx.report_progress(0, 100)
    await anyio.sleep(_STEP_SECONDS)
    await ctx.report_progress(50, 100)
    await anyio.sleep(_STEP_SECONDS)
    await ctx.report_progress(100, 100)
    return "Done in three steps."


def test_error_handling() -> str:
    """Fail."""
    raise ToolError("This tool intentionally returns an error for testing")


async def test_reconnection(ctx: Context) -> str:
    """Close the stream of this call; the answer is fetched by whoever comes back for it."""
    await ctx.close_sse_stream()
    await anyio.sleep(_STEP_SECONDS)
    return "Answered on another stream."


def sample(prompt: str) -> Sample:
    message = SamplingMessage(role="user", content=TextContent(type="text", text=prompt))
    return Sample([message], max_tokens=100)


def test_sampling(
    prompt: Annotated[str, Field(description="What the client's model is asked")],
    answer: Annotated[CreateMessageResult, Resolve(sample)],
) -> str:
    """Ask the client's model."""
    said = answer.content.text if isinstance(answer.content, TextContent) else answer.content.type
    return f"LLM response: {said}"


def sample_without_leave() -> Sample:
    return sample("Is anybody there?")


def test_missing_capability(answer: Annotated[CreateMessageResult, Resolve(sample_without_leave)]) -> str:
    """Ask the model of a client that has not offered one."""
    return f"Answered by {answer.model}."


class User(BaseModel):
    """Who is there."""

    username: str = Field(description="User's response")
    email: str = Field(description="User's email address")


def ask_user(message: str) -> Elicit[User]:
    return Elicit(message, User)


def test_elicitation(
    message: Annotated[str, Field(description="The question")],
    answer: Annotated[ElicitationResult[User], Resolve(ask_user)],
) -> str:
    """Ask the person."""
    return f"User response: {outcome(answer)}"


def ask_at_once() -> Elicit[User]:
    return Elicit("Who is there?", User)


def test_streaming_elicitation(answer: Annotated[ElicitationResult[User], Resolve(ask_at_once)]) -> str:
    """Ask the person; in 2026-07-28 the question must not be a request on the stream of the call."""
    return f"User response: {outcome(answer)}"


class Defaults(BaseModel):
    """One field of every primitive type, each filled in already (SEP-1034)."""

    name: str = "John Doe"
    age: int = 30
    score: float = 95.5
    status: Literal["active", "inactive", "pending"] = "active"
    verified: bool = True


def ask_defaults() -> Elicit[Defaults]:
    return Elicit("Please look through what is filled in.", Defaults)


def test_elicitation_sep1034_defaults(answer: Annotated[ElicitationResult[Defaults], Resolve(ask_defaults)]) -> str:
    """Ask with answers filled in."""
    return f"Elicitation completed: {outcome(answer)}"


def titled(*titles: str) -> list[JsonValue]:
    """Values that have a name for people."""
    return [{"const": f"value{number}", "title": title} for number, title in enumerate(titles, 1)]


class Choices(BaseModel):
    """One field for each way of naming the values of a choice (SEP-1330)."""

    model_config = ConfigDict(alias_generator=to_camel)

    untitled_single: Literal["option1", "option2", "option3"]
    titled_single: str = Field(json_schema_extra={"oneOf": titled("First Option", "Second Option", "Third Option")})
    legacy_enum: Literal["opt1", "opt2", "opt3"] = Field(
        json_schema_extra={"enumNames": ["Option One", "Option Two", "Option Three"]}
    )
    untitled_multi: list[Literal["option1", "option2", "option3"]]
    titled_multi: list[str] = Field(
        json_schema_extra={"items": {"anyOf": titled("First Choice", "Second Choice", "Third Choice")}}
    )


def ask_choices() -> Elicit[Choices]:
    return Elicit("Please choose.", Choices)


def test_elicitation_sep1330_enums(answer: Annotated[ElicitationResult[Choices], Resolve(ask_choices)]) -> str:
    """Ask with choices of every kind."""
    return f"Elicitation completed: {outcome(answer)}"


def outcome(answer: ElicitationResult[Any]) -> str:
    content = answer.data.model_dump(by_alias=True) if isinstance(answer, AcceptedElicitation) else {}
    return f"action={answer.action}, content={json.dumps(content)}"


def test_custom_header(
    region: Annotated[str, Field(description="Repeated in a header", json_schema_extra={"x-mcp-header": "Region"})],
) -> str:
    """Take an argument that a client repeats in a header, where the transport compares the two (SEP-2243)."""
    return region


def json_schema_2020_12_tool(arguments: dict[str, Any]) -> str:
    """Tool with JSON Schema 2020-12 features"""
    return json.dumps(arguments)


JSON_SCHEMA_2020_12: Final[dict[str, Any]] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}

TOOLS: Final[list[Callable[..., Any]]] = [
    test_simple_text,
    test_image_content,
    test_audio_content,
    test_embedded_resource,
    test_multiple_content_types,
    test_tool_with_logging,
    test_logging_tool,
    test_tool_with_progress,
    test_error_handling,
    test_reconnection,
    test_sampling,
    test_missing_capability,
    test_elicitation,
    test_streaming_elicitation,
    test_elicitation_sep1034_defaults,
    test_elicitation_sep1330_enums,
    test_custom_header,
    json_schema_2020_12_tool,
]
