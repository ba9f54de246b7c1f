"""What all tests share: no test reads the person's environment, and each has its own folders."""

import os
from pathlib import Path

import pytest

from bfl_mcp.config import Settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # What an agent may name lies in the home directory.
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for name in os.environ:
        if name.startswith("BFL_"):
            monkeypatch.delenv(name)
    # A machine with a GPU and the extra [train] would download a model.
    monkeypatch.setenv("BFL_TRAINER_ENGINE", "practice")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails for good is asked four times; nobody has to wait for that here."""
    monkeypatch.setattr("bfl_mcp.client._FIRST_PAUSE_SECONDS", 0.01)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def settings(home: Path) -> Settings:
    """The embedded practice trainer, quick enough for tests."""
    return Settings.model_validate({"BFL_MCP_HOME": home, "BFL_TRAINER_PRACTICE_SECONDS": 0.5})


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="accept the tool list as it is now")
