"""Archives of folders: packed in the background, kept by what the folder looked like, handed out once."""

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.from_thread
import anyio.to_thread
from anyio.abc import TaskGroup

from bfl_mcp.config import Settings
from bfl_mcp.errors import DatasetError
from bfl_mcp.finetunes.background import Background, Call
from bfl_mcp.finetunes.provider import Provider

if TYPE_CHECKING:
    from bfl_mcp.dataset.access import Access
    from bfl_mcp.dataset.archive import Archive, Examined
    from bfl_mcp.dataset.folder import Dataset
    from bfl_mcp.dataset.judge import Plan
    from bfl_mcp.dataset.prepared import PreparedPictures

_ARCHIVES_KEPT: Final = 2


@dataclass(frozen=True, slots=True)
class Packed:
    """A folder that was examined, with its archive if it has no faults, and what it looked like from outside then."""

    dataset: "Dataset"
    examined: "Examined"
    stamp: str

    @property
    def archive(self) -> "Archive":
        """Its archive. There is one wherever `Packing.pack` gave this."""
        if self.examined.archive is None:
            raise LookupError("a folder with faults has no archive")
        return self.examined.archive

    def close(self) -> None:
        if self.examined.archive is not None:
            self.examined.archive.close()


class Packing:
    """The archives of one server process."""

    def __init__(
        self, settings: Settings, provider: Provider, tasks: TaskGroup, sharing: "Packing | None" = None
    ) -> None:
        """`sharing` lends the pictures that it has prepared, and takes those of this one."""
        self._settings = settings
        self._provider = provider
        self._tasks = tasks
        self._folders: dict[str, Background[Packed]] = {}
        self._sharing = sharing
        self._pictures: PreparedPictures | None = None
        self._is_closed = False

    async def pack(self, folder: str, call: Call) -> Packed | None:
        """The folder's archive, packed anew where the folder has changed; None where that takes longer.

        Raises:
            DatasetError: The folder cannot be trained on; every fault is named.
        """
        packed = await self.examine(folder, call)
        if packed is None:
            return None
        if packed.examined.archive is None:
            from bfl_mcp.dataset.archive import refusal

            raise refusal(packed.dataset, packed.examined)
        from bfl_mcp.dataset.judge import judge_size

        for fault in judge_size(packed.archive.size_bytes, self.plan()):
            raise DatasetError(f"{fault.sentence} Nothing was sent. {fault.remedy}")
        return packed

    async def examine(self, folder: str, call: Call) -> Packed | None:
        """The same with faults or without: one examination serves checking and starting.

        Raises:
            DatasetError: The folder may or can not be read at all.
        """
        packing = self._folders.get(folder)
        if packing is not None and packing.is_finished:
            stamp = await self._stamp_in_time(folder, call.left)
            if stamp is None:
                return None
            if self._folders.get(folder) is not packing:
                # Somebody took it for sending, or packs anew, while we looked.
                return await self.examine(folder, call)
            if packing.failure is not None or packing.result().stamp != stamp:
                self._forget(folder)
                packing = None
        if packing is None:
            self._make_room()
            packing = self._folders[folder] = Background(self._tasks, partial(self._work, folder))
        if not await packing.wait(call):
            return None
        try:
            return packing.result()
        except Exception:
            if self._folders.get(folder) is packing:
                del self._folders[folder]
            raise

    def take(self, folder: str, packed: Packed) -> Background[Packed] | None:
        """Take an archive, once: another request about the same folder may have been quicker, which gives None.

        Whoever has taken it closes it, or puts it back.
        """
        packing = self._folders.get(folder)
        if packing is None or not packing.is_finished or packing.failure is not None or packing.result() is not packed:
            return None
        del self._folders[folder]
        return packing

    def put_back(self, folder: str, packing: Background[Packed]) -> None:
        """Put an archive back that was taken and only read, for whoever needs it next."""
        if self._is_closed or folder in self._folders:
            # Nobody will need it, or somebody packed it anew meanwhile.
            packing.result().close()
        else:
            self._folders[folder] = packing

    async def has_changed(self, folder: str, packed: Packed) -> bool:
        """Whether the folder looks different from when it was packed."""
        return await self._stamp_in_time(folder, 0.0) not in (None, packed.stamp)

    async def _stamp_in_time(self, folder: str, seconds: float) -> str | None:
        """What the folder looks like; None from a disk that does not tell in time, asleep or far away."""
        with anyio.move_on_after(max(seconds, 1.0)):
            return await anyio.to_thread.run_sync(self._stamp, folder, abandon_on_cancel=True)
        return None

    def doing(self, folder: str) -> str:
        """How far a folder is, in words; empty before the first image is packed."""
        packing = self._folders.get(folder)
        return packing.doing if packing is not None else ""

    def plan(self, **known: Any) -> "Plan":
        """What a folder is to be trained for: what the person and the provider decide, and what is `known` besides."""
        from bfl_mcp.dataset.judge import Plan

        return Plan(
            max_megapixels=self._settings.max_megapixels,
            provider=self._provider.name,
            max_upload_bytes=self._provider.max_upload_bytes,
            **known,
        )

    def pictures(self) -> "PreparedPictures":
        """The pictures that were prepared so far, whatever folder they are of."""
        if self._sharing is not None:
            return self._sharing.pictures()
        if self._pictures is None:
            from bfl_mcp.dataset.prepared import PreparedPictures

            self._pictures = PreparedPictures()
        return self._pictures

    def close(self) -> None:
        """Drop all archives that are finished, and those that are put back later, and all pictures."""
        self._is_closed = True
        if self._pictures is not None:
            self._pictures.forget()
        for folder in [folder for folder, packing in self._folders.items() if packing.is_finished]:
            self._forget(folder)

    def _make_room(self) -> None:
        finished = [folder for folder, packing in self._folders.items() if packing.is_finished]
        for folder in finished[: max(0, len(self._folders) - _ARCHIVES_KEPT + 1)]:
            self._forget(folder)

    def _forget(self, folder: str) -> None:
        packing = self._folders.pop(folder)
        if packing.failure is None:
            packing.result().close()

    async def _work(self, folder: str, work: Background[Packed]) -> Packed:
        def pack() -> Packed:
            from bfl_mcp.dataset.archive import examine_dataset
            from bfl_mcp.dataset.folder import read_dataset

            stamp = self._stamp(folder)
            total = 0

            def on_image(done: int) -> None:
                anyio.from_thread.check_cancelled()
                work.report(f"{done} of {total} images packed")

            with read_dataset(folder, self.access()) as dataset:
                total = len(dataset.images)
                examined = examine_dataset(
                    dataset,
                    max_images=self._provider.max_images,
                    max_megapixels=self._settings.max_megapixels,
                    pictures=self.pictures(),
                    on_image=on_image,
                )
            return Packed(dataset, examined, stamp)

        # A decoder that does not come back must not keep the process alive.
        return await anyio.to_thread.run_sync(pack, abandon_on_cancel=True)

    def access(self) -> "Access":
        """What may be read, because it is an agent that names the folders."""
        from bfl_mcp.dataset.access import Access

        return Access.of_agents(self._settings)

    def _stamp(self, folder: str) -> str:
        """What a folder looks like from outside: names, sizes, times, rights, and which files they are."""
        try:
            with self.access().open(folder) as source:
                seen = sorted(
                    (entry.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_mode)
                    for entry in source.entries()
                    for status in (entry.stat(follow_symlinks=False),)
                )
        except (OSError, DatasetError):
            seen = []
        return hashlib.sha256(repr(seen).encode("utf-8", "surrogateescape")).hexdigest()


def count(archive: "Archive") -> str:
    """What an archive holds, in words."""
    images = "1 image" if archive.images == 1 else f"{archive.images} images"
    captions = "1 with a caption" if archive.captions == 1 else f"{archive.captions} with captions"
    match len(archive.skipped):
        case 0:
            skipped = ""
        case 1:
            skipped = ", 1 file skipped"
        case number:
            skipped = f", {number} files skipped"
    return f"{images} ({captions}{skipped})"
