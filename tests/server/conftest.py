"""The whole server in memory, in both protocol eras, before a fake of BFL or the trainer inside it."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import pytest
from mcp import Client

from bfl_mcp.config import Settings
from bfl_mcp.server import build_server
from tests.fakes.bfl import KEY, FakeBFL

# Nothing listens there: the fake answers. A provider on this machine costs nothing, so nobody is asked.
LOOPBACK = "http://127.0.0.1:9"


class Connect(Protocol):
    """Opens a client to a server before the trainer inside it, or before `fake` at `url`."""

    def __call__(self, fake: FakeBFL | None = None, url: str = LOOPBACK) -> AbstractAsyncContextManager[Client]: ...


@pytest.fixture(params=["legacy", "auto"])
def connect(request: pytest.FixtureRequest, settings: Settings, home: Path) -> Connect:
    """Each test runs with the handshake of the four older revisions, and without one as in 2026-07-28."""

    @asynccontextmanager
    async def open_client(fake: FakeBFL | None = None, url: str = LOOPBACK) -> AsyncIterator[Client]:
        if fake is None:
            server = build_server(settings)
        else:
            configured = Settings.model_validate({"BFL_API_KEY": KEY, "BFL_API_URL": url, "BFL_MCP_HOME": home})
            server = build_server(configured, fake.transport())
        async with Client(server, mode=request.param) as client:
            yield client

    return open_client
