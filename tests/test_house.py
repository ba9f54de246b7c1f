"""The plan of the house: who may import whom, and documents that cannot lie."""

import ast
import re
from pathlib import Path

import pytest
from PIL import Image

from bfl_mcp.config import Settings
from bfl_mcp.dataset.folder import read_dataset
from bfl_mcp.server import build_server

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bfl_mcp"

# What each room may import of ours. Everything may import errors, config and contract.
MAY_IMPORT = {
    "errors": set(),
    "contract": {"errors"},
    "config": {"errors", "contract"},
    "dataset": set(),
    "client": set(),
    "finetunes": {"client", "dataset"},
    "server": {"finetunes", "client", "dataset", "trainer"},
    "trainer": {"dataset"},
    "report": {"dataset", "finetunes"},
    "demo": set(),
    "cli": {"server", "report", "demo", "trainer", "dataset"},
    "__main__": {"cli"},
    "__init__": set(),
}
FOR_ALL = {"errors", "config", "contract"}


def imports_of(path: Path) -> list[str]:
    """Full names of the modules a file imports, wherever in it."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.append(node.module or "")
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def room_of(path: Path) -> str:
    inside = path.relative_to(PACKAGE)
    return inside.parts[0].removesuffix(".py")


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_import_only_what_they_may(path: Path) -> None:
    """A newcomer finds any behaviour in a minute because the rooms keep their doors."""
    room = room_of(path)
    allowed = MAY_IMPORT[room] | {room} | (FOR_ALL if room not in FOR_ALL else set())

    ours = {name.split(".")[1] for name in imports_of(path) if name.startswith("bfl_mcp.")} - {"__version__"}

    assert ours <= allowed


def test_the_trainer_takes_only_pictures_from_the_dataset_desk() -> None:
    """The other side of the contract shares the decoder, nothing else."""
    for path in (PACKAGE / "trainer").rglob("*.py"):
        taken = {name for name in imports_of(path) if name.startswith("bfl_mcp.dataset")}
        assert all(name.startswith("bfl_mcp.dataset.images") for name in taken), path


def test_the_server_takes_only_the_app_from_the_trainer_in_one_place() -> None:
    """The embedded provider is reached by the same client as any other."""
    taken = [
        name
        for path in (PACKAGE / "server").rglob("*.py")
        for name in imports_of(path)
        if name.startswith("bfl_mcp.trainer")
    ]

    assert taken == ["bfl_mcp.trainer.app", "bfl_mcp.trainer.app.create_app"]


@pytest.mark.parametrize(("library", "rooms"), [("httpx", {"client"}), ("mcp", {"server", "demo"})])
def test_a_library_has_its_room(library: str, rooms: set[str]) -> None:
    """One module knows httpx, one room the SDK, apart from the demo, which is a client."""
    users = {room_of(path) for path in modules() if any(name.split(".")[0] == library for name in imports_of(path))}

    assert users == rooms


def test_bounds_stand_in_the_contract_alone() -> None:
    """A bound of the API written twice is a bound that will differ."""
    for path in modules():
        numbers = {
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant)
        }
        if path.name != "contract.py":
            assert not {1e-6, 5e-3, 1e-5, 1e-4} & {number for number in numbers if isinstance(number, float)}, path


async def test_the_readme_lists_every_tool_and_every_setting(settings: Settings) -> None:
    """What the README leaves out does not exist for its reader."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")

    for tool in await build_server(settings).list_tools():
        assert f"`{tool.name}`" in readme
    for field in Settings.model_fields.values():
        assert f"`{field.validation_alias}`" in readme


def test_the_readme_has_its_two_commands() -> None:
    """One line runs the demo, one line the tests; CI calls the second as it stands there."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")

    commands = re.findall(r"^python3 -m venv .*$", readme, re.MULTILINE)
    assert len(commands) == 2
    assert commands[0].endswith("bfl-mcp demo")
    assert commands[1].endswith("pytest")


def test_no_document_installs_the_name_from_an_index() -> None:
    """On the package index that name may belong to somebody else."""
    for path in [*ROOT.glob("*.md"), *ROOT.glob("*.json")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(pip install|uvx|uv tool install|pipx install|pipx run) +['\"]?bfl-mcp", text), path


def test_the_examples_are_a_good_dataset() -> None:
    """8 pictures with captions, large enough, with the trigger word, small in all."""

    dataset = read_dataset(ROOT / "examples")

    assert (len(dataset.images), dataset.captions, dataset.skipped, dataset.faults) == (8, 8, (), ())
    for image in dataset.images:
        assert image.caption is not None
        assert re.search(r"\bTOKBOT\b", image.caption)
        with Image.open(image.path) as picture:
            assert min(picture.size) >= 1024
    assert sum(path.stat().st_size for path in (ROOT / "examples").iterdir()) < 2_000_000
