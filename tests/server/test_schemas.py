"""What hosts and models read of the tools: reviewed word by word, and in a shape that every host takes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp_types import Tool

from bfl_mcp import __version__
from bfl_mcp.config import Settings
from bfl_mcp.contract import TrainingParameters
from bfl_mcp.server import build_server
from tests.server.conftest import Connect

GOLDEN = Path(__file__).parent / "tools.json"

# Source: what the hosts' own validators refuse, see `bfl_mcp.server.schema`.
KEYWORDS = {
    "type", "properties", "required", "description", "default", "enum", "items", "minimum", "maximum",
    "minLength", "maxLength", "minItems", "maxItems", "additionalProperties",
}  # fmt: skip


async def list_tools(settings: Settings) -> list[Tool]:
    async with Client(build_server(settings)) as client:
        return (await client.list_tools()).tools


def walk(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema inside a schema, with where it stands."""
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from walk(inner, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from walk(schema[key], f"{path}[{key}]")


async def test_the_tool_list_is_the_reviewed_one(settings: Settings, request: pytest.FixtureRequest) -> None:
    """Every changed word shows in review. To accept a change: pytest tests/server/test_schemas.py --update-golden."""
    tools = [tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in await list_tools(settings)]
    if request.config.getoption("--update-golden"):
        GOLDEN.write_text(json.dumps(tools, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    assert tools == json.loads(GOLDEN.read_text(encoding="utf-8"))


async def test_schemas_use_only_what_every_host_takes(settings: Settings) -> None:
    """One unknown keyword makes a host drop the tool, or all of them."""
    for tool in await list_tools(settings):
        # What shows pictures has no structured content, and so no schema for it.
        assert (tool.output_schema is None) == (tool.name == "view_dataset")
        for schema in filter(None, (tool.input_schema, tool.output_schema)):
            assert schema["type"] == "object"
            for path, node in walk(schema, tool.name):
                assert set(node) <= KEYWORDS, path
                assert all(isinstance(value, str) for value in node.get("enum", [])), path
                assert node.get("type") != "array" or "items" in node, path
                for name, inner in node.get("properties", {}).items():
                    assert inner.get("description"), f"{path}.{name}"
                    assert re.fullmatch(r"[a-z0-9_]{1,64}", name), f"{path}.{name}"
        assert tool.input_schema["additionalProperties"] is False


async def test_tools_have_titles_hints_and_short_descriptions(settings: Settings) -> None:
    """Hosts ask a person by them, and cut what is longer than 2 kB."""
    tools = {tool.name: tool for tool in await list_tools(settings)}

    for tool in tools.values():
        assert tool.title
        assert tool.annotations is not None
        assert tool.annotations.title == tool.title
        assert tool.description is not None
        assert 80 < len(tool.description) < 1000
        assert "\n" not in tool.description
    hints = {
        name: (tool.annotations.read_only_hint, tool.annotations.destructive_hint, tool.annotations.open_world_hint)
        for name, tool in tools.items()
        if tool.annotations is not None
    }
    assert hints == {
        "check_dataset": (True, False, False),
        "view_dataset": (True, False, False),
        "write_captions": (False, False, False),
        "export_dataset": (False, False, False),
        "create_finetune": (False, True, True),
        "get_finetune_details": (True, False, True),
    }


async def test_training_parameters_are_those_of_the_contract(settings: Settings) -> None:
    """Bounds and defaults are written once."""
    create = next(tool for tool in await list_tools(settings) if tool.name == "create_finetune")
    properties = create.input_schema["properties"]

    assert set(properties) - {"folder", "dry_run", "allow_duplicate", "confirm_cost_usd"} == set(
        TrainingParameters.model_fields
    )
    assert create.input_schema["required"] == ["folder", "finetune_comment", "mode"]
    assert properties["iterations"] | {"description": ""} == {
        "type": "integer", "minimum": 100, "maximum": 1000, "default": 300, "description": "",
    }  # fmt: skip
    assert properties["learning_rate"] | {"description": ""} == {
        "type": "number", "minimum": 1e-6, "maximum": 5e-3, "description": "",
    }  # fmt: skip
    assert properties["lora_rank"]["minimum"] == 16
    assert "16 or 32" in properties["lora_rank"]["description"]


async def test_the_tool_list_stays_small(settings: Settings) -> None:
    """It is in every conversation, used or not."""
    tools = [tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in await list_tools(settings)]

    assert len(json.dumps({"tools": tools}, separators=(",", ":"))) < 3200 * len(tools)


async def test_the_server_introduces_itself(connect: Connect) -> None:
    """Name, version and how to use it, in both eras."""
    async with connect() as client:
        info = client.server_info
        instructions = client.instructions

    assert info is not None
    assert (info.name, info.version, info.title) == ("bfl-mcp", __version__, "FLUX finetuning")
    assert instructions is not None
    assert "dry_run" in instructions
    assert len(instructions) < 2000
