"""Finds out what came of a start whose answer never arrived: the provider's list, compared with the journal.

The API has no idempotency key, so this is the only way to know. A finetune that is new since the start was written
down, belongs to no other start and has the parameters that were sent is the one.
"""

import time
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio.to_thread

from bfl_mcp.errors import NotFoundError
from bfl_mcp.finetunes.journal import Entry, Journal, StartInFlightError

if TYPE_CHECKING:
    from bfl_mcp.client import BFLClient

# A finetune's own timestamp is taken for that of a start when it lies so close to it: clocks differ, uploads take time.
_CLOCKS_DIFFER_SECONDS: Final = 60
_LONGEST_UPLOAD_SECONDS: Final = 20 * 60


async def settle_open_starts(
    client: "BFLClient", journal: Journal, provider: str, settle_seconds: float, held_key: str | None = None
) -> list[str]:
    """Settle what can be settled at a provider, and return the ids it lists now.

    An open start is adopted where one finetune fits, stays unclear where several do, and is released where none does
    `settle_seconds` after it became unclear. `held_key` is a key the caller owns; keys others own are left alone.

    Raises:
        APIError: The provider's list or a finetune's details could not be read; nothing is settled then.
    """
    listed = await client.list_finetunes()
    for entry in await anyio.to_thread.run_sync(journal.open_at, provider):
        if entry.key == held_key:
            await _settle(client, journal, entry, listed, settle_seconds)
            continue
        owned = journal.own(entry.key)
        try:
            await anyio.to_thread.run_sync(owned.__enter__)
        except StartInFlightError:
            continue
        try:
            # Its owner may have finished between the look and the lock.
            current = await anyio.to_thread.run_sync(journal.entry, entry.number)
            if current.state in ("sending", "unclear"):
                await _settle(client, journal, current, listed, settle_seconds)
        finally:
            owned.__exit__(None, None, None)
    return listed


async def _settle(
    client: "BFLClient", journal: Journal, entry: Entry, listed: list[str], settle_seconds: float
) -> None:
    if entry.state == "sending":
        # Whoever was sending it is gone.
        problem = "the server that sent it ended before an answer came"
        await anyio.to_thread.run_sync(partial(journal.end, entry.number, "unclear", problem=problem))
        entry = await anyio.to_thread.run_sync(journal.entry, entry.number)
    claimed = await anyio.to_thread.run_sync(journal.finetune_ids, entry.provider)
    fitting = await _find_fitting(
        client, entry, [i for i in listed if i not in entry.known_before and i not in claimed]
    )
    if len(fitting) > 1:
        fitting = _nearest_in_time(entry, fitting)
    if len(fitting) == 1 and not await _others_could_own_it(journal, entry):
        [(finetune_id, details)] = fitting.items()
        engine = details.get("engine")
        practice = None if engine is None else engine == "practice"
        await anyio.to_thread.run_sync(partial(journal.adopt, entry, finetune_id, practice=practice))
    elif fitting:
        problem = f"it may be any of {', '.join(sorted(fitting))}"
        if entry.problem != problem:
            await anyio.to_thread.run_sync(partial(journal.end, entry.number, "unclear", problem=problem))
    elif time.time() - entry.changed >= settle_seconds:
        await anyio.to_thread.run_sync(partial(journal.end, entry.number, "released", problem="it never arrived"))


async def _find_fitting(client: "BFLClient", entry: Entry, candidates: list[str]) -> dict[str, dict[str, Any]]:
    fitting = {}
    for finetune_id in candidates:
        try:
            details = await client.get_finetune_details(finetune_id)
        except NotFoundError:
            continue
        if _fits(details, entry):
            fitting[finetune_id] = details
    return fitting


def _fits(details: dict[str, Any], entry: Entry) -> bool:
    """Whether every parameter that was sent and is told back is the same. What is not told back speaks for nothing."""
    told = {name: value for name, value in entry.parameters.items() if details.get(name) is not None}
    return bool(told) and all(details[name] == value for name, value in told.items())


def _nearest_in_time(entry: Entry, fitting: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Those made while the start was under way, if their timestamps tell; else all."""
    near = {
        finetune_id: details
        for finetune_id, details in fitting.items()
        if (made := _timestamp(details.get("timestamp"))) is not None
        and -_CLOCKS_DIFFER_SECONDS <= made - entry.created <= _LONGEST_UPLOAD_SECONDS
    }
    return near if len(near) == 1 else fitting


def _timestamp(value: object) -> float | None:
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


async def _others_could_own_it(journal: Journal, entry: Entry) -> bool:
    """Whether another open start was sent with the very same words, so that a finetune could be that one's."""
    others = await anyio.to_thread.run_sync(journal.open_at, entry.provider)
    return any(other.number != entry.number and other.parameters == entry.parameters for other in others)
