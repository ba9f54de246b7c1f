"""A real Chromium, started once, that may speak to nobody."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Chrome]":
    """The browser, with an empty profile and home, and a log of its console and requests."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("chromium and chromedriver are not installed")
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    home = tmp_path_factory.mktemp("chromium")
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*_FLAGS, f"--user-data-dir={home / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(DRIVER, env={**os.environ, "HOME": str(home)}))
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a folder with planted faults, whose names and captions attack it."""
    from tests.report.folders import HOSTILE_FOLDER, attack
    from tests.report.test_run import check

    folder = tmp_path_factory.mktemp("attacked")
    page = folder / "report.html"
    attack(folder / HOSTILE_FOLDER)
    done = check(folder / HOSTILE_FOLDER, "--trigger-word", "TOKBOT", "--html", page)
    assert done.returncode == 2, done.stderr
    return page


@pytest.fixture(scope="session")
def fine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the examples, about which there is nothing to say."""
    from tests.report.folders import EXAMPLES
    from tests.report.test_run import check

    page = tmp_path_factory.mktemp("fine") / "report.html"
    assert check(EXAMPLES, "--trigger-word", "TOKBOT", "--html", page).returncode == 0
    return page
