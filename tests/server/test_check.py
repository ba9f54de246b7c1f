"""check_dataset as an agent uses it: the verdict, its words, and one examination for checking and starting."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from PIL import Image

from bfl_mcp.config import Settings
from bfl_mcp.server import build_server
from tests.dataset.test_judge import PLANTED, fill, photo, plant
from tests.fakes.bfl import KEY, FakeBFL
from tests.server.conftest import Connect
from tests.server.test_tools import facts_of, refused, text_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fill(tmp_path / "pictures")


async def test_a_good_folder_is_ready(connect: Connect, folder: Path) -> None:
    """With what will be sent and what comes next."""
    async with connect() as client:
        facts = facts_of(
            await client.call_tool("check_dataset", {"folder": str(folder), "trigger_word": "TOKBOT", "mode": "style"})
        )
        rehearsed = facts_of(
            await client.call_tool(
                "create_finetune", {"folder": str(folder), "finetune_comment": "x", "mode": "style", "dry_run": True}
            )
        )

    assert (facts["verdict"], facts["faults"], facts["warnings"], facts["findings"]) == ("ready", 0, 0, [])
    assert (facts["images"], facts["captions"], facts["with_trigger_word"]) == (6, 6, 6)
    assert facts["not_checked"] == []
    assert "Nothing was sent" in facts["summary"]
    assert "create_finetune" in facts["next_step"]
    assert facts["archive_sha256"] == rehearsed["archive_sha256"]


async def test_warnings_and_faults_change_the_verdict(connect: Connect, folder: Path) -> None:
    """A warning leaves the decision to the person, a fault does not."""
    photo(9, 500, 400).save(folder / "small.jpg")
    (folder / "small.txt").write_text("a TOKBOT")
    async with connect() as client:
        warned = facts_of(await client.call_tool("check_dataset", {"folder": str(folder)}))
        (folder / "p1.jpg").write_bytes(b"\xff\xd8\xff nothing")
        faulty = facts_of(await client.call_tool("check_dataset", {"folder": str(folder)}))

    assert warned["verdict"] == "ready with warnings"
    assert [(finding["code"], finding["files"]) for finding in warned["findings"]] == [("small", ["small.jpg"])]
    assert "they decide" in warned["next_step"]
    assert faulty["verdict"] == "not ready"
    assert faulty["findings"][0]["files"] == ["p1.jpg"]
    assert "archive_bytes" not in faulty


async def test_what_is_not_asked_for_is_said_to_be_left_out(home: Path, folder: Path) -> None:
    """The price needs the iterations, the check of the captions the trigger word."""
    settings = Settings.model_validate({"BFL_API_KEY": KEY, "BFL_MCP_HOME": home})
    async with Client(build_server(settings, FakeBFL().transport())) as client:
        bare = facts_of(await client.call_tool("check_dataset", {"folder": str(folder)}))
        priced = facts_of(
            await client.call_tool(
                "check_dataset", {"folder": str(folder), "iterations": 100, "trigger_word": "TOKBOT", "mode": "style"}
            )
        )

    assert len(bare["not_checked"]) == 3
    assert "cost_usd" not in bare
    assert "with_trigger_word" not in bare
    assert priced["not_checked"] == []
    assert priced["cost_usd"] == 2


async def test_the_provider_s_limit_counts(home: Path, tmp_path: Path) -> None:
    """21 images are too many for BFL, and none too many for a trainer of one's own."""
    folder = fill(tmp_path / "many", count=21)
    settings: dict[str, Any] = {"BFL_MCP_HOME": home}
    async with Client(build_server(Settings.model_validate(settings))) as client:
        here = facts_of(await client.call_tool("check_dataset", {"folder": str(folder)}))
    at_bfl = Settings.model_validate({**settings, "BFL_API_KEY": KEY})
    async with Client(build_server(at_bfl, FakeBFL().transport())) as client:
        there = facts_of(await client.call_tool("check_dataset", {"folder": str(folder)}))

    assert here["faults"] == 0
    assert "too-many-images" in [finding["code"] for finding in there["findings"]]


async def test_checking_and_starting_decode_each_image_once(
    connect: Connect, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent checks, then starts: the second must not cost the first again."""
    opened = []
    original = Image.open

    def count(*arguments: Any, **options: Any) -> Any:
        opened.append(arguments)
        return original(*arguments, **options)

    monkeypatch.setattr(Image, "open", count)
    async with connect() as client:
        await client.call_tool("check_dataset", {"folder": str(folder)})
        await client.call_tool("check_dataset", {"folder": str(folder), "detail": "full"})
        await client.call_tool(
            "create_finetune", {"folder": str(folder), "finetune_comment": "x", "mode": "style", "dry_run": True}
        )

        before = len(opened)
        (folder / "p1.txt").write_text("a TOKBOT, described better")
        again = facts_of(await client.call_tool("check_dataset", {"folder": str(folder)}))
        with_new_caption = len(opened)
        photo(9).save(folder / "p2.jpg", quality=95)
        await client.call_tool("check_dataset", {"folder": str(folder)})

    assert before == with_new_caption == 6
    assert again["captions"] == 6
    # Saving it opened nothing; decoding it was one more.
    assert len(opened) == 7


async def test_a_concise_answer_stays_short_and_a_full_one_names_every_file(connect: Connect, tmp_path: Path) -> None:
    """Twenty images with many faults must not flood the conversation."""
    folder = fill(tmp_path / "pictures", count=20)
    for number in range(0, 20, 2):
        photo(number, 400, 300).save(folder / f"p{number}.jpg")
        (folder / f"p{number}.txt").unlink()
    for number in range(12):
        (folder / f"orphan {number}.txt").write_text("a TOKBOT")
    async with connect() as client:
        concise = await client.call_tool("check_dataset", {"folder": str(folder), "trigger_word": "TOKBOT"})
        full = await client.call_tool("check_dataset", {"folder": str(folder), "detail": "full"})

    assert len(text_of(concise).encode()) < 1500
    assert "… and 7 more" in text_of(concise)
    assert "detail=full" in facts_of(concise)["next_step"]
    told = facts_of(full)["findings"]
    small = next(finding for finding in told if finding["code"] == "small")
    assert len(small["files"]) == 10
    assert sum(len(finding["files"]) for finding in told if finding["code"] == "orphan-caption") == 12


async def test_all_that_can_go_wrong_stays_short_in_a_conversation(home: Path, tmp_path: Path) -> None:
    """26 images with many planted faults, at a provider of 20: worst first, and what is left out is said."""
    folder = plant(tmp_path / "planted")
    asked = {"folder": str(folder), "trigger_word": "TOKBOT", "mode": "product", "iterations": 300}
    settings = Settings.model_validate({"BFL_MCP_HOME": home, "BFL_API_KEY": KEY})
    async with Client(build_server(settings, FakeBFL().transport())) as client:
        concise = await client.call_tool("check_dataset", asked)
        full = facts_of(await client.call_tool("check_dataset", {**asked, "detail": "full"}))

    text, facts = text_of(concise), facts_of(concise)
    assert len(text.encode()) <= 1500
    assert facts["verdict"] == "not ready"
    assert [finding["code"] for finding in facts["findings"][:2]] == ["too-many-images", "damaged-image"]
    assert re.search(r"Not shown: \d+ findings \(.*small.*\); detail=full tells all\.$", facts["next_step"])
    told = " ".join(name for finding in full["findings"] for name in finding["files"])
    assert all(name in told for name in PLANTED)


async def test_names_of_any_length_leave_a_concise_answer_short(connect: Connect, tmp_path: Path) -> None:
    """They are not ours, and may have 255 bytes each."""
    folder = tmp_path / ("界" * 60) / ("世" * 60)
    folder.parent.mkdir()
    fill(folder, count=20)
    for number in range(20):
        photo(number, 400, 300).save(folder / f"{number}{'写' * 70}.png")
    async with connect() as client:
        answer = await client.call_tool("check_dataset", {"folder": str(folder), "trigger_word": "TOKBOT"})

    assert len(text_of(answer).encode()) <= 1500
    assert facts_of(answer)["findings"] != []


async def test_a_start_brings_what_the_check_found(connect: Connect, folder: Path) -> None:
    """Whoever never checked must hear of it too, before and after the start; of a start more is known."""
    photo(9, 500, 400).save(folder / "small.jpg")
    (folder / "small.txt").write_text("a TOKBOT")
    known = {"folder": str(folder), "trigger_word": "TOKBOT", "mode": "character"}
    asked = {**known, "finetune_comment": "x"}
    async with connect() as client:
        checked = facts_of(await client.call_tool("check_dataset", known))
        rehearsed = facts_of(await client.call_tool("create_finetune", {**asked, "dry_run": True}))
        started = facts_of(await client.call_tool("create_finetune", asked))

    codes = [finding["code"] for finding in started["findings"]]
    assert codes == ["small", "character-scenes", "captions-and-captioning"]
    assert rehearsed["findings"] == started["findings"]
    assert checked["findings"] == started["findings"][:2]
    assert "1 warning about the images" in rehearsed["summary"]
    assert "1 warning about the images" in started["summary"]
    assert rehearsed["next_step"].startswith("Tell the person the warnings")


async def test_what_is_too_large_to_send_is_a_fault_for_both(home: Path, folder: Path) -> None:
    """Checking and starting say the same, in the same words."""
    limit = {"BFL_MCP_HOME": home, "BFL_TRAINER_MAX_UPLOAD_MB": 0.5}
    async with Client(build_server(Settings.model_validate(limit))) as client:
        facts = facts_of(await client.call_tool("check_dataset", {"folder": str(folder)}))
        words = await refused(
            client, "create_finetune", {"folder": str(folder), "finetune_comment": "x", "mode": "style"}
        )

    (fault,) = facts["findings"]
    assert (facts["verdict"], fault["code"]) == ("not ready", "too-large")
    assert "Nothing was sent" in words
    assert fault["what"][1:] in words
    assert fault["remedy"] in words


async def test_a_file_that_was_put_right_is_seen_to_be(connect: Connect, folder: Path) -> None:
    """Of the same size and with the old time: rights, and which file it is, count too."""
    path = folder / "p1.jpg"
    good, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_bytes(bytes(len(good)))
    os.utime(path, ns=times)
    async with connect() as client:
        before = facts_of(await client.call_tool("check_dataset", {"folder": str(folder)}))
        path.write_bytes(good)
        os.utime(path, ns=times)
        after = facts_of(await client.call_tool("check_dataset", {"folder": str(folder)}))

    assert (before["verdict"], after["verdict"]) == ("not ready", "ready")


_FULL_DISK = """
import resource, signal, sys
import anyio
from mcp import Client
from bfl_mcp.config import Settings
from bfl_mcp.server import build_server

async def main():
    async with Client(build_server(Settings())) as client:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
        full = await client.call_tool("check_dataset", {"folder": sys.argv[1]})
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        again = await client.call_tool("check_dataset", {"folder": sys.argv[1]})
    print(full.is_error, full.content[0].text)
    print(again.is_error, again.structured_content["verdict"])

anyio.run(main)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on files can be set here")
def test_a_full_disk_is_no_fault_of_the_pictures_and_passes(tmp_path: Path) -> None:
    """Whoever made room must not hear the old refusal. A limit on the size of files stands for the full disk."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        photo(number, 2000, 1500).save(folder / f"p{number}.jpg", quality=95)
    environment = {**os.environ, "BFL_MCP_HOME": str(tmp_path / "home"), "BFL_MCP_ALLOWED_DIRS": str(tmp_path)}

    done = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(folder)], env=environment, capture_output=True, text=True, check=True
    )

    full, again = done.stdout.strip().split("\n")
    assert full.startswith("True The archive could not be written to the folder for temporary files: File too large.")
    assert again == "False ready"


async def test_a_folder_that_may_not_be_read_is_refused(connect: Connect) -> None:
    """The same gate as for a start."""
    async with connect() as client:
        words = await refused(client, "check_dataset", {"folder": "/etc"})

    assert "not in a folder that this server may read" in words


async def test_what_takes_long_goes_on(connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same call again finds what the first began."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(8):
        photo(number, 3000, 2000).save(folder / f"p{number}.png", compress_level=1)
    monkeypatch.setattr("bfl_mcp.server.tools.ANSWER_SECONDS", 0.05)
    async with connect() as client:
        words = await refused(client, "check_dataset", {"folder": str(folder)})
        monkeypatch.setattr("bfl_mcp.server.tools.ANSWER_SECONDS", 45)
        facts = facts_of(await client.call_tool("check_dataset", {"folder": str(folder)}))

    assert "call check_dataset again" in words
    assert facts["images"] == 8
