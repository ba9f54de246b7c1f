"""Work that goes on while nobody waits for it, whose outcome is kept for whoever asks next; and the calls that wait."""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

import anyio
from anyio.abc import TaskGroup

_T = TypeVar("_T")

OnProgress = Callable[[float, float, str], Coroutine[Any, Any, None]]
"""Takes how much is done, of how much, and a sentence about it."""

_SECONDS_BETWEEN_REPORTS = 0.5


class Call:
    """One call to a tool: how long it may still take, in seconds, and who listens meanwhile."""

    def __init__(self, seconds: float, on_progress: OnProgress) -> None:
        self._seconds = seconds
        self._on_progress = on_progress
        self._began = anyio.current_time()
        self._paused: float | None = None
        self._told = 0.0

    @property
    def elapsed(self) -> float:
        """How long it has taken so far, without the time a person was waited for."""
        return anyio.current_time() - self._began

    @property
    def left(self) -> float:
        return max(self._seconds - self.elapsed, 0.0)

    async def tell(self, doing: str) -> None:
        """Report how far it is. Progress rises with each report, as the protocol wants it."""
        elapsed = self.elapsed
        if elapsed > self._told:
            self._told = elapsed
            await self._on_progress(elapsed, max(self._seconds, elapsed), doing)

    def pause(self) -> None:
        """Stop the clock: a person thinks."""
        self._paused = anyio.current_time()

    def resume(self) -> None:
        """Let the clock run on, if it was stopped."""
        if self._paused is not None:
            self._began += anyio.current_time() - self._paused
            self._paused = None


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
    def failure(self) -> BaseException | None:
        """What ended it, if something did."""
        return self._failure

    def report(self, doing: str) -> None:
        """Say how far it is. Any thread may."""
        self.doing = doing

    async def wait(self, call: Call, at_least: float = 0.0) -> bool:
        """Wait for its end as long as the call lasts, and tell meanwhile how far it is. Returns whether it has ended.

        `at_least` seconds are waited even where the call has none left.
        """
        until = anyio.current_time() + max(call.left, at_least)
        while not self.is_finished:
            left = until - anyio.current_time()
            if left <= 0:
                return False
            with anyio.move_on_after(min(_SECONDS_BETWEEN_REPORTS, left)):
                await self._finished.wait()
            await call.tell(self.doing)
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
