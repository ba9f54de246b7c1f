"""export_dataset as an agent uses it: the copy that a start would send, on the disk, once."""

import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from PIL import Image

from bfl_mcp.config import Settings
from bfl_mcp.server import build_server
from tests.dataset.test_judge import fill, photo
from tests.fakes.bfl import FakeBFL
from tests.pictures import fill_folder
from tests.server.conftest import Connect
from tests.server.test_tools import REQUEST, facts_of, refused, text_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fill_folder(tmp_path / "pictures")


async def test_the_archive_is_the_one_that_a_start_sends(connect: Connect, folder: Path, tmp_path: Path) -> None:
    """Byte for byte: what another trainer gets is what was checked, and what BFL's API would get."""
    to = tmp_path / "out.zip"
    bfl = FakeBFL()
    async with connect(bfl) as client:
        exported = facts_of(await client.call_tool("export_dataset", {"folder": str(folder), "to": str(to)}))
        requests = list(bfl.requests)
        started = facts_of(await client.call_tool("create_finetune", {**REQUEST, "folder": str(folder)}))

    assert requests == []
    with bfl.starts()[0].archive() as sent:
        assert sent.fp is not None
        sent.fp.seek(0)
        assert sent.fp.read() == to.read_bytes()
    assert exported["archive_sha256"] == started["archive_sha256"]
    assert exported["size_bytes"] == to.stat().st_size


async def test_a_folder_is_told_with_its_names_in_words_and_facts(
    connect: Connect, folder: Path, tmp_path: Path
) -> None:
    """The files have lost their names; the answer has them, and the folder itself stays clean."""
    (folder / "c.txt").unlink()
    (folder / "d: \u202e.png").write_bytes((folder / "a.jpg").read_bytes())
    to = tmp_path / "out"
    async with connect() as client:
        result = await client.call_tool("export_dataset", {"folder": str(folder), "to": f" '{to}'\n"})

    facts = facts_of(result)
    assert names_in(to) == [
        "001.jpg", "001.txt", "002.jpg", "002.txt", "003.jpg", "004.jpg",
    ]  # fmt: skip
    assert (facts["path"], facts["kind"], facts["images"], facts["captions"]) == (str(to), "folder", 4, 2)
    assert facts["names"] == ["001.jpg ← a.jpg", "002.jpg ← b.jpg", "003.jpg ← c.jpg", "004.jpg ← 'd: \\u202e.png'"]
    assert facts["size_bytes"] == sum(path.stat().st_size for path in to.iterdir())
    # Small ones, few of them, one twice, some without a caption.
    assert facts["warnings"] >= 3
    assert "check_dataset" in facts["next_step"]
    assert "write_captions" in facts["next_step"]
    assert "SimpleTuner" in facts["next_step"]
    for fact in (*facts["names"], facts["path"], facts["archive_sha256"]):
        assert fact in text_of(result)


async def test_checking_exporting_and_starting_decode_each_image_once(
    connect: Connect, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive is borrowed for an export, and still there for the next one and a start."""
    opened = []
    original = Image.open

    def count(*arguments: Any, **options: Any) -> Any:
        opened.append(arguments)
        return original(*arguments, **options)

    monkeypatch.setattr(Image, "open", count)
    async with connect(FakeBFL()) as client:
        await client.call_tool("check_dataset", {"folder": str(folder)})
        for name in ("out.zip", "out"):
            facts_of(await client.call_tool("export_dataset", {"folder": str(folder), "to": str(tmp_path / name)}))
        facts_of(await client.call_tool("create_finetune", {**REQUEST, "folder": str(folder)}))

    assert len(opened) == 3


async def test_a_provider_s_limits_are_not_those_of_an_export(home: Path, tmp_path: Path) -> None:
    """21 images are too many for BFL, an archive too large for our trainer; others take both. Names are cut at 40."""
    folder = fill_folder(tmp_path / "many", count=45, size=(64, 64))
    at_bfl: dict[str, Any] = {"BFL_API_KEY": "test-key"}
    limited: dict[str, Any] = {"BFL_TRAINER_MAX_UPLOAD_MB": 0.001}
    for number, more in enumerate((at_bfl, limited)):
        settings = Settings.model_validate({"BFL_MCP_HOME": home, **more})
        asked = {"folder": str(folder), "to": str(tmp_path / f"out-{number}.zip")}
        async with Client(build_server(settings, FakeBFL().transport() if more is at_bfl else None)) as client:
            words = await refused(client, "create_finetune", {**REQUEST, "folder": str(folder), "dry_run": True})
            facts = facts_of(await client.call_tool("export_dataset", asked))

        assert "takes at most" in words or "45 images" in words
        assert facts["images"] == 45
        assert len(facts["names"]) == 41
        assert facts["names"][-1].startswith("… and 5 more")
    assert (tmp_path / "out-0.zip").read_bytes() == (tmp_path / "out-1.zip").read_bytes()


async def test_nothing_is_made_of_a_folder_with_faults(connect: Connect, folder: Path, tmp_path: Path) -> None:
    """All of them at once, as for a start."""
    (folder / "b.jpg").write_bytes((folder / "b.jpg").read_bytes()[:2000])
    (folder / "d.png").write_bytes(b"not a picture")
    async with connect() as client:
        words = await refused(client, "export_dataset", {"folder": str(folder), "to": str(tmp_path / "out")})

    assert "- b.jpg: " in words
    assert "- d.png: " in words
    assert not (tmp_path / "out").exists()


async def test_a_destination_that_will_not_do_is_said_before_anything_is_decoded(
    connect: Connect, folder: Path, tmp_path: Path
) -> None:
    """A minute's work for nothing would be a pity: even a faulty folder is not looked into first."""
    (folder / "d.png").write_bytes(b"not a picture")
    (tmp_path / "taken").mkdir()
    async with connect() as client:
        for to, why in (
            (tmp_path / "taken", "already"),
            (folder / "out", "in the dataset itself"),
            (tmp_path / ".out", "would be hidden"),
            (tmp_path / "home" / "x", "own data"),
            (Path("/etc/out"), "not in a folder that this server may read"),
            (Path("out"), "not a full path"),
        ):
            words = await refused(client, "export_dataset", {"folder": str(folder), "to": str(to)})
            assert why in words
        words = await refused(client, "export_dataset", {"folder": "/etc", "to": str(tmp_path / "out")})

    assert "not in a folder that this server may read" in words
    assert list((tmp_path / "taken").iterdir()) == []


async def test_a_second_export_to_the_same_place_is_refused(connect: Connect, folder: Path, tmp_path: Path) -> None:
    """The first was told; what it made is the person's now."""
    asked = {"folder": str(folder), "to": str(tmp_path / "out")}
    async with connect() as client:
        facts_of(await client.call_tool("export_dataset", asked))
        words = await refused(client, "export_dataset", asked)

    assert "nothing is ever overwritten" in words
    assert "out-2'" in words


async def test_what_takes_long_goes_on_and_the_same_call_gets_the_outcome(
    connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While packing and while writing to a slow disk; never 'already there' for what the call itself made."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        photo(number, 2400, 1600).save(folder / f"p{number}.png", compress_level=1)
    asked = {"folder": str(folder), "to": str(tmp_path / "out.zip")}
    awake = threading.Event()
    async with connect() as client:
        with monkeypatch.context() as clock:
            clock.setattr("bfl_mcp.server.tools.ANSWER_SECONDS", 0.05)
            packing = await refused(client, "export_dataset", asked)
            checked = await refused(client, "check_dataset", {"folder": str(folder)})
        facts_of(await client.call_tool("check_dataset", {"folder": str(folder)}))
        with monkeypatch.context() as slow:
            slow.setattr("bfl_mcp.server.tools.ANSWER_SECONDS", 0.05)
            slow.setattr("bfl_mcp.dataset.export.os.fsync", lambda _: awake.wait(20))
            writing = await refused(client, "export_dataset", asked)
            awake.set()
            exported = facts_of(await client.call_tool("export_dataset", asked))

    assert "Still exporting" in packing
    assert "call export_dataset again" in packing
    assert "Still looking" in checked
    assert "Still exporting: 100% written" in writing
    assert exported["images"] == 6
    assert (tmp_path / "out.zip").is_file()


async def test_a_cancelled_call_leaves_an_export_that_is_whole(
    connect: Connect, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call goes, the work goes on, and the same call again is told what came of it."""
    asked = {"folder": str(folder), "to": str(tmp_path / "out")}
    awake = threading.Event()
    reached = threading.Event()

    def slow(_: int) -> None:
        reached.set()
        awake.wait(20)

    monkeypatch.setattr("bfl_mcp.dataset.export.os.fsync", slow)
    async with connect() as client:
        async with anyio.create_task_group() as calls:
            calls.start_soon(client.call_tool, "export_dataset", asked)
            assert await anyio.to_thread.run_sync(reached.wait, 10)
            calls.cancel_scope.cancel()
        awake.set()
        facts = facts_of(await client.call_tool("export_dataset", asked))

    assert facts["images"] == 3
    assert len(list((tmp_path / "out").iterdir())) == 6


async def test_a_server_that_ends_leaves_no_half_export(
    connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host closes its end in the middle: what was written so far is removed."""
    folder = fill(tmp_path / "pictures")
    asked = {"folder": str(folder), "to": str(tmp_path / "out")}
    ending = threading.Event()
    written: list[list[str]] = []

    def slow(_: int) -> None:
        written.append([path.name for path in tmp_path.glob(".bfl-mcp-*.tmp")])
        ending.wait(0.3)

    monkeypatch.setattr("bfl_mcp.dataset.export.os.fsync", slow)
    monkeypatch.setattr("bfl_mcp.server.tools.ANSWER_SECONDS", 0.05)
    async with connect() as client:
        for _ in range(50):
            if "written" in await refused(client, "export_dataset", asked):
                break

    assert len(written[0]) == 1
    assert len(written) < 12
    assert names_in(tmp_path) == ["pictures"]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
