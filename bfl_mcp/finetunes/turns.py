"""Whose turn a key is: one task of this process at a time, and one process of this machine."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import anyio
import anyio.to_thread

from bfl_mcp.finetunes.journal import Journal, StartInFlightError

_OTHERS_SETTLE_SECONDS: Final = 2.0
"""Another process may hold a key just to look what came of it."""


class Turns:
    """Hands out the turns of keys, without blocking the event loop."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._here: dict[str, anyio.Lock] = {}

    @asynccontextmanager
    async def take(self, key: str, *, wait: bool) -> AsyncIterator[None]:
        """Own all starts of a key for the block. With `wait` another task of this process is waited for.

        Raises:
            StartInFlightError: Somebody else has it: a living process, or without `wait` another task.
        """
        turn = self._here.setdefault(key, anyio.Lock())
        try:
            if wait:
                await turn.acquire()
            else:
                turn.acquire_nowait()
        except anyio.WouldBlock:
            raise StartInFlightError("This server is sending the same right now.") from None
        try:
            owned = self._journal.own(key, _OTHERS_SETTLE_SECONDS if wait else 0.0)
            await anyio.to_thread.run_sync(owned.__enter__)
            try:
                yield
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(owned.__exit__, None, None, None)
        finally:
            turn.release()
            if not turn.locked():
                self._here.pop(key, None)
