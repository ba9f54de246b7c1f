"""A tool is an async function of one pydantic request model to one pydantic result model, whose schemas are its own.

Hosts differ in what JSON Schema they take, so the schemas are flat and use only keywords that every host knows.
"""

import base64
import functools
import json
import logging
import re
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final, get_args, get_type_hints

from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import ArgModelBase
from mcp_types import CallToolResult, ImageContent, TextContent, ToolAnnotations
from pydantic import BaseModel, ConfigDict, model_validator

from bfl_mcp.errors import BFLError, quote_foreign, quoted
from bfl_mcp.finetunes.viewed import Picture

logger = logging.getLogger(__name__)

_TEXT_VALUE_LIMIT: Final = 300
_NAME_LIMIT: Final = 60
# Objects inside objects inside a fact are shown as one JSON value.
_DEPTH_SHOWN: Final = 2

_NO_VALUE: Final[list[None]] = [None]
"""Fits no field of text or numbers, so that pydantic says what is wanted."""

_HALF_CHARACTER: Final = re.compile("[\ud800-\udfff]")
_PLAIN_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")


class ToolInput(ArgModelBase):
    """Arguments of a tool: validated as one model, handed over as one object named `request`."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_look_alikes(cls, data: Any) -> Any:
        """Leave no value that pydantic would read as another: a truth value is no number, half a character no text."""
        if not isinstance(data, dict):
            return data
        return {name: _NO_VALUE if cls._is_look_alike(name, value) else value for name, value in data.items()}

    @classmethod
    def _is_look_alike(cls, name: str, value: Any) -> bool:
        if isinstance(value, bool):
            field = cls.model_fields.get(name)
            return field is not None and bool({int, float} & {field.annotation, *get_args(field.annotation)})
        return _HALF_CHARACTER.search(json.dumps(value, ensure_ascii=False, default=str)) is not None

    def model_dump_one_level(self) -> dict[str, Any]:
        return {"request": self}


def make_tool(function: Callable[..., Awaitable[BaseModel]], *, title: str, annotations: ToolAnnotations) -> Tool:
    """Make an MCP tool of `async def name(request: Request, ctx: Context) -> Result`; agents read its docstring."""
    hints = get_type_hints(function)
    request, result = hints["request"], hints["return"]
    description = " ".join((function.__doc__ or "").split())
    tool = Tool.from_function(function, title=title, description=description, annotations=annotations)
    tool.fn = _answering(function)
    tool.fn_metadata.arg_model = request
    tool.parameters = flat_schema(request)
    tool.fn_metadata.output_schema = flat_schema(result) if result is not Picture else None
    return tool


def flat_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The model's JSON schema without references, nullable unions, titles and integer enums."""
    schema = model.model_json_schema()
    flat: dict[str, Any] = _flatten(schema, schema.get("$defs", {}))
    flat.pop("description", None)
    return flat


def error_result(text: str) -> CallToolResult:
    """A failure as the model reads it: one text, no structured content."""
    return CallToolResult(is_error=True, content=[TextContent(type="text", text=text)])


def failure_result(error: BaseException, tool: str) -> CallToolResult:
    """A failure of a tool.

    One we expect keeps its own words; a crash becomes one safe sentence with a number to find it by in the log.
    """
    if isinstance(error, BFLError):
        return error_result(str(error))
    number = secrets.token_hex(4)
    logger.error("error %s in the tool %s", number, tool, exc_info=error)
    return error_result(
        f"This server has a fault of its own (error {number}; its log has the details). If a finetune was being "
        "started, look whether it exists before you start it again."
    )


def _answering(function: Callable[..., Awaitable[BaseModel]]) -> Callable[..., Awaitable[CallToolResult]]:
    """Give the same facts as text and as structured content, and failures as tool errors."""

    @functools.wraps(function)
    async def answer(**arguments: Any) -> CallToolResult:
        try:
            result = await function(**arguments)
        except Exception as error:  # noqa: BLE001 - told in words, and logged if it is none of ours
            return failure_result(error, function.__name__)
        if isinstance(result, Picture):
            # Hosts lose or move images that have structured content beside them.
            image = ImageContent(type="image", data=base64.b64encode(result.jpeg).decode(), mime_type="image/jpeg")
            return CallToolResult(content=[TextContent(type="text", text=result.text), image])
        facts = result.model_dump(mode="json", exclude_none=True)
        return CallToolResult(content=[TextContent(type="text", text=_as_text(facts))], structured_content=facts)

    return answer


def _as_text(facts: dict[str, Any]) -> str:
    """Summary first, then each fact on its line, the next step last."""
    lines = [facts["summary"], ""]
    for name, value in facts.items():
        if name not in ("summary", "next_step"):
            lines += _fact_lines(name, value)
    return "\n".join([*lines, "", f"Next: {facts['next_step']}"])


def _fact_lines(name: str, value: Any, depth: int = 0) -> list[str]:
    # Ours are plain; a foreign one could pass for a line of ours.
    label = name if _PLAIN_NAME.fullmatch(name) and len(name) <= _NAME_LIMIT else quoted(name, _NAME_LIMIT)
    if value in ([], {}):
        return [f"{label}: none"]
    if isinstance(value, list) and all(isinstance(item, dict) and {"file", "state"} <= set(item) for item in value):
        return [f"{label}:", *(f"  {_change_line(item)}" for item in value)]
    if isinstance(value, dict) and depth < _DEPTH_SHOWN:
        lines = [f"  {line}" for key, item in value.items() for line in _fact_lines(key, item, depth + 1)]
        return [f"{label}:", *lines]
    if isinstance(value, list) and all(isinstance(item, dict) and set(item) == {"name", "reason"} for item in value):
        return [f"{label}:", *(f"  {quote_foreign(item['name'])}: {quote_foreign(item['reason'])}" for item in value)]
    if isinstance(value, list) and all(isinstance(item, dict) and "remedy" in item for item in value):
        return [f"{label}:", *(f"  {_finding_line(item)}" for item in value)]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return [f"{label}:", *(f"  {quote_foreign(item)}" for item in value)]
    if isinstance(value, str):
        return [f"{label}: {quote_foreign(value, _TEXT_VALUE_LIMIT)}"]
    return [f"{label}: {quote_foreign(json.dumps(value, ensure_ascii=False), _TEXT_VALUE_LIMIT)}"]


def _finding_line(item: dict[str, Any]) -> str:
    files = ", ".join(quote_foreign(name, 100) for name in item["files"])
    what = quote_foreign(item["what"], _TEXT_VALUE_LIMIT)
    return f"{item['severity']} {item['code']}: {files + ': ' if files else ''}{what}. {item['remedy']}"


def _change_line(item: dict[str, Any]) -> str:
    """What happened to a file, and on a rehearsal its old text and its new one."""
    texts = [quoted(item[name]) if name in item else "nothing" for name in ("before", "after")]
    change = f": {texts[0]} → {texts[1]}" if {"before", "after"} & set(item) else ""
    return f"{quote_foreign(item['file'])}: {item['state']}{change}"


def _flatten(node: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_flatten(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[1]]
        node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
    node = _without_null(node)
    if "enum" in node and all(isinstance(value, int) for value in node["enum"]):
        # Gemini takes enums of strings only; the words in the description name the values between.
        values = node["enum"]
        node = {key: value for key, value in node.items() if key != "enum"}
        node |= {"minimum": min(values), "maximum": max(values)}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if key == "$defs" or (key == "title" and isinstance(value, str)):
            continue
        if key == "properties":
            flat[key] = {name: _flatten(item, definitions) for name, item in value.items()}
        elif key == "const":
            flat["enum"] = [value]
        elif key in ("default", "enum", "required"):
            flat[key] = value
        else:
            flat[key] = _flatten(value, definitions)
    return flat


def _without_null(node: dict[str, Any]) -> dict[str, Any]:
    arms = [arm for arm in node.get("anyOf", []) if arm.get("type") != "null"]
    if len(arms) == 1:
        node = {**{key: value for key, value in node.items() if key != "anyOf"}, **arms[0]}
    return {key: value for key, value in node.items() if not (key == "default" and value is None)}
