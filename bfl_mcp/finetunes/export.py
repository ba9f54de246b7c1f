"""From a folder to a clean copy of it on the disk: look, pack, write. What takes longer than a call goes on."""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio
import anyio.from_thread
import anyio.to_thread
from anyio.abc import TaskGroup

from bfl_mcp.config import Settings
from bfl_mcp.contract import MAX_IMAGES
from bfl_mcp.finetunes.background import Background, Call
from bfl_mcp.finetunes.exported import DatasetExported, tell_exported
from bfl_mcp.finetunes.packing import Packed, Packing
from bfl_mcp.finetunes.provider import Provider

if TYPE_CHECKING:
    from bfl_mcp.dataset.access import Access

_OUTCOME_KEPT_SECONDS: Final = 600.0
"""How long the outcome of an export that nobody waited for is kept for the same call again."""

_Key = tuple[str, str]


class Exports:
    """All exports of one server process. Work runs in `tasks`, so that no request that ends takes it along."""

    def __init__(self, settings: Settings, provider: Provider, packing: Packing, tasks: TaskGroup) -> None:
        self._settings = settings
        self._tasks = tasks
        self._packing = packing
        # Other trainers take more images than BFL's hosts do.
        self._for_many = packing
        if provider.max_images < MAX_IMAGES:
            self._for_many = Packing(settings, replace(provider, max_images=MAX_IMAGES), tasks, packing)
        self._writing: dict[_Key, Background[DatasetExported]] = {}

    async def export(self, folder: str, to: str, call: Call) -> DatasetExported | None:
        """Write a clean copy of a folder; None where that takes longer than the call lasts.

        The archive is the one that a start would send, and stays there for it.

        Raises:
            DatasetError: The folder cannot be trained on, or nothing may be made at `to`; nothing was written.
        """
        key = (folder, to)
        self._forget_old_outcomes()
        while key not in self._writing:
            if not await self._check_in_time(folder, to, call):
                return None
            packing, packed = await self._pack(folder, call)
            if packed is None:
                return None
            if key not in self._writing and (taken := packing.take(folder, packed)):
                self._writing[key] = Background(self._tasks, partial(self._write, packing, taken, key))
        work = self._writing[key]
        if not await work.wait(call, at_least=1.0):
            return None
        if self._writing.get(key) is work:
            del self._writing[key]
        return work.result()

    def how_far(self, folder: str, to: str) -> str:
        """How far an export is, in words."""
        work = self._writing.get((folder, to))
        doing = work.doing if work is not None else self._packing.doing(folder) or self._for_many.doing(folder)
        return doing or "reading it"

    def close(self) -> None:
        """Drop what was packed for exports alone."""
        self._for_many.close()

    def _forget_old_outcomes(self) -> None:
        for key, work in list(self._writing.items()):
            if work.finished_for > _OUTCOME_KEPT_SECONDS:
                del self._writing[key]

    async def _check_in_time(self, folder: str, to: str, call: Call) -> bool:
        """Look whether the destination is free, before a minute is spent on packing; False from a disk asleep."""
        from bfl_mcp.dataset.export import check_destination

        with anyio.move_on_after(max(call.left, 1.0)):
            await anyio.to_thread.run_sync(check_destination, to, folder, self._access(), abandon_on_cancel=True)
            return True
        return False

    async def _pack(self, folder: str, call: Call) -> tuple[Packing, Packed | None]:
        packing = self._packing
        packed = await packing.examine(folder, call)
        if packed is not None and any(fault.code == "too-many-images" for fault in packed.examined.faults):
            packing = self._for_many
            packed = await packing.examine(folder, call)
        if packed is not None and packed.examined.archive is None:
            from bfl_mcp.dataset.archive import refusal

            raise refusal(packed.dataset, packed.examined)
        return packing, packed

    async def _write(
        self, packing: Packing, taken: Background[Packed], key: _Key, work: Background[DatasetExported]
    ) -> DatasetExported:
        from bfl_mcp.dataset.export import export_archive

        folder, to = key
        packed = taken.result()

        def on_step(done: int, total: int) -> None:
            anyio.from_thread.check_cancelled()
            work.report(f"{done / total:.0%} written")

        def write() -> DatasetExported:
            exported = export_archive(packed.archive, to, packed.dataset.folder, self._access(), on_step)
            return tell_exported(packed, exported)

        try:
            # Not abandoned when the server ends: it ends with the block in hand, and removes what is half written.
            return await anyio.to_thread.run_sync(write)
        finally:
            packing.put_back(folder, taken)

    def _access(self) -> "Access":
        return self._packing.access()
