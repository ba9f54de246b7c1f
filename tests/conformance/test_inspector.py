"""The protocol's own inspector as a host: it starts the real command over stdio and asks it, in both eras."""

import json
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conformance.node import needs_node, run_node

pytestmark = [needs_node, pytest.mark.timeout(120)]

INSPECTOR = "@modelcontextprotocol/inspector/clients/launcher/build/index.js"
EXAMPLES = Path(__file__).parents[2] / "examples"
# Source: the inspector's exit codes; 5 is a tool that says that it failed, 1 to 4 are faults before a tool's answer.
TOOL_ERROR: Final = 5


@pytest.fixture(params=["legacy", "modern"])
def era(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def inspect(home: Path, era: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit status, and what the server answered."""
    home.mkdir()
    command = str(Path(sys.executable).with_name("bfl-mcp"))
    # The inspector hides its own environment from the servers that it starts.
    run = run_node(
        INSPECTOR, "--cli", "--protocol-era", era, "--format", "json",
        "-e", f"BFL_MCP_HOME={home}", "-e", f"BFL_MCP_ALLOWED_DIRS={EXAMPLES}", "-e", "BFL_TRAINER_ENGINE=practice",
        *arguments, "--", command, home=home, seconds=60,
    )  # fmt: skip
    assert run.stdout, run.stderr
    return run.returncode, json.loads(run.stdout)["result"]


def call(home: Path, era: str, tool: str, **arguments: object) -> tuple[int, dict[str, Any]]:
    arguments_json = json.dumps(arguments)
    status, result = inspect(
        home, era, "--method", "tools/call", "--tool-name", tool, "--tool-args-json", arguments_json
    )
    # Only the newer protocol says with each answer who gave it.
    assert ("io.modelcontextprotocol/serverInfo" in result.get("_meta", {})) == (era == "modern")
    return status, result


def test_the_inspector_lists_the_tools_and_finds_their_schemas_portable(home: Path, era: str) -> None:
    """`--strict` ends with 6 where a schema would be refused by some host."""
    status, result = inspect(home, era, "--method", "tools/list", "--strict")

    assert status == 0
    assert [tool["name"] for tool in result["tools"]] == [
        "check_dataset",
        "view_dataset",
        "write_captions",
        "export_dataset",
        "create_finetune",
        "get_finetune_details",
    ]


def test_the_inspector_makes_a_dry_run_with_the_example_pictures(home: Path, era: str) -> None:
    """What a person who tries the server by hand does first."""
    request = {"finetune_comment": "toy robot", "mode": "product", "trigger_word": "TOKBOT", "dry_run": True}
    status, result = call(home, era, "create_finetune", folder=str(EXAMPLES), **request)

    assert status == 0
    assert not result.get("isError")
    assert result["structuredContent"]["images"] == 8
    assert result["structuredContent"]["started"] is False
    assert "Nothing was sent" in result["content"][0]["text"]


def test_the_inspector_sees_an_unknown_finetune_as_a_tool_error(home: Path, era: str) -> None:
    """An error of the protocol would not reach the model; a success would be believed."""
    status, result = call(home, era, "get_finetune_details", finetune_id="no-such-id")

    assert status == TOOL_ERROR
    assert result["isError"] is True
    assert "knows no finetune 'no-such-id'" in result["content"][0]["text"]
    assert "structuredContent" not in result
