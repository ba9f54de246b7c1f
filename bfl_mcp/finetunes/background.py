"""Work that goes on while nobody waits for it, and whose outcome is kept for whoever asks next."""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Generic, TypeVar

import anyio
from anyio.abc import TaskGroup

_T = TypeVar("_T")

OnProgress = Callable[[float, float, str], Coroutine[Any, Any, None]]
"""Takes how much is done, of how much, and a sentence about it."""

_SECONDS_BETWEEN_REPORTS: Final = 0.5


class Background(Generic[_T]):
    """A piece of work of its own, in the task group of the process rather than of a request.

    A request that is cancelled, or has waited long enough, leaves it running.
    """

    def __init__(self, tasks: TaskGroup, work: "Callable[[Background[_T]], Awaitable[_T]]") -> None:
        self.doing = ""
        self._finished = anyio.Event()
        self._outcome: list[_T] = []
        self._failure: BaseException | None = None
        self._ended: float | None = None
        tasks.start_soon(self._run, work)

    @property
    def is_finished(self) -> bool:
        return self._finished.is_set()

    @property
    def finished_for(self) -> float:
        """Seconds since its end; 0 while it goes on."""
        return 0.0 if self._ended is None else anyio.current_time() - self._ended

    @property
    def has_failed(self) -> bool:
        return self._failure is not None

    def report(self, doing: str) -> None:
        """Say how far it is. Any thread may."""
        self.doing = doing

    async def wait(self, seconds: float, on_progress: OnProgress) -> bool:
        """Wait for its end, and tell meanwhile how far it is. Returns whether it has ended."""
        began = anyio.current_time()
        told = 0.0
        while not self.is_finished:
            left = began + seconds - anyio.current_time()
            if left <= 0:
                return False
            with anyio.move_on_after(min(_SECONDS_BETWEEN_REPORTS, left)):
                await self._finished.wait()
            elapsed = anyio.current_time() - began
            if elapsed > told:
                told = elapsed
                await on_progress(elapsed, seconds, self.doing)
        return True

    def result(self) -> _T:
        """Its outcome.

        Raises:
            BaseException: What ended it.
        """
        if self._failure is not None:
            raise self._failure
        return self._outcome[0]

    async def _run(self, work: "Callable[[Background[_T]], Awaitable[_T]]") -> None:
        try:
            self._outcome.append(await work(self))
        except anyio.get_cancelled_exc_class():
            self._failure = ConnectionAbortedError("the server is ending")
            raise
        except Exception as error:  # noqa: BLE001 - it is raised where somebody waits for it
            self._failure = error
        finally:
            self._ended = anyio.current_time()
            self._finished.set()
