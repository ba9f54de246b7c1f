"""Whose turn a key is, within a process and between processes."""

import threading
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from bfl_mcp.finetunes.journal import Journal, StartInFlightError
from bfl_mcp.finetunes.turns import Turns


@pytest.fixture
def journal(home: Path) -> Journal:
    return Journal(home)


async def test_a_start_waits_for_a_task_that_settles(journal: Journal) -> None:
    """Asking how it goes must not make a start of the same fail."""
    turns = Turns(journal)
    order: list[str] = []

    async def settle(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with turns.take("k", wait=False):
            task_status.started()
            await anyio.sleep(0.1)
            order.append("settled")

    async with anyio.create_task_group() as tasks:
        await tasks.start(settle)
        async with turns.take("k", wait=True):
            order.append("started")

    assert order == ["settled", "started"]


async def test_settling_does_not_wait_for_a_start(journal: Journal) -> None:
    """Two starts that settle each other's keys would wait for ever."""
    turns = Turns(journal)

    async def settle() -> None:
        with pytest.raises(StartInFlightError):
            async with turns.take("k", wait=False):
                pass

    async with turns.take("k", wait=True), anyio.create_task_group() as tasks:
        tasks.start_soon(settle)


async def test_another_process_that_only_looks_is_waited_for(journal: Journal, home: Path) -> None:
    """A chat window that asks how it goes holds the key for a moment."""
    turns = Turns(journal)
    taken, let_go = threading.Event(), threading.Event()

    def look() -> None:
        with Journal(home).own("k"):
            taken.set()
            let_go.wait(10)

    looker = threading.Thread(target=look)
    looker.start()
    await anyio.to_thread.run_sync(taken.wait)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_after, 0.3, let_go)
        async with turns.take("k", wait=True):
            pass
    looker.join()


async def _after(seconds: float, event: threading.Event) -> None:
    await anyio.sleep(seconds)
    event.set()


async def test_a_cancelled_holder_leaves_nothing_behind(journal: Journal, home: Path) -> None:
    """Neither the lock for others nor a growing table for us."""
    turns = Turns(journal)

    async def hold(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with turns.take("k", wait=True):
            task_status.started()
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        await tasks.start(hold)
        tasks.cancel_scope.cancel()

    assert turns._here == {}
    with Journal(home).own("k"):
        pass
