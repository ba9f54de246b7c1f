"""Node packages that test us: where they are, and how they are run."""

import os
import subprocess
from pathlib import Path
from typing import Final

import pytest

# Read while the tests are collected: later the settings of this machine are hidden from them.
_NODE_MODULES: Final = os.environ.get("BFL_MCP_TEST_NODE_MODULES", "")

needs_node = pytest.mark.skipif(
    not _NODE_MODULES,
    reason="BFL_MCP_TEST_NODE_MODULES does not say where the protocol's own suite and inspector are; .ci/run does",
)


def run_node(script: str, *arguments: str, home: Path, seconds: float) -> "subprocess.CompletedProcess[str]":
    """Run a script of the installed packages, and end it after so many seconds. `home` keeps it off the person's."""
    modules = Path(_NODE_MODULES)
    return subprocess.run(
        [modules / "node" / "bin" / "node", modules / script, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        cwd=home,
        env={**os.environ, "HOME": str(home)},
    )
