"""A data folder whose workers end with the test, and the app over it."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from filelock import FileLock
from pydantic import SecretStr

from bfl_mcp.trainer.app import create_app
from tests.trainer.processes import end_workers


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    yield folder
    end_workers(folder)


@pytest.fixture
def no_worker(data: Path) -> Iterator[None]:
    """The lock is taken, so whoever looks believes that a worker is at it: jobs stay queued."""
    with FileLock(data / "worker-0.lock"):
        yield


def make_app(data: Path, **others: Any) -> FastAPI:
    return create_app(data, **{"api_key": None, "max_upload_mb": 10, "practice_seconds": 60, **others})


def connect(app: FastAPI, **headers: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://trainer.invalid", headers=headers)


@pytest.fixture
async def api(data: Path, no_worker: None) -> AsyncIterator[httpx.AsyncClient]:
    """The embedded app: no key, no worker."""
    async with connect(make_app(data)) as client:
        yield client


@pytest.fixture
async def guarded(data: Path, no_worker: None) -> AsyncIterator[httpx.AsyncClient]:
    """The app with a key, asked without one."""
    async with connect(make_app(data, api_key=SecretStr("test-key"))) as client:
        yield client
