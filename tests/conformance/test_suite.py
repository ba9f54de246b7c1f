"""The protocol's own suite against our server class, over HTTP, in both eras."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mcp import Client
from mcp_types import TextContent

from tests.conformance.node import needs_node, run_node
from tests.conformance.server import fixture_server

REPOSITORY = Path(__file__).parents[2]
EXPECTED_FAILURES = Path(__file__).with_name("expected_failures.yaml")
SUITE = "@modelcontextprotocol/conformance/dist/index.js"


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """Our server with the suite's fixtures, in a process of its own."""
    command = [sys.executable, "-m", "tests.conformance.server", str(tmp_path / "home")]
    log = tmp_path / "server.log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, cwd=REPOSITORY, env=dict(os.environ), stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            port = process.stdout.readline()
            assert port, log.read_text(encoding="utf-8")
            yield f"http://127.0.0.1:{int(port)}/mcp"
        finally:
            process.kill()


def required_scenarios(revision: str, home: Path) -> set[str]:
    """What a server must pass to conform to a revision, as it was frozen when that was published."""
    listed = run_node(SUITE, "list", "--server", "--requirements", revision, home=home, seconds=30).stdout
    servers = listed.split("Server scenarios", 1)[1].split("\n\n", 1)[0]
    return set(re.findall(r"^ +- (\S+)$", servers, re.MULTILINE))


def passed_scenarios(results: Path) -> set[str]:
    """Scenarios with checks that passed; each has a folder, named after it and the time."""
    passed = set()
    for path in results.glob("*/checks.json"):
        if "SUCCESS" in {check["status"] for check in json.loads(path.read_bytes())}:
            passed.add(re.sub(r"^server-|-\d{4}-\d\d-\d\dT[-\d]+Z$", "", path.parent.name))
    return passed


@needs_node
@pytest.mark.timeout(180)
@pytest.mark.parametrize("revision", ["2025-11-25", "2026-07-28"])
def test_the_protocols_own_suite_finds_nothing(url: str, tmp_path: Path, revision: str) -> None:
    """Hosts are written to the protocol, not to us; what the suite warns of counts as a failure too."""
    results = tmp_path / "results"

    run = run_node(
        SUITE, "server", "--url", url, "--suite", "all", "--spec-version", revision,
        "--expected-failures", str(EXPECTED_FAILURES), "-o", str(results), home=tmp_path, seconds=150,
    )  # fmt: skip

    assert run.returncode == 0, run.stdout + run.stderr
    required = required_scenarios(revision, tmp_path)
    assert len(required) >= 30
    assert required <= passed_scenarios(results)


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_the_server_class_takes_any_tool_put_onto_it(home: Path, mode: str) -> None:
    """What the suite examines must be the class itself, not what our own two tools let through."""
    async with Client(fixture_server(home), mode=mode) as client:
        done = await client.call_tool("test_simple_text", {})
        failed = await client.call_tool("test_error_handling", {})
        wrong = await client.call_tool("test_custom_header", {})

    said = [result.content[0].text for result in (done, failed, wrong) if isinstance(result.content[0], TextContent)]
    assert [done.is_error, failed.is_error, wrong.is_error] == [False, True, True]
    assert said[0] == "This is a simple text response for testing."
    assert said[1] == "This tool intentionally returns an error for testing"
    assert "region is required" in said[2]
