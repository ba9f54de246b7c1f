"""What this machine has started before: the journal, opened once, and how its open ends at the provider are settled."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from bfl_mcp.config import Settings
from bfl_mcp.errors import APIError
from bfl_mcp.finetunes.journal import Entry, Intent, Journal, account_of
from bfl_mcp.finetunes.provider import Provider
from bfl_mcp.finetunes.request import StartRequest
from bfl_mcp.finetunes.settle import Settler
from bfl_mcp.finetunes.turns import Turns

if TYPE_CHECKING:
    from bfl_mcp.client import BFLClient
    from bfl_mcp.dataset.archive import Archive


class Past:
    """The starts that the journal knows, as the account of now sees them."""

    def __init__(self, settings: Settings, provider: Provider, connect: Callable[[], Awaitable["BFLClient"]]) -> None:
        self._settings = settings
        self._provider = provider
        self._connect = connect
        self._journal: Journal | None = None
        self._opening = anyio.Lock()
        self._turns: Turns | None = None
        self.account = account_of(settings.api_key.get_secret_value() if settings.api_key is not None else None)
        """Tells the account's own starts from those of other keys, without holding the key."""

    @property
    def provider_url(self) -> str:
        """Address of the configured provider, empty for the trainer inside this process."""
        return self._provider.url or ""

    async def journal(self) -> Journal:
        """The journal, opened once.

        Raises:
            JournalError: It cannot be opened.
        """
        async with self._opening:
            if self._journal is None:
                self._journal = await anyio.to_thread.run_sync(Journal, self._settings.home)
            return self._journal

    async def turns(self) -> Turns:
        """Whose turn each key is."""
        journal = await self.journal()
        if self._turns is None:
            self._turns = Turns(journal)
        return self._turns

    async def settler(self) -> Settler:
        """Finds out what came of starts whose answers never arrived."""
        turns = await self.turns()
        return Settler(await self.journal(), turns, self.provider_url, self.account, self._settings.settle_seconds)

    def intent(self, request: StartRequest, archive: "Archive", price_usd: float | None) -> Intent:
        """What the journal will know of a start before it is sent."""
        return Intent(
            provider=self.provider_url,
            account=self.account,
            engine="practice" if self._provider.practice else None,
            folder=request.folder,
            comment=request.parameters.finetune_comment,
            images=archive.images,
            archive_sha256=archive.sha256,
            pictures_sha256=archive.pictures_sha256,
            parameters=request.sent,
            price_usd=price_usd,
        )

    async def find(self, finetune_id: str) -> Entry | None:
        """The start that made a finetune, if the journal knows it."""
        journal = await self.journal()
        return await anyio.to_thread.run_sync(journal.find, finetune_id)

    async def newest(self) -> Entry | None:
        """The newest start. What came of it is looked for where nobody knows yet."""
        journal = await self.journal()
        entry = await anyio.to_thread.run_sync(journal.newest)
        if entry is None or entry.state not in ("sending", "unclear"):
            return entry
        settler = await self.settler()
        entry = await settler.look_after(entry)
        if self.how_to_look_for(entry):
            return entry
        try:
            await settler.settle(await self._connect())
        except APIError:
            return entry
        return await anyio.to_thread.run_sync(journal.entry, entry.number)

    def how_to_look_for(self, entry: Entry) -> str:
        """What must be set before a lost start can be looked for; empty where it is looked for as it is."""
        if entry.provider != self.provider_url:
            return f"Set BFL_API_URL to {entry.provider}" if entry.provider else "Unset BFL_API_URL and BFL_API_KEY"
        if entry.account != self.account:
            return "Set BFL_API_KEY to the key it was sent with"
        return ""
