"""Faults of our own: a safe sentence with a number for the reader, everything else in the log."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from bfl_mcp.config import Settings
from bfl_mcp.server import build_server
from tests.fakes.bfl import KEY, FakeBFL
from tests.pictures import fill_folder
from tests.server.test_spend import BFL, Person
from tests.server.test_tools import refused


@pytest.mark.parametrize("era", ["legacy", "auto"])
@pytest.mark.parametrize(
    ("place", "tool"),
    [
        ("bfl_mcp.server.tools.find_status", "get_finetune_details"),
        ("bfl_mcp.finetunes.start.Starts.start", "create_finetune"),
        # Before the tool itself, where the SDK would put it into its own words.
        ("bfl_mcp.finetunes.start.Starts.question", "create_finetune"),
        # In the background, whose outcome is fetched by the tool.
        ("bfl_mcp.finetunes.settle.Settler.settle", "create_finetune"),
    ],
)
async def test_a_bug_is_one_safe_sentence_with_a_number(
    home: Path,
    tmp_path: Path,
    era: str,
    place: str,
    tool: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What went wrong inside is nothing for the conversation; the number finds it in the log."""

    def crash(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("secret detail /home/ana")

    monkeypatch.setattr(place, crash)
    bfl = FakeBFL()
    bfl.add_finetune()
    settings = Settings.model_validate({"BFL_API_KEY": KEY, "BFL_API_URL": BFL, "BFL_MCP_HOME": home})
    folder = str(fill_folder(tmp_path / "pictures", count=1))
    arguments = {"folder": folder, "finetune_comment": "x", "mode": "style"} if tool == "create_finetune" else {}
    server = build_server(settings, bfl.transport())
    async with Client(server, mode=era, elicitation_callback=Person().answer) as client:
        with caplog.at_level(logging.ERROR):
            words = await refused(client, tool, arguments)

    number = re.search(r"error ([0-9a-f]{8})", words)
    assert number is not None, words
    assert "secret" not in words
    assert "ZeroDivision" not in words
    assert "look whether it exists" in words
    assert f"error {number[1]} in the tool {tool}" in caplog.text
    assert "secret detail /home/ana" in caplog.text
