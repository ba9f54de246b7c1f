"""Who trains, and whether that is known to be practice before anybody is asked."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from bfl_mcp.config import Settings
from bfl_mcp.contract import TRAINING_PACKAGES
from bfl_mcp.finetunes.provider import choose_provider


def practice_of(engine: str) -> bool | None:
    return choose_provider(Settings.model_validate({"BFL_TRAINER_ENGINE": engine})).practice


def test_an_engine_that_was_named_is_believed() -> None:
    """The person decided; whether it can train is asked when it matters."""
    assert practice_of("practice") is True
    assert practice_of("flux2") is False


def test_without_the_extra_nothing_but_practice_is_possible() -> None:
    """Known at once, so that a dry run needs to ask nobody."""
    installed = all(find_spec(name) is not None for name in TRAINING_PACKAGES)

    assert practice_of("auto") is (None if installed else True)


def test_with_the_extra_only_a_look_at_the_gpu_tells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Looking takes seconds and another process, so it is left to whoever needs to know."""
    for name in TRAINING_PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)

    assert practice_of("auto") is None


def test_a_server_elsewhere_is_not_judged_by_what_is_installed_here() -> None:
    """It has an engine of its own."""
    settings = Settings.model_validate({"BFL_API_URL": "https://gpu.example", "BFL_TRAINER_ENGINE": "practice"})

    assert choose_provider(settings).practice is None
