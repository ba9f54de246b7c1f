"""From a folder to a started finetune: read, pack, send once, tell."""

import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import anyio.from_thread
import anyio.to_thread
from pydantic import BaseModel, Field

from bfl_mcp.contract import BFL_TRAINING_CLOSED_ON, TrainingParameters
from bfl_mcp.errors import DatasetError, quote_foreign
from bfl_mcp.finetunes.provider import Provider

if TYPE_CHECKING:
    from bfl_mcp.client import BFLClient
    from bfl_mcp.dataset import Archive

OnProgress = Callable[[float, float, str], Coroutine[Any, Any, None]]
"""Takes how much is done, of how much, and a sentence about it."""

_SECONDS_BETWEEN_REPORTS: Final = 0.5
_SKIPPED_LISTED: Final = 40


class SkippedFile(BaseModel):
    """A file of the folder that was left out."""

    name: str = Field(description="File name.")
    reason: str = Field(description="Why it was left out.")


class FinetuneStarted(BaseModel):
    """What came of a call to create_finetune."""

    finetune_id: str | None = Field(default=None, description="Id for get_finetune_details; absent on a dry run.")
    started: bool = Field(description="Whether a training was started.")
    state: Literal["queued"] | None = Field(default=None, description="queued; absent on a dry run.")
    provider: str = Field(description="Whose server trains.")
    practice: bool | None = Field(default=None, description="True where nothing is really trained; absent if unknown.")
    images: int = Field(description="Images in the archive.")
    captions: int = Field(description="Images with a caption of their own.")
    skipped: list[SkippedFile] = Field(description="Files left out.")
    archive_bytes: int = Field(description="Size of the ZIP in bytes.")
    archive_sha256: str = Field(description="Identity of the dataset: the same folder gives the same.")
    parameters: dict[str, Any] = Field(description="Training parameters as sent.")
    dry_run: bool = Field(description="Whether this was a rehearsal.")
    summary: str = Field(description="What happened.")
    next_step: str = Field(description="What to do next.")


async def start_finetune(
    connect: Callable[[], Awaitable["BFLClient"]],
    provider: Provider,
    folder: str,
    parameters: TrainingParameters,
    *,
    max_megapixels: float,
    dry_run: bool,
    on_progress: OnProgress,
) -> FinetuneStarted:
    """Pack a folder and start one finetune from it; on a dry run do all but connect and send.

    Raises:
        DatasetError: The folder cannot be trained on; every fault is named and nothing was sent.
        APIError: The provider refused or could not be reached.
        OutcomeUnknownError: It was sent and may be running.
    """
    sent = parameters.model_dump(mode="json", include=set(TrainingParameters.model_fields), exclude_none=True)
    archive = await _pack(folder, provider, max_megapixels, on_progress)
    try:
        _check_size(archive, provider)
        facts: dict[str, Any] = {
            "provider": provider.name,
            "images": archive.images,
            "captions": archive.captions,
            "skipped": _list_skipped(archive),
            "archive_bytes": archive.size_bytes,
            "archive_sha256": archive.sha256,
            "parameters": sent,
            "dry_run": dry_run,
        }
        if dry_run:
            words = _words_for_dry_run(archive, provider)
            return FinetuneStarted(started=False, practice=provider.practice, **facts, **words)
        # One step more than images, because each notification must be further than the one before.
        await on_progress(archive.images + 1, archive.images + 1, f"sending {_megabytes(archive.size_bytes)}")
        client = await connect()
        created = await client.create_finetune(archive.file, archive.size_bytes, sent)
    finally:
        archive.close()
    practice = None if created.engine is None else created.engine == "practice"
    return FinetuneStarted(
        finetune_id=created.finetune_id,
        started=True,
        state="queued",
        practice=practice,
        **facts,
        **_words_for_start(archive, provider, parameters, created.finetune_id, practice=bool(practice)),
    )


async def _pack(folder: str, provider: Provider, max_megapixels: float, on_progress: OnProgress) -> "Archive":
    """Read and pack in a thread; cancelling the call ends the work after the image in hand."""
    from bfl_mcp.dataset import pack_dataset, read_dataset

    def work() -> "Archive":
        dataset = read_dataset(Path(folder))
        total = len(dataset.images)
        reported = time.monotonic()

        def on_image(done: int) -> None:
            nonlocal reported
            anyio.from_thread.check_cancelled()
            if time.monotonic() - reported >= _SECONDS_BETWEEN_REPORTS:
                reported = time.monotonic()
                anyio.from_thread.run(partial(on_progress, done, total + 1, f"{done} of {total} images packed"))

        return pack_dataset(dataset, max_images=provider.max_images, max_megapixels=max_megapixels, on_image=on_image)

    return await anyio.to_thread.run_sync(work)


def _check_size(archive: "Archive", provider: Provider) -> None:
    limit = provider.max_upload_bytes
    # Base64 makes four bytes of three.
    if limit is not None and archive.size_bytes * 4 / 3 > limit:
        raise DatasetError(
            f"The archive has {_megabytes(archive.size_bytes)}; {provider.name} takes at most "
            f"{_megabytes(limit * 3 // 4)}. Nothing was sent. Use fewer images, let them be shrunk "
            "(BFL_MCP_MAX_MEGAPIXELS), or raise BFL_TRAINER_MAX_UPLOAD_MB."
        )


def _list_skipped(archive: "Archive") -> list[SkippedFile]:
    listed = [SkippedFile(name=item.name, reason=item.reason) for item in archive.skipped[:_SKIPPED_LISTED]]
    if more := len(archive.skipped) - len(listed):
        listed.append(SkippedFile(name=f"… and {more} more", reason="not listed here"))
    return listed


def _words_for_dry_run(archive: "Archive", provider: Provider) -> dict[str, Any]:
    summary = (
        f"Dry run: {_count(archive)}, {_megabytes(archive.size_bytes)}, would go to {provider.name}. "
        "Nothing was sent or charged."
    )
    if provider.is_bfl:
        return {
            "summary": summary,
            "next_step": (
                f"Black Forest Labs closed hosted training on {BFL_TRAINING_CLOSED_ON}, so a start there will most "
                "likely be refused, before anything is uploaded. To train, point BFL_API_URL at a server that still "
                "answers this API."
            ),
        }
    if provider.practice:
        summary += " This trainer only practises: it goes through the motions, trains nothing and costs nothing."
        next_step = (
            "Tell the person. To rehearse the whole way, call create_finetune again with dry_run false. To train for "
            "real, BFL_API_URL must name a server that answers BFL's finetuning API and trains."
        )
    else:
        next_step = (
            "Show the person, and ask whether to start: what it costs is between them and that server. Then call "
            "create_finetune again with dry_run false."
        )
    return {"summary": summary, "next_step": next_step}


def _words_for_start(
    archive: "Archive", provider: Provider, parameters: TrainingParameters, finetune_id: str, *, practice: bool
) -> dict[str, Any]:
    name = repr(quote_foreign(parameters.finetune_comment, 80))
    what = f"{_count(archive)}, {_megabytes(archive.size_bytes)}, {parameters.iterations} iterations"
    if practice:
        summary = (
            f"Started the practice finetune {name} at {provider.name}: {what}. Practice goes through the motions and "
            "trains nothing; it costs nothing."
        )
    else:
        summary = f"Started the finetune {name} at {provider.name}: {what}."
    identifier = quote_foreign(finetune_id, 100)
    return {
        "summary": summary,
        "next_step": f"Call get_finetune_details with finetune_id {identifier!r} and wait_seconds 45 to follow it.",
    }


def _count(archive: "Archive") -> str:
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


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 100_000 else f"{size_bytes / 1e3:.1f} kB"
