"""write_captions as an agent uses it, through the SDK's client, in both protocol eras."""

import json
import re
from pathlib import Path

import pytest
from mcp_types import TextContent

from tests.dataset.test_judge import photo
from tests.pictures import fill_folder
from tests.server.conftest import Connect
from tests.server.test_tools import facts_of, refused, text_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fill_folder(tmp_path / "pictures", captions=False)


async def test_captions_are_shown_written_and_taken_back(connect: Connect, folder: Path) -> None:
    """The whole conversation; the words alone are enough for a host that shows only them."""
    (folder / "a.txt").write_text("a cat")
    asked = {
        "folder": str(folder),
        "captions": [{"file": "a.jpg", "text": "TOK on a mat"}, {"file": "b.jpg", "text": "TOK in a box"}],
    }
    async with connect() as client:
        preview = await client.call_tool("write_captions", {**asked, "dry_run": True})
        untouched = (folder / "a.txt").read_text()
        written = facts_of(await client.call_tool("write_captions", asked))
        texts = [(folder / name).read_text() for name in ("a.txt", "b.txt")]
        undone = facts_of(await client.call_tool("write_captions", {"folder": str(folder), "mode": "undo"}))
        words = await refused(client, "write_captions", {"folder": str(folder), "mode": "undo"})

    assert untouched == "a cat"
    assert "a.jpg: changed: 'a cat' → 'TOK on a mat'" in text_of(preview)
    assert "b.jpg: new: nothing → 'TOK in a box'" in text_of(preview)
    assert "dry_run false" in facts_of(preview)["next_step"]
    assert texts == ["TOK on a mat\n", "TOK in a box\n"]
    assert (written["written"], written["without_caption"]) == (2, ["c.jpg"])
    assert undone["files"] == [{"file": "a.jpg", "state": "restored"}, {"file": "b.jpg", "state": "removed"}]
    assert ((folder / "a.txt").read_text(), (folder / "b.txt").exists()) == ("a cat", False)
    assert "nothing to undo" in words


async def test_captions_may_come_as_a_json_text(connect: Connect, folder: Path) -> None:
    """Some hosts send lists that way."""
    captions = json.dumps([{"file": "a.jpg", "text": "TOK"}])
    async with connect() as client:
        facts = facts_of(await client.call_tool("write_captions", {"folder": str(folder), "captions": captions}))

    assert facts["written"] == 1


async def test_a_folder_that_may_not_be_read_is_not_written_either(connect: Connect, home: Path, folder: Path) -> None:
    """The rules of reading hold for writing."""
    hidden = fill_folder(folder / ".git", captions=False)
    fill_folder(home / "x", captions=False)
    async with connect() as client:
        for named, why in ((hidden, "hidden"), (home / "x", "own data"), (Path("/etc"), "not in a folder")):
            captions = [{"file": "a.jpg", "text": "TOK"}]
            words = await refused(client, "write_captions", {"folder": str(named), "captions": captions})
            assert why in words

    assert not (hidden / "a.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"captions": "a.jpg"}, "captions must be a list"),
        ({"captions": ["a.jpg"]}, "captions.0 must be an object"),
        ({"captions": [{"text": "x"}]}, "captions.0.file is required"),
        ({"captions": [{"file": "a.jpg", "text": "x", "path": "/"}]}, "captions.0.path is no argument"),
        ({"captions": [{"file": "a.jpg", "text": "x"}] * 1001}, "captions must have at most 1000 entries"),
        ({"mode": "delete"}, "mode must be 'set', 'prepend_trigger' or 'undo'"),
    ],
)
async def test_arguments_of_the_wrong_shape_are_explained(
    connect: Connect, folder: Path, arguments: dict[str, object], words: str
) -> None:
    """In words that an agent can act on."""
    async with connect() as client:
        said = await refused(client, "write_captions", {"folder": str(folder), **arguments})

    assert words in said


async def test_the_whole_loop_from_a_bare_folder_to_a_start(connect: Connect, tmp_path: Path) -> None:
    """Check, look, caption, check again, start: each answer names the next step, and nothing else is needed."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        photo(number).save(folder / f"p{number}.jpg", quality=95)
    (folder / "p0.txt").write_text("seen from above")
    asked = {"folder": str(folder), "trigger_word": "TOKBOT"}
    async with connect() as client:
        first = facts_of(await client.call_tool("check_dataset", asked))
        sheet = await client.call_tool("view_dataset", {"folder": str(folder)})
        words = sheet.content[0]
        assert isinstance(words, TextContent)
        names = re.findall(r"^\d+\. (\S+\.jpg): no caption$", words.text, re.MULTILINE)
        written = facts_of(
            await client.call_tool(
                "write_captions",
                {"folder": str(folder), "captions": [{"file": name, "text": f"number {name[1]}"} for name in names]},
            )
        )
        await client.call_tool("write_captions", {**asked, "mode": "prepend_trigger"})
        second = facts_of(await client.call_tool("check_dataset", asked))
        started = facts_of(
            await client.call_tool("create_finetune", {**asked, "finetune_comment": "bot", "mode": "product"})
        )

    assert (first["verdict"], first["captions"]) == ("ready with warnings", 1)
    assert "some-captions" in [finding["code"] for finding in first["findings"]]
    assert "write_captions" in words.text.splitlines()[-1]
    assert names == ["p1.jpg", "p2.jpg", "p3.jpg", "p4.jpg", "p5.jpg"]
    assert "check_dataset" in written["next_step"]
    assert (second["verdict"], second["captions"], second["with_trigger_word"]) == ("ready", 6, 6)
    assert (started["started"], started["captions"]) == (True, 6)
    assert started["archive_sha256"] == second["archive_sha256"]
