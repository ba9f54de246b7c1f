"""Finds the finetune that is meant, asks whoever trained it, and answers from the journal where nobody can be asked."""

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import anyio

from bfl_mcp.errors import APIError, ConfigError, NotFoundError, quoted
from bfl_mcp.finetunes.background import Background, Call, OnProgress
from bfl_mcp.finetunes.journal import Entry
from bfl_mcp.finetunes.past import Past
from bfl_mcp.finetunes.start import Starts
from bfl_mcp.finetunes.started import ago
from bfl_mcp.finetunes.status import FinetuneStatus, StartState, follow_status

if TYPE_CHECKING:
    from bfl_mcp.client import BFLClient

_CALL_SECONDS = 50.0
"""Hosts give up after 60 seconds."""

ClientFor = Callable[[str], Awaitable["BFLClient | None"]]
"""Gives the client for a provider's address, or None where the key must not go."""


async def find_status(
    starts: Starts,
    past: Past,
    client_for: ClientFor,
    finetune_id: str | None,
    wait_seconds: float,
    on_progress: OnProgress,
) -> FinetuneStatus:
    """How a finetune stands, or without an id the newest start.

    Raises:
        NotFoundError: There is none.
        APIError: It could not be read.
    """
    with anyio.move_on_after(_CALL_SECONDS):
        return await _find(starts, past, client_for, finetune_id, Call(wait_seconds, on_progress))
    raise APIError(
        f"The provider took longer than {_CALL_SECONDS:.0f} seconds. Nothing was changed by asking. Ask again in a "
        "minute."
    )


async def _find(
    starts: Starts, past: Past, client_for: ClientFor, finetune_id: str | None, call: Call
) -> FinetuneStatus:
    if finetune_id is not None:
        entry = await _entry(past, finetune_id)
    else:
        newest = await starts.newest()
        if isinstance(newest, Background):
            if not await newest.wait(call):
                return _sending(newest.doing)
            finetune_id = newest.result().finetune_id
            newest = await _entry(past, finetune_id)
        entry = newest
        finetune_id = entry.finetune_id if entry is not None else finetune_id
    if finetune_id is None:
        if entry is not None:
            return _without_id(entry, past.how_to_look_for(entry))
        raise NotFoundError(
            "Nothing was started from this machine yet, as far as the journal knows. Start with create_finetune, or "
            "name the finetune_id."
        )
    client = await client_for(entry.provider if entry is not None else past.provider_url)
    if client is None:
        return _from_journal(entry)
    return await _ask(client, finetune_id, entry, call)


async def _ask(client: "BFLClient", finetune_id: str, entry: Entry | None, call: Call) -> FinetuneStatus:
    try:
        return await follow_status(client, finetune_id, call)
    except APIError as error:
        if entry is None:
            raise
        started = f"The journal knows that it was started {ago(time.time() - entry.created)} as {_name(entry)}."
        raise type(error)(f"{error} {started}") from None


async def _entry(past: Past, finetune_id: str | None) -> Entry | None:
    try:
        return await past.find(finetune_id) if finetune_id is not None else None
    except ConfigError:
        # Looking needs no journal.
        return None


def _name(entry: Entry) -> str:
    return quoted(entry.comment, 80)


def _sending(doing: str) -> FinetuneStatus:
    return FinetuneStatus(
        state="sending",
        details={},
        summary=f"The newest start is under way: {doing}. There is no answer yet.",
        next_step="Call get_finetune_details again without finetune_id, with wait_seconds 45.",
    )


def _without_id(entry: Entry, how_to_look: str) -> FinetuneStatus:
    """What the journal knows of a start that has no id. `how_to_look` is what must be set to look for it."""
    started = ago(time.time() - entry.created)
    state: StartState = "unknown"
    next_step = (
        "Call get_finetune_details again without finetune_id in a minute: each call looks for it. Do not start it "
        "again."
    )
    if entry.state == "released":
        state = "failed"
        summary = (
            f"{_name(entry)} was sent {started} and never arrived: the provider has no trace of it, so nothing runs "
            "and nothing is billed."
        )
        next_step = "Start it again with create_finetune, if the person still wants it."
    elif entry.state == "sending":
        state = "sending"
        summary = f"{_name(entry)} is being sent by another server process on this machine, since {started}."
    else:
        summary = f"{_name(entry)} was sent {started}, and what came of it is not known: it may be running."
        if how_to_look:
            next_step = (
                f"{how_to_look} and restart the server: only then it can be looked for. Do not start it again before."
            )
    return FinetuneStatus(
        state=state,
        details=dict(entry.parameters),
        problem=entry.problem,
        practice=entry.practice,
        summary=summary,
        next_step=next_step,
    )


def _from_journal(entry: Entry | None) -> FinetuneStatus:
    if entry is None:
        # The configured provider can always be asked.
        raise NotFoundError("The provider cannot be asked with this configuration. Check BFL_API_URL.")
    started = ago(time.time() - entry.created)
    return FinetuneStatus(
        finetune_id=entry.finetune_id,
        state="unknown",
        details=dict(entry.parameters),
        practice=entry.practice,
        summary=(
            f"{_name(entry)} was started {started} at {entry.provider}, which is not the configured provider. It was "
            "not asked, because the key must not go there by itself; this is what the journal knows."
        ),
        next_step=f"To ask it, set BFL_API_URL to {entry.provider}, BFL_API_KEY to its key, and restart the server.",
    )
