"""Finds out what came of a start whose answer never arrived: the provider's list, compared with the journal.

The API has no idempotency key, so this is the only way to know. A finetune that is new since the start was written
down, belongs to no other start and has the parameters that were sent is the one.
"""

import time
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio.to_thread

from bfl_mcp.errors import APIError
from bfl_mcp.finetunes.journal import Entry, Journal, StartInFlightError
from bfl_mcp.finetunes.turns import Turns

if TYPE_CHECKING:
    from bfl_mcp.client import BFLClient

# A finetune's own timestamp is taken for that of a start when it lies so close to it: clocks differ, uploads take time.
_CLOCKS_DIFFER_SECONDS: Final = 60
_LONGEST_UPLOAD_SECONDS: Final = 20 * 60


class Settler:
    """Settles the open starts of one account at one provider."""

    def __init__(self, journal: Journal, turns: Turns, provider: str, account: str, settle_seconds: float) -> None:
        self._journal = journal
        self._turns = turns
        self._provider = provider
        self._account = account
        self._settle_seconds = settle_seconds

    async def settle(self, client: "BFLClient", held_key: str | None = None) -> list[str]:
        """Settle what can be settled, and return the ids the provider lists now.

        An open start is adopted where one finetune fits, stays unclear where several do or where nobody can tell, and
        is released where none does `settle_seconds` after it became unclear. `held_key` is a key the caller owns; keys
        others own are left alone.

        Raises:
            APIError: The provider's list could not be read; nothing is settled then.
        """
        listed = await client.list_finetunes()
        known = _Known(client)
        for entry in await anyio.to_thread.run_sync(self._journal.open_at, self._provider):
            if entry.key == held_key:
                await self._settle(known, await self._disown(entry), listed)
                continue
            try:
                async with self._turns.take(entry.key, wait=False):
                    # Its owner may have finished between the look and the lock.
                    current = await anyio.to_thread.run_sync(self._journal.entry, entry.number)
                    if current.state in ("sending", "unclear"):
                        await self._settle(known, await self._disown(current), listed)
            except StartInFlightError:
                continue
        return listed

    async def look_after(self, entry: Entry) -> Entry:
        """The start as it stands, without asking anybody: one that nobody is sending any more becomes unclear."""
        try:
            async with self._turns.take(entry.key, wait=False):
                return await self._disown(await anyio.to_thread.run_sync(self._journal.entry, entry.number))
        except StartInFlightError:
            return entry

    async def _disown(self, entry: Entry) -> Entry:
        """Whoever was sending it is gone, because its key is ours now."""
        if entry.state != "sending":
            return entry
        await self._leave_unclear(entry, "the server that sent it ended before an answer came")
        return await anyio.to_thread.run_sync(self._journal.entry, entry.number)

    async def _settle(self, known: "_Known", entry: Entry, listed: list[str]) -> None:
        if entry.account != self._account:
            # This account cannot see that one's finetunes.
            return
        claimed = await anyio.to_thread.run_sync(self._journal.finetune_ids, entry.provider)
        candidates = [i for i in listed if i not in entry.known_before and i not in claimed]
        fitting, silent = await _compare(known, entry, candidates)
        if len(fitting) > 1:
            fitting = _nearest_in_time(entry, fitting)
        has_waited = time.time() - entry.changed >= self._settle_seconds
        # A finetune that tells nothing of itself yet may be the one.
        if len(fitting) == 1 and (has_waited or not silent):
            [(finetune_id, details)] = fitting.items()
            if not await self._may_be_another_s(entry, finetune_id, details):
                engine = details.get("engine")
                practice = None if engine is None else engine == "practice"
                await anyio.to_thread.run_sync(partial(self._journal.adopt, entry, finetune_id, practice=practice))
                return
        possible = sorted([*fitting, *silent])
        if possible:
            which = f"any of {', '.join(possible)}" if len(possible) > 1 else possible[0]
            await self._leave_unclear(entry, f"it may be {which}, but the provider's answers do not tell for sure")
        elif has_waited:
            await anyio.to_thread.run_sync(
                partial(self._journal.end, entry.number, "released", problem="it never arrived")
            )

    async def _leave_unclear(self, entry: Entry, problem: str) -> None:
        # Writing it again would start its time anew.
        if (entry.state, entry.problem) != ("unclear", problem):
            await anyio.to_thread.run_sync(partial(self._journal.end, entry.number, "unclear", problem=problem))

    async def _may_be_another_s(self, entry: Entry, finetune_id: str, details: dict[str, Any]) -> bool:
        """Whether a finetune could as well have come from another start of which nobody knows yet what came."""
        return any(
            other.number != entry.number
            and finetune_id not in other.known_before
            and _fits(details, other)
            and _is_near(details, other) is not False
            for other in await anyio.to_thread.run_sync(self._journal.open_at, self._provider)
        )


class _Known:
    """What a provider tells of its finetunes, each asked for once in a round of settling."""

    def __init__(self, client: "BFLClient") -> None:
        self._client = client
        self._details: dict[str, dict[str, Any]] = {}

    async def details(self, finetune_id: str) -> dict[str, Any]:
        """Its details; none where they cannot be read. It is listed, so it exists: fresh ones answer 404 and 500."""
        if finetune_id not in self._details:
            try:
                self._details[finetune_id] = await self._client.get_finetune_details(finetune_id)
            except APIError:
                self._details[finetune_id] = {}
        return self._details[finetune_id]


async def _compare(known: _Known, entry: Entry, candidates: list[str]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Those that have what was sent, with their details, and those that tell nothing by which to compare them."""
    fitting, silent = {}, []
    for finetune_id in candidates:
        details = await known.details(finetune_id)
        if not _told(details, entry):
            silent.append(finetune_id)
        elif _fits(details, entry):
            fitting[finetune_id] = details
    return fitting, silent


def _told(details: dict[str, Any], entry: Entry) -> dict[str, Any]:
    """The parameters that were sent and are told back."""
    return {name: value for name, value in entry.parameters.items() if details.get(name) is not None}


def _fits(details: dict[str, Any], entry: Entry) -> bool:
    """Whether every parameter that is told back is the one sent. What is not told back speaks for nothing."""
    told = _told(details, entry)
    return bool(told) and all(details[name] == value for name, value in told.items())


def _is_near(details: dict[str, Any], entry: Entry) -> bool | None:
    """Whether a finetune was made while the start was under way, by its own timestamp; None where it tells none."""
    try:
        moment = datetime.fromisoformat(str(details.get("timestamp")))
    except ValueError:
        return None
    made = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return -_CLOCKS_DIFFER_SECONDS <= made - entry.created <= _LONGEST_UPLOAD_SECONDS


def _nearest_in_time(entry: Entry, fitting: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The one made while the start was under way, if the timestamps rule out all others; else all."""
    near = {name: details for name, details in fitting.items() if _is_near(details, entry) is not False}
    return near if len(near) == 1 else fitting
