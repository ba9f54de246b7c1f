"""The whole conversation: from a folder of pictures over the MCP server to a LoRA, at both kinds of our own trainer."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")

import anyio
from mcp import Client
from mcp_types import CallToolResult, TextContent
from PIL import Image

from bfl_mcp.config import Settings
from bfl_mcp.server import build_server
from tests.dataset.test_judge import photo
from tests.trainer.flux2.work import Models

KEY = "test-key"
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures, of which the last has no caption."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, caption in enumerate(("a TOKPOT on a table", "a teapot in the grass", None)):
        photo(number, 400, 300).save(folder / f"p{number}.jpg", quality=95)
        if caption is not None:
            (folder / f"p{number}.txt").write_text(caption)
    return folder


def engine_settings(models: Models) -> dict[str, str]:
    return {
        "BFL_TRAINER_ENGINE": "flux2",
        "BFL_TRAINER_MODEL": str(models.klein),
        "BFL_TRAINER_CAPTIONER": str(models.captioner),
        "BFL_TRAINER_MAX_PX": "64",
    }


@contextmanager
def running_trainer(data: Path, models: Models) -> Iterator[str]:
    """`bfl-mcp trainer` as a process of its own; gives its address."""
    environment = {**os.environ, **engine_settings(models), "BFL_TRAINER_KEY": KEY}
    command = [sys.executable, "-m", "bfl_mcp", "trainer", "--data", str(data), "--port", "0"]
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = ""
            while not (found := re.search(r"http://127\.0\.0\.1:\d+", said)):
                line = process.stdout.readline()
                assert line, said
                said += line
            yield found[0]
        finally:
            process.kill()


@asynccontextmanager
async def connected(trainer: str, tmp_path: Path, models: Models) -> AsyncIterator[Client]:
    home = {"BFL_MCP_HOME": str(tmp_path / "home")}
    if trainer == "embedded":
        settings = Settings.model_validate({**home, **engine_settings(models)})
        async with Client(build_server(settings)) as client:
            yield client
        return
    with running_trainer(tmp_path / "data", models) as url:
        settings = Settings.model_validate({**home, "BFL_API_URL": url, "BFL_API_KEY": KEY})
        async with Client(build_server(settings)) as client:
            yield client


def facts_of(result: CallToolResult) -> dict[str, Any]:
    text = result.content[0]
    assert isinstance(text, TextContent)
    assert not result.is_error, text.text
    assert result.structured_content is not None
    return result.structured_content


@pytest.mark.timeout(240)
@pytest.mark.parametrize("finetune_type", ["lora", "full"])
@pytest.mark.parametrize("trainer", ["embedded", "http"])
async def test_a_conversation_ends_with_a_lora_that_is_there(
    tmp_path: Path, folder: Path, models: Models, trainer: str, finetune_type: str
) -> None:
    """Rehearsed, started, followed and fetched, with nothing but what the answers say."""
    asked = {
        "folder": str(folder), "finetune_comment": "Red teapot", "mode": "product", "trigger_word": "TOKPOT",
        "finetune_type": finetune_type, "iterations": 100, "lora_rank": 16,
    }  # fmt: skip
    async with connected(trainer, tmp_path, models) as client:
        rehearsed = facts_of(await client.call_tool("create_finetune", {**asked, "dry_run": True}))
        started = facts_of(await client.call_tool("create_finetune", asked))
        states, told = [], started
        while told["state"] not in ("ready", "failed"):
            told = facts_of(
                await client.call_tool(
                    "get_finetune_details", {"finetune_id": started["finetune_id"], "wait_seconds": 45}
                )
            )
            states.append((told["state"], told.get("doing")))
        repeated = facts_of(await client.call_tool("create_finetune", asked))
        if trainer == "http":
            command = told["download"].replace("$BFL_API_KEY", KEY)
            await anyio.run_process(shlex.split(command), cwd=tmp_path)

    assert (rehearsed["started"], rehearsed["practice"], rehearsed["fits"]) == (False, False, True)
    assert (started["started"], started["practice"], started["cost_usd"]) == (True, False, 0)
    assert told["state"] == "ready", states
    assert "practice" not in told["summary"].lower()
    # The command and the line that loads what it fetched name one file.
    named = re.search(r'weights\("([^"]+)"\)', told["load"][1])
    assert named is not None
    lora = tmp_path / named[1]
    _check_lora(lora, finetune_type)
    assert "Captions: 3, 1 of them written by the trainer" in told["summary"]
    assert "'a TOKPOT on a table'" in told["summary"]
    assert "'TOKPOT, a teapot in the grass'" in told["summary"]
    assert ("what full training changed" in told["summary"]) is (finetune_type == "full")
    assert "+ Add Finetune" in told["next_step"]
    assert (repeated["started"], repeated["finetune_id"]) == (False, started["finetune_id"])
    if trainer == "embedded":
        before, after = (Image.open(path) for path in told["samples"][:2])
        assert before.size == after.size == (64, 64)
        assert before.tobytes() != after.tobytes()


def _check_lora(path: Path, finetune_type: str) -> None:
    """It holds what was asked for, by its own account."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as opened:
        metadata, names = opened.metadata(), list(opened.keys())
        ranks = {opened.get_tensor(name).shape[0] for name in names if "lora_A" in name}
    assert ranks == {16}
    assert metadata["trigger_word"] == "TOKPOT"
    assert finetune_type in " ".join(metadata.values())
