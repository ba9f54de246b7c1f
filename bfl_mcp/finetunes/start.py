"""From a folder to a started finetune, exactly once: pack, ask, settle, write down, send, write down, tell."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.from_thread
import anyio.to_thread
from anyio.abc import TaskGroup
from pydantic import BaseModel, Field

from bfl_mcp.config import Settings
from bfl_mcp.contract import BFL_TRAINING_CLOSED_ON, TrainingParameters
from bfl_mcp.errors import APIError, DatasetError, NotFoundError, OutcomeUnknownError, quote_foreign
from bfl_mcp.finetunes.background import Background, OnProgress
from bfl_mcp.finetunes.journal import Entry, Intent, Journal, JournalError
from bfl_mcp.finetunes.provider import Provider
from bfl_mcp.finetunes.settle import settle_open_starts
from bfl_mcp.finetunes.spend import Quote, SpendRefusedError, check_spend_limit, quote_training
from bfl_mcp.finetunes.status import StartState, read_status

if TYPE_CHECKING:
    from bfl_mcp.client import BFLClient
    from bfl_mcp.dataset import Archive

logger = logging.getLogger(__name__)

_ANSWER_SECONDS: Final = 45.0
"""Hosts give up after 60 seconds; what takes longer goes on, and the same call again returns its outcome."""

_OUTCOME_KEPT_SECONDS: Final = 600.0
"""How long the outcome of a start that nobody waited for is kept for the same call again."""

_SKIPPED_LISTED: Final = 40
_ARCHIVES_KEPT: Final = 2
_WIRE_SECONDS_ON_CLOSE: Final = 30.0


class SkippedFile(BaseModel):
    """A file of the folder that was left out."""

    name: str = Field(description="File name.")
    reason: str = Field(description="Why it was left out.")


class FinetuneStarted(BaseModel):
    """What came of a call to create_finetune."""

    finetune_id: str | None = Field(default=None, description="Id for get_finetune_details; absent until known.")
    started: bool = Field(description="Whether a training was started; false too if the same one exists already.")
    state: StartState | None = Field(
        default=None, description="sending: goes on, call again for the outcome. Absent on a dry run."
    )
    provider: str = Field(description="Whose server trains.")
    practice: bool | None = Field(default=None, description="True where nothing is really trained; absent if unknown.")
    cost_usd: float | None = Field(default=None, description="Last published price; 0 is free; absent if unknown.")
    images: int | None = Field(default=None, description="Images in the archive.")
    captions: int | None = Field(default=None, description="Images with a caption of their own.")
    skipped: list[SkippedFile] | None = Field(default=None, description="Files left out.")
    archive_bytes: int | None = Field(default=None, description="Size of the ZIP in bytes.")
    archive_sha256: str | None = Field(default=None, description="Identity of the dataset: same folder, same value.")
    parameters: dict[str, Any] = Field(description="Training parameters as sent.")
    dry_run: bool = Field(description="Whether this was a rehearsal.")
    summary: str = Field(description="What happened.")
    next_step: str = Field(description="What to do next.")


@dataclass(frozen=True, slots=True)
class StartRequest:
    """What the agent asks for."""

    folder: str
    parameters: TrainingParameters
    dry_run: bool = False
    allow_duplicate: bool = False
    confirm_cost_usd: float | None = None

    @property
    def sent(self) -> dict[str, Any]:
        """The parameters as they are sent; a learning rate that was not given is left out."""
        names = set(TrainingParameters.model_fields)
        return self.parameters.model_dump(mode="json", include=names, exclude_none=True)

    @property
    def fingerprint(self) -> str:
        """The same for calls that mean the same start, as far as that can be told without reading the folder."""
        sent = {name: value for name, value in self.sent.items() if name != "finetune_comment"}
        return json.dumps([self.folder, sent, self.allow_duplicate], sort_keys=True)


@dataclass(frozen=True, slots=True)
class _Packed:
    """An archive with what the folder looked like when it was made."""

    archive: "Archive"
    stamp: str


class Starts:
    """All starts of one server process. Work runs in `tasks`, so that no request that ends takes it along."""

    def __init__(
        self,
        settings: Settings,
        provider: Provider,
        connect: Callable[[], Awaitable["BFLClient"]],
        tasks: TaskGroup,
    ) -> None:
        self._settings = settings
        self._provider = provider
        self._connect = connect
        self._tasks = tasks
        self._journal: Journal | None = None
        self._packing: dict[str, Background[_Packed]] = {}
        self._sending: dict[str, Background[FinetuneStarted]] = {}
        self._asked: dict[str, str] = {}
        self._turns: dict[str, anyio.Lock] = {}
        self._is_our_trainer = False
        self.on_the_wire = 0
        """How many starts have left, or are leaving, and have no outcome in the journal yet."""

    # --- what the tools call --------------------------------------------------------------------------------------

    async def start(self, request: StartRequest, *, approved: bool | None, on_progress: OnProgress) -> FinetuneStarted:
        """Start one finetune, or return the one that the same request started before.

        `approved` is what the person answered, None where nobody was asked.

        Raises:
            DatasetError: The folder cannot be trained on; every fault is named and nothing was sent.
            SpendRefusedError: It costs money and nobody has agreed to it; nothing was sent.
            APIError: The provider refused or could not be reached; nothing was started.
            OutcomeUnknownError: It was sent and may be running.
        """
        began = anyio.current_time()
        key = request.fingerprint

        async def tell(_done: float, _total: float, doing: str) -> None:
            # Packing and sending are one wait for whoever listens.
            await on_progress(anyio.current_time() - began, _ANSWER_SECONDS, doing)

        if request.dry_run:
            packed = await self._pack(request, _ANSWER_SECONDS, tell)
            return self._still_packing(request) if packed is None else self._rehearsed(request, packed)
        agreed, agreed_to = False, ""
        self._forget_old_outcomes()
        while key not in self._sending:
            packed = await self._pack(request, _ANSWER_SECONDS, tell)
            if packed is None:
                return self._still_packing(request)
            if packed.archive.sha256 != agreed_to:
                agreed = await self._check_consent(request, packed, approved)
                agreed_to = packed.archive.sha256
            if key not in self._sending and self._take(request, packed):
                self._sending[key] = Background(self._tasks, partial(self._send, request, packed, agreed))
        sending = self._sending[key]
        left = _ANSWER_SECONDS - (anyio.current_time() - began)
        if not await sending.wait(max(left, 1.0), tell):
            return self._still_sending(request, sending)
        if self._sending.get(key) is sending:
            del self._sending[key]
        return sending.result()

    async def question(self, request: StartRequest, *, answered: bool) -> str | None:
        """What the person must be asked before this start, or None where nothing needs their consent.

        Worded the same each time for the same folder. What it asks about is what will be sent: once it was `answered`,
        a folder that has changed is not asked about anew but refused by `start`.
        """
        if not answered:
            self._asked.pop(request.fingerprint, None)
        if request.dry_run or request.fingerprint in self._sending or self._settings.confirm_spend == "never":
            return None
        if (await self._quote(request)).is_free:
            return None
        await (await self._connect()).check_training_is_open()
        packed = await self._pack(request, _ANSWER_SECONDS, _say_nothing)
        if packed is None or await self._needs_no_consent(request, packed):
            return None
        if answered and self._asked.get(request.fingerprint) != packed.archive.sha256:
            return None
        self._asked[request.fingerprint] = packed.archive.sha256
        return self._question(request, packed, await self._quote(request))

    def _forget_old_outcomes(self) -> None:
        """Drop outcomes that nobody asked for in time: the journal tells of them, and the world has gone on."""
        old = [key for key, sending in self._sending.items() if sending.finished_for > _OUTCOME_KEPT_SECONDS]
        for key in old:
            del self._sending[key]

    async def newest(self) -> "Entry | Background[FinetuneStarted] | None":
        """The newest start: under way in this process, or the newest of the journal."""
        self._forget_old_outcomes()
        if self._sending:
            return next(reversed(self._sending.values()))
        journal = await self.journal()
        entry = await anyio.to_thread.run_sync(journal.newest)
        if entry is not None and entry.state in ("sending", "unclear") and entry.provider == self.provider_url:
            try:
                await settle_open_starts(await self._connect(), journal, entry.provider, self._settings.settle_seconds)
            except APIError:
                return entry
            return await anyio.to_thread.run_sync(journal.entry, entry.number)
        return entry

    async def find(self, finetune_id: str) -> Entry | None:
        """The start that made a finetune, if the journal knows it."""
        journal = await self.journal()
        return await anyio.to_thread.run_sync(journal.find, finetune_id)

    @property
    def provider_url(self) -> str:
        """Address of the configured provider, empty for the trainer inside this process."""
        return self._provider.url or ""

    async def journal(self) -> Journal:
        """The journal, opened once."""
        if self._journal is None:
            self._journal = await anyio.to_thread.run_sync(Journal, self._settings.home)
        return self._journal

    async def close(self) -> None:
        """Let what is on the wire finish, for a while; nothing else is waited for."""
        with anyio.move_on_after(_WIRE_SECONDS_ON_CLOSE, shield=True):
            while self.on_the_wire:  # noqa: ASYNC110 - a number that other tasks count down, not one event
                await anyio.sleep(0.02)
        for packing in self._packing.values():
            if packing.is_finished and not packing.has_failed:
                packing.result().archive.close()

    # --- packing ----------------------------------------------------------------------------------------------------

    async def _pack(self, request: StartRequest, seconds: float, on_progress: OnProgress) -> _Packed | None:
        """The folder's archive, packed anew where the folder has changed; None where that takes longer."""
        key = request.folder
        packing = self._packing.get(key)
        if packing is not None and packing.is_finished:
            stamp = await anyio.to_thread.run_sync(_stamp, request.folder)
            if self._packing.get(key) is not packing:
                # Somebody took it for sending, or packs anew, while we looked.
                return await self._pack(request, seconds, on_progress)
            if packing.has_failed or packing.result().stamp != stamp:
                del self._packing[key]
                if not packing.has_failed:
                    packing.result().archive.close()
                packing = None
        if packing is None:
            self._forget_old_archives()
            packing = self._packing[key] = Background(self._tasks, partial(self._work_on_archive, request.folder))
        if not await packing.wait(seconds, on_progress):
            return None
        try:
            packed = packing.result()
        except Exception:
            self._packing.pop(key, None)
            raise
        return packed

    def _take(self, request: StartRequest, packed: _Packed) -> bool:
        """Take an archive for sending, once: another request about the same folder may have been quicker."""
        packing = self._packing.get(request.folder)
        if packing is None or not packing.is_finished or packing.has_failed or packing.result() is not packed:
            return False
        del self._packing[request.folder]
        return True

    def _forget_old_archives(self) -> None:
        finished = [key for key, packing in self._packing.items() if packing.is_finished]
        for key in finished[: max(0, len(self._packing) - _ARCHIVES_KEPT + 1)]:
            packing = self._packing.pop(key)
            if not packing.has_failed:
                packing.result().archive.close()

    async def _work_on_archive(self, folder: str, work: Background[_Packed]) -> _Packed:
        from bfl_mcp.dataset import pack_dataset, read_dataset

        def pack() -> _Packed:
            stamp = _stamp(folder)
            dataset = read_dataset(Path(folder))
            total = len(dataset.images)

            def on_image(done: int) -> None:
                anyio.from_thread.check_cancelled()
                work.report(f"{done} of {total} images packed")

            archive = pack_dataset(
                dataset,
                max_images=self._provider.max_images,
                max_megapixels=self._settings.max_megapixels,
                on_image=on_image,
            )
            return _Packed(archive, stamp)

        packed = await anyio.to_thread.run_sync(pack)
        limit = self._provider.max_upload_bytes
        # Base64 makes four bytes of three.
        if limit is not None and packed.archive.size_bytes * 4 / 3 > limit:
            packed.archive.close()
            raise DatasetError(
                f"The archive has {_megabytes(packed.archive.size_bytes)}; {self._provider.name} takes at most "
                f"{_megabytes(limit * 3 // 4)}. Nothing was sent. Use fewer images, let them be shrunk "
                "(BFL_MCP_MAX_MEGAPIXELS), or raise BFL_TRAINER_MAX_UPLOAD_MB."
            )
        return packed

    # --- consent ----------------------------------------------------------------------------------------------------

    async def _quote(self, request: StartRequest) -> Quote:
        quote = self._known_quote(request)
        if quote.usd is not None:
            return quote
        client = await self._connect()
        # Any answer tells whose server it is.
        await client.list_finetunes()
        self._is_our_trainer = client.is_our_trainer
        return self._known_quote(request)

    def _known_quote(self, request: StartRequest) -> Quote:
        return quote_training(self._provider, request.parameters.iterations, is_our_trainer=self._is_our_trainer)

    async def _needs_no_consent(self, request: StartRequest, packed: _Packed) -> bool:
        """Whether nothing will be spent: the same start exists already, or the limit will refuse it."""
        journal = await self.journal()
        intent = self._intent(request, packed.archive, None)
        quote = await self._quote(request)
        limit = self._settings.spend_limit_usd
        if limit is not None and quote.usd and await anyio.to_thread.run_sync(journal.spent_usd) + quote.usd > limit:
            return True
        repeats = await anyio.to_thread.run_sync(journal.repeats, intent.key)
        return bool(repeats) and not request.allow_duplicate

    async def _check_consent(self, request: StartRequest, packed: _Packed, approved: bool | None) -> bool:
        """Whether money may be spent on this start. False where none will be, as far as can be told beforehand.

        Raises:
            SpendRefusedError: Money would be spent and nobody has agreed to it.
        """
        asked_about = self._asked.pop(request.fingerprint, None)
        quote = await self._quote(request)
        if quote.is_free or self._settings.confirm_spend == "never":
            return True
        # Nobody is asked for money that the provider would not take.
        await (await self._connect()).check_training_is_open()
        if await self._needs_no_consent(request, packed):
            return False
        if approved is None:
            asked_before = asked_about == packed.archive.sha256
            if asked_before and request.confirm_cost_usd == quote.confirmation_usd:
                return True
            # Only the very archive that the question was about may be confirmed, and only after the question.
            self._asked[request.fingerprint] = packed.archive.sha256
            raise SpendRefusedError(
                f"Not started yet, nothing was sent or charged. {self._question(request, packed, quote)} Ask the "
                "person. If they agree, call create_finetune again with the same arguments and "
                f"confirm_cost_usd={quote.confirmation_usd:g}."
            )
        if asked_about is None:
            raise SpendRefusedError(
                f"Not started yet, nothing was sent or charged. Price: {quote.words}. The person could not be asked "
                "this time. Call create_finetune again with the same arguments, and they will be."
            )
        if asked_about != packed.archive.sha256:
            raise SpendRefusedError(
                f"Not started, nothing was sent or charged: the folder {quote_foreign(request.folder)!r} changed after "
                "the person was asked about it. Call create_finetune again, and they will be asked anew."
            )
        if not approved:
            raise SpendRefusedError(
                "Not started, nothing was sent or charged: the person was asked and did not agree. Ask what they would "
                "like to change."
            )
        return True

    def _question(self, request: StartRequest, packed: _Packed, quote: Quote) -> str:
        sent = ", ".join(f"{name} {value}" for name, value in request.sent.items() if name != "finetune_comment")
        return (
            f"Start the finetune {quote_foreign(request.parameters.finetune_comment, 80)!r} at {self._provider.name}? "
            f"Price: {quote.words}. It sends {_count(packed.archive)}, {_megabytes(packed.archive.size_bytes)}, from "
            f"{quote_foreign(request.folder)!r}, with {quote_foreign(sent)}."
        )

    # --- sending ----------------------------------------------------------------------------------------------------

    async def _send(
        self, request: StartRequest, packed: _Packed, agreed: bool, work: Background[FinetuneStarted]
    ) -> FinetuneStarted:
        archive = packed.archive
        try:
            work.report("asking the provider what it has")
            journal = await self.journal()
            client = await self._connect()
            await client.check_training_is_open()
            intent = self._intent(request, archive, (await self._quote(request)).usd)
            # Inside this process the same start waits for its turn; of another process only the name is told.
            async with self._turns.setdefault(intent.key, anyio.Lock()):
                with journal.own(intent.key):
                    return await self._send_owned(request, archive, intent, agreed, journal, client, work)
        finally:
            archive.close()

    async def _send_owned(
        self,
        request: StartRequest,
        archive: "Archive",
        intent: Intent,
        agreed: bool,
        journal: Journal,
        client: "BFLClient",
        work: Background[FinetuneStarted],
    ) -> FinetuneStarted:
        try:
            listed = await settle_open_starts(
                client, journal, intent.provider, self._settings.settle_seconds, intent.key
            )
        except APIError as error:
            raise APIError(
                f"{error} Nothing was sent: before each start the provider's list of finetunes is read, so that what "
                "came of it can be told even if the answer gets lost."
            ) from None
        for entry in await anyio.to_thread.run_sync(journal.repeats, intent.key):
            if request.allow_duplicate:
                break
            existing = await self._existing(request, archive, entry, listed, client, journal)
            if existing is not None:
                return existing
        quote = await self._quote(request)
        # Told here first, and held to where the row is written.
        check_spend_limit(quote.usd, await anyio.to_thread.run_sync(journal.spent_usd), self._settings.spend_limit_usd)
        if not agreed and not quote.is_free:
            # It looked like a repeat, which costs nothing, until the provider was asked.
            raise SpendRefusedError(
                "Not started yet, nothing was sent or charged: the earlier start of the same failed, was deleted or "
                f"never arrived, so this would be a new one. Price: {quote.words}. Call create_finetune again with the "
                "same arguments, and the person will be asked."
            )
        others = await anyio.to_thread.run_sync(journal.others_of, intent)
        number = await anyio.to_thread.run_sync(journal.begin, intent, listed, self._settings.spend_limit_usd)
        work.report(f"sending {_megabytes(archive.size_bytes)}")
        self.on_the_wire += 1
        try:
            finetune_id, practice = await self._post(archive, intent, number, journal, client)
        finally:
            self.on_the_wire -= 1
        words = self._words_for_start(request, archive, finetune_id, quote, others, practice=bool(practice))
        return self._facts(
            request, archive, finetune_id=finetune_id, started=True, state="queued", practice=practice, **words
        )

    async def _post(
        self, archive: "Archive", intent: Intent, number: int, journal: Journal, client: "BFLClient"
    ) -> tuple[str, bool | None]:
        """Send one start whose row is written, and write down what came of it, whatever that is."""
        try:
            created = await client.create_finetune(archive.file, archive.size_bytes, intent.parameters)
        except OutcomeUnknownError as error:
            await _note(journal.end, number, "unclear", problem=str(error))
            adopted = await self._adopt(number, intent, journal, client)
            if adopted is None:
                raise
            return adopted
        except APIError as error:
            await _note(journal.end, number, "refused", problem=str(error))
            raise
        except BaseException:
            # The process is ending, or something unforeseen happened: it may have arrived.
            with anyio.CancelScope(shield=True):
                await _note(journal.end, number, "unclear", problem="the server ended before an answer came")
            raise
        practice = None if created.engine is None else created.engine == "practice"
        with anyio.CancelScope(shield=True):
            await _note(journal.end, number, "started", finetune_id=created.finetune_id, practice=practice)
        return created.finetune_id, practice

    async def _adopt(
        self, number: int, intent: Intent, journal: Journal, client: "BFLClient"
    ) -> tuple[str, bool | None] | None:
        """Look at once whether the provider has what it did not answer for."""
        try:
            await settle_open_starts(client, journal, intent.provider, self._settings.settle_seconds, intent.key)
            entry = await anyio.to_thread.run_sync(journal.entry, number)
        except (APIError, JournalError):
            return None
        return (entry.finetune_id, entry.practice) if entry.state == "started" and entry.finetune_id else None

    async def _existing(
        self,
        request: StartRequest,
        archive: "Archive",
        entry: Entry,
        listed: list[str],
        client: "BFLClient",
        journal: Journal,
    ) -> FinetuneStarted | None:
        """The answer to a repeat, or None where the earlier start no longer stands in the way."""
        when = ago(time.time() - entry.created)
        name = repr(quote_foreign(entry.comment, 80))
        if entry.state != "started" or entry.finetune_id is None:
            raise OutcomeUnknownError(
                f"Not sent again: the same finetune was sent {when} as {name}, and what came of it is not known yet: "
                f"{quote_foreign(entry.problem or 'no answer came')}. It may be running, and may be billed. It is "
                f"looked for at each call, and given up after {self._settings.settle_seconds:.0f} seconds without a "
                "trace of it. Call create_finetune again with the same arguments then, or with allow_duplicate=true if "
                "the person wants a second one in any case."
            )
        state: str = "unknown"
        try:
            state = (await read_status(client, entry.finetune_id)).state
        except NotFoundError:
            # A fresh one may not be known everywhere yet: gone is what is in no list either, after a while.
            known_for = time.time() - entry.changed
            if entry.finetune_id not in listed and known_for >= self._settings.settle_seconds:
                await _note(journal.end, entry.number, "deleted")
                return None
        except APIError:
            state = "unknown"
        if state == "failed":
            await _note(journal.end, entry.number, "failed")
            return None
        identifier = quote_foreign(entry.finetune_id, 100)
        return self._facts(
            request,
            archive,
            finetune_id=entry.finetune_id,
            started=False,
            state=state,
            practice=entry.practice,
            summary=(
                f"Nothing was sent: the same pictures, captions and parameters were started {when} as {name}. "
                f"That finetune is {state}."
            ),
            next_step=(
                f"Call get_finetune_details with finetune_id {identifier!r}. Only if the person wants a second one of "
                "the same, call create_finetune again with allow_duplicate=true."
            ),
        )

    def _intent(self, request: StartRequest, archive: "Archive", price_usd: float | None) -> Intent:
        return Intent(
            provider=self.provider_url,
            engine="practice" if self._provider.practice else None,
            folder=request.folder,
            comment=request.parameters.finetune_comment,
            images=archive.images,
            archive_sha256=archive.sha256,
            pictures_sha256=archive.pictures_sha256,
            parameters=request.sent,
            price_usd=price_usd,
        )

    # --- words ------------------------------------------------------------------------------------------------------

    def _facts(self, request: StartRequest, archive: "Archive | None" = None, **facts: Any) -> FinetuneStarted:
        known: dict[str, Any] = {}
        if archive is not None:
            known = {
                "images": archive.images,
                "captions": archive.captions,
                "skipped": _list_skipped(archive),
                "archive_bytes": archive.size_bytes,
                "archive_sha256": archive.sha256,
            }
        return FinetuneStarted(
            provider=self._provider.name,
            cost_usd=self._known_quote(request).usd,
            parameters=request.sent,
            dry_run=request.dry_run,
            **known,
            **facts,
        )

    def _still_packing(self, request: StartRequest) -> FinetuneStarted:
        doing = self._packing[request.folder].doing
        return self._facts(
            request,
            started=False,
            state=None if request.dry_run else "sending",
            practice=self._provider.practice,
            summary=f"Still packing the folder: {doing or 'reading it'}. Nothing was sent yet; the work goes on.",
            next_step="Call create_finetune again with the same arguments to go on waiting.",
        )

    def _still_sending(self, request: StartRequest, sending: Background[FinetuneStarted]) -> FinetuneStarted:
        return self._facts(
            request,
            started=False,
            state="sending",
            practice=self._provider.practice,
            summary=f"The start is under way and goes on by itself: {sending.doing}. There is no answer yet.",
            next_step=(
                "Call create_finetune again with the same arguments to learn the outcome: it is sent only once. "
                "get_finetune_details without an id tells it too."
            ),
        )

    def _rehearsed(self, request: StartRequest, packed: _Packed) -> FinetuneStarted:
        archive, provider = packed.archive, self._provider
        summary = (
            f"Dry run: {_count(archive)}, {_megabytes(archive.size_bytes)}, would go to {provider.name}. "
            "Nothing was sent or charged."
        )
        if provider.is_bfl:
            summary += f" Price: {self._known_quote(request).words}."
            next_step = (
                f"Black Forest Labs closed hosted training on {BFL_TRAINING_CLOSED_ON}, so a start there will most "
                "likely be refused, before anything is uploaded. To train, point BFL_API_URL at a server that still "
                "answers this API."
            )
        elif provider.practice:
            summary += " This trainer only practises: it goes through the motions, trains nothing and costs nothing."
            next_step = (
                "Tell the person. To rehearse the whole way, call create_finetune again with dry_run false. To train "
                "for real, BFL_API_URL must name a server that answers BFL's finetuning API and trains."
            )
        else:
            next_step = (
                "Show the person, and ask whether to start: what it costs is between them and that server. Then call "
                "create_finetune again with dry_run false."
            )
        return self._facts(
            request, archive, started=False, practice=provider.practice, summary=summary, next_step=next_step
        )

    def _words_for_start(
        self,
        request: StartRequest,
        archive: "Archive",
        finetune_id: str,
        quote: Quote,
        others: list[Entry],
        *,
        practice: bool,
    ) -> dict[str, str]:
        name = repr(quote_foreign(request.parameters.finetune_comment, 80))
        iterations = request.parameters.iterations
        what = f"{_count(archive)}, {_megabytes(archive.size_bytes)}, {iterations} iterations"
        kind = "practice finetune" if practice else "finetune"
        summary = f"Started the {kind} {name} at {self._provider.name}: {what}."
        if practice:
            summary += " Practice goes through the motions and trains nothing; it costs nothing."
        elif not quote.is_free:
            summary += f" Price: {quote.words}."
        if others:
            other = others[0]
            summary += (
                f" The same pictures were started {ago(time.time() - other.created)} as "
                f"{quote_foreign(other.comment, 80)!r} ({other.finetune_id or 'outcome not known'}), with other "
                "captions or parameters."
            )
        identifier = quote_foreign(finetune_id, 100)
        next_step = f"Call get_finetune_details with finetune_id {identifier!r} and wait_seconds 45 to follow it."
        return {"summary": summary, "next_step": next_step}


async def _say_nothing(_done: float, _total: float, _doing: str) -> None:
    """Progress while the question is prepared: the call itself has not begun."""


async def _note(end: Callable[..., None], *arguments: Any, **facts: Any) -> None:
    """Write an outcome down.

    A journal that cannot be written must not hide the outcome: the row stays open then, and is settled later.
    """
    try:
        await anyio.to_thread.run_sync(partial(end, *arguments, **facts))
    except JournalError as error:
        logger.error("an outcome could not be written down: %s, %s", arguments, error)  # noqa: TRY400 - it is all said


def _stamp(folder: str) -> str:
    """What a folder looks like from outside: names, sizes and times."""
    try:
        with os.scandir(Path(folder.strip().strip("\"'").strip()).expanduser()) as entries:
            seen = sorted(
                (entry.name, status.st_size, status.st_mtime_ns)
                for entry in entries
                for status in (entry.stat(follow_symlinks=False),)
            )
    except (OSError, RuntimeError, ValueError):
        seen = []
    return hashlib.sha256(repr(seen).encode("utf-8", "surrogateescape")).hexdigest()


def _list_skipped(archive: "Archive") -> list[SkippedFile]:
    listed = [SkippedFile(name=item.name, reason=item.reason) for item in archive.skipped[:_SKIPPED_LISTED]]
    if more := len(archive.skipped) - len(listed):
        listed.append(SkippedFile(name=f"… and {more} more", reason="not listed here"))
    return listed


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


def ago(seconds: float) -> str:
    """How long ago something was, in words."""
    if seconds < 90:
        return f"{max(seconds, 0):.0f} seconds ago"
    return f"{seconds / 60:.0f} minutes ago" if seconds < 5400 else f"{seconds / 3600:.0f} hours ago"
