"""What one looks at before a training: a folder judged, and its images shown. One examination serves all."""

from collections.abc import Mapping
from typing import Any

import anyio.to_thread

from bfl_mcp.config import Settings
from bfl_mcp.finetunes.background import Call
from bfl_mcp.finetunes.checked import DatasetChecked, Detail, tell_checked
from bfl_mcp.finetunes.packing import Packing
from bfl_mcp.finetunes.price import Prices
from bfl_mcp.finetunes.provider import Provider
from bfl_mcp.finetunes.viewed import Picture, view_image, view_page


class Desk:
    """The dataset desk of one server process. What it decoded is kept for the start."""

    def __init__(self, settings: Settings, provider: Provider, packing: Packing, prices: Prices) -> None:
        self._settings = settings
        self._provider = provider
        self._packing = packing
        self._prices = prices

    async def check(
        self, folder: str, plan: Mapping[str, Any], iterations: int | None, detail: Detail, call: Call
    ) -> DatasetChecked | None:
        """Judge a folder without sending anything; None where that takes longer than the call lasts.

        `plan` is what is known of the training: `mode`, `trigger_word`.

        Raises:
            DatasetError: The folder may or can not be read at all.
        """
        packed = await self._packing.examine(folder, call)
        if packed is None:
            return None
        quote = self._prices.known(iterations) if iterations is not None else None

        def tell() -> DatasetChecked:
            return tell_checked(packed, self._provider, quote, self._packing.plan(**plan), detail)

        return await anyio.to_thread.run_sync(tell)

    async def view(self, folder: str, page: int, image: str | None, call: Call) -> Picture | None:
        """A page of the folder's contact sheet, or one image large; None where that takes longer than the call lasts.

        Raises:
            DatasetError: The folder may or can not be read, or has no such page or image.
        """
        packed = await self._packing.examine(folder, call)
        if packed is None:
            return None
        access, home = self._packing.access(), self._settings.home
        if image is not None:
            return await anyio.to_thread.run_sync(view_image, packed, access, image, home)
        return await anyio.to_thread.run_sync(view_page, packed, access, page, home)

    def how_far(self, folder: str) -> str:
        """How far the examination of a folder is, in words."""
        return self._packing.doing(folder) or "reading it"
