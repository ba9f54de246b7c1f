"""From a folder to a started finetune, exactly once: pack, ask, settle, write down, send, write down, tell."""

import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from bfl_mcp.config import Settings
from bfl_mcp.contract import TrainerNeed, TrainingParameters
from bfl_mcp.dataset.findings import megabytes
from bfl_mcp.errors import APIError, BFLError, NotFoundError, OutcomeUnknownError, quote_foreign, quoted
from bfl_mcp.finetunes.background import Background, Call
from bfl_mcp.finetunes.checked import DatasetChecked, Detail, Told, tell_checked, tell_findings
from bfl_mcp.finetunes.journal import Entry, Intent, Journal, JournalError, account_of
from bfl_mcp.finetunes.packing import Packed, Packing, count
from bfl_mcp.finetunes.provider import Provider
from bfl_mcp.finetunes.settle import Settler
from bfl_mcp.finetunes.spend import (
    Answer,
    Question,
    Quote,
    SpendGate,
    SpendRefusedError,
    check_price_is_known,
    check_spend_limit,
    quote_training,
)
from bfl_mcp.finetunes.started import NEED_CHARACTERS, FinetuneStarted, Report, ago
from bfl_mcp.finetunes.status import read_status
from bfl_mcp.finetunes.turns import Turns
from bfl_mcp.finetunes.viewed import Picture, view_image, view_page

if TYPE_CHECKING:
    from bfl_mcp.client import BFLClient
    from bfl_mcp.dataset.archive import Archive

logger = logging.getLogger(__name__)

_OUTCOME_KEPT_SECONDS: Final = 600.0
"""How long the outcome of a start that nobody waited for is kept for the same call again."""

_FINDINGS_BYTES: Final = 800
"""How much of a start's answer may be about the images."""

_PRICE_SECONDS: Final = 5.0
"""How long a provider is asked about its price at least, however little time the call has left."""

_WIRE_SECONDS_ON_CLOSE: Final = 30.0


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


@dataclass(frozen=True, slots=True, eq=False)
class _Sending:
    """A start under way, or whose outcome nobody has asked for yet."""

    work: Background[FinetuneStarted]
    packed: Packed


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
        self._packing = Packing(settings, provider, tasks)
        self._gate = SpendGate()
        self._account = account_of(settings.api_key.get_secret_value() if settings.api_key is not None else None)
        self._journal: Journal | None = None
        self._opening = anyio.Lock()
        self._turns: Turns | None = None
        self._sending: dict[str, _Sending] = {}
        self._newest: _Sending | None = None
        self._never_told: set[str] = set()
        self._is_our_trainer = False
        self.on_the_wire = 0
        """How many starts have left, or are leaving, and have no outcome in the journal yet."""

    # --- what the tools call --------------------------------------------------------------------------------------

    async def start(self, request: StartRequest, call: Call, answer: Answer | None) -> FinetuneStarted:
        """Start one finetune, or return the one that the same request started before.

        `answer` is what the person said, None where the host cannot ask.

        Raises:
            DatasetError: The folder cannot be trained on; every fault is named and nothing was sent.
            SpendRefusedError: It costs money and nobody has agreed to it; nothing was sent.
            APIError: The provider refused or could not be reached; nothing was started.
            OutcomeUnknownError: It was sent and may be running.
        """
        if request.dry_run:
            return await self._rehearse(request, call)
        key = request.fingerprint
        self._forget_old_outcomes()
        request = self._as_meant(request)
        agreed, agreed_to = False, ""
        is_left_over = key in self._sending
        while key not in self._sending:
            packed = await self._packing.pack(request.folder, call)
            if packed is None:
                return self._still_packing(request)
            if packed.archive.sha256 != agreed_to:
                agreed = await self._check_consent(request, packed, call, answer)
                agreed_to = packed.archive.sha256
            if key not in self._sending and self._packing.take(request.folder, packed):
                work = Background(self._tasks, partial(self._send, request, packed, agreed))
                self._newest = self._sending[key] = _Sending(work, packed)
        sending = self._sending[key]
        if not await sending.work.wait(call, at_least=1.0):
            return self._report(request).still_sending(sending.work.doing)
        if self._sending.get(key) is sending:
            del self._sending[key]
        # What got lost may have been made: the next call like this one looks for it, and does not make another.
        self._never_told.discard(key)
        if isinstance(sending.work.failure, OutcomeUnknownError) and request.allow_duplicate:
            self._never_told.add(key)
        outcome = sending.work.result()
        if is_left_over and outcome.started and await self._packing.has_changed(request.folder, sending.packed):
            outcome = self._report(request).of_an_earlier_folder(outcome)
        return outcome

    async def _rehearse(self, request: StartRequest, call: Call) -> FinetuneStarted:
        packed = await self._packing.pack(request.folder, call)
        if packed is None:
            return self._still_packing(request)
        need = await self._ask_need_of_rehearsed(request, packed, call)
        return (await self._report_on(request, packed)).rehearsed(packed.archive, need)

    async def _ask_need_of_rehearsed(
        self, request: StartRequest, packed: Packed, call: Call
    ) -> TrainerNeed | str | None:
        """What our trainer says that it takes, or why it could not be asked; None where somebody else trains."""
        if self._provider.is_bfl or self._provider.practice:
            return None
        try:
            with anyio.fail_after(max(call.left, _PRICE_SECONDS)):
                client = await self._connect()
                need = await client.ask_need(request.sent, packed.archive.images)
                self._is_our_trainer = client.is_our_trainer
        except TimeoutError:
            return "It did not answer in time."
        except BFLError as error:
            # A rehearsal is about the folder: a provider that is away for a while is no reason to refuse it.
            return str(error)
        return need

    async def question(self, request: StartRequest, call: Call, *, answered: bool) -> Question | None:
        """What the person must be asked before this start, or None where nothing needs their consent.

        Worded the same each time for the same folder. What it asks about is what will be sent: once it was `answered`,
        a folder that has changed is refused.

        Raises:
            SpendRefusedError: The answer came too late, or to a question about a folder that has changed.
            DatasetError, APIError: As for `start`, which would meet the same.
        """
        self._forget_old_outcomes()
        if request.dry_run or request.fingerprint in self._sending or self._settings.confirm_spend == "never":
            return None
        request = self._as_meant(request)
        quote = await self._ask_price(request, call)
        if quote.is_free:
            return None
        packed = await self._packing.pack(request.folder, call)
        if packed is None or await self._needs_no_consent(request, packed, quote):
            return None
        question = self._question(request, packed, quote)
        if answered:
            self._gate.check_answered(question)
        else:
            self._gate.ask(question)
        return question

    async def check(
        self, folder: str, plan: Mapping[str, Any], iterations: int | None, detail: Detail, call: Call
    ) -> DatasetChecked | None:
        """Judge a folder without sending anything; None where that takes longer than the call lasts.

        `plan` is what is known of the training: `mode`, `trigger_word`. What was decoded is kept for the start.

        Raises:
            DatasetError: The folder may or can not be read at all.
        """
        packed = await self._packing.examine(folder, call)
        if packed is None:
            return None
        quote = None
        if iterations is not None:
            quote = quote_training(self._provider, iterations, is_our_trainer=self._is_our_trainer)

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

    async def newest(self) -> "Entry | Background[FinetuneStarted] | None":
        """The newest start: the outcome nobody has asked for yet in this process, or the newest of the journal."""
        self._forget_old_outcomes()
        if self._newest is not None and self._newest in self._sending.values():
            return self._newest.work
        journal = await self.journal()
        entry = await anyio.to_thread.run_sync(journal.newest)
        if entry is None or entry.state not in ("sending", "unclear"):
            return entry
        settler = await self._settler()
        entry = await settler.look_after(entry)
        if self.how_to_look_for(entry) == "":
            try:
                await settler.settle(await self._connect())
            except APIError:
                return entry
            return await anyio.to_thread.run_sync(journal.entry, entry.number)
        return entry

    def how_to_look_for(self, entry: Entry) -> str:
        """What must be set before a lost start can be looked for; empty where it is looked for as it is."""
        if entry.provider != self.provider_url:
            return f"Set BFL_API_URL to {entry.provider}" if entry.provider else "Unset BFL_API_URL and BFL_API_KEY"
        if entry.account != self._account:
            return "Set BFL_API_KEY to the key it was sent with"
        return ""

    async def find(self, finetune_id: str) -> Entry | None:
        """The start that made a finetune, if the journal knows it."""
        journal = await self.journal()
        return await anyio.to_thread.run_sync(journal.find, finetune_id)

    @property
    def packing(self) -> Packing:
        """The archives, for what is done with them besides starting."""
        return self._packing

    @property
    def provider_url(self) -> str:
        """Address of the configured provider, empty for the trainer inside this process."""
        return self._provider.url or ""

    async def journal(self) -> Journal:
        """The journal, opened once."""
        async with self._opening:
            if self._journal is None:
                self._journal = await anyio.to_thread.run_sync(Journal, self._settings.home)
            return self._journal

    async def close(self) -> None:
        """Let what is on the wire finish, for a while; nothing else is waited for."""
        with anyio.move_on_after(_WIRE_SECONDS_ON_CLOSE, shield=True):
            while self.on_the_wire:  # noqa: ASYNC110 - a number that other tasks count down, not one event
                await anyio.sleep(0.02)
        self._packing.close()

    def _as_meant(self, request: StartRequest) -> StartRequest:
        """A wanted second start that was made, and whose outcome nobody was told, is asked for, not made once more."""
        return replace(request, allow_duplicate=False) if request.fingerprint in self._never_told else request

    def _forget_old_outcomes(self) -> None:
        """Drop outcomes that nobody asked for in time: the journal tells of them, and the world has gone on."""
        for key, sending in list(self._sending.items()):
            if sending.work.finished_for > _OUTCOME_KEPT_SECONDS:
                del self._sending[key]
                if sending.work.failure is None or isinstance(sending.work.failure, OutcomeUnknownError):
                    self._never_told.add(key)

    # --- consent ----------------------------------------------------------------------------------------------------

    async def _quote(self, request: StartRequest) -> Quote:
        if quote_training(self._provider, request.parameters.iterations, is_our_trainer=False).usd is None:
            client = await self._connect()
            # Any answer tells whose server it is, and only the one of now counts.
            await client.list_finetunes()
            self._is_our_trainer = client.is_our_trainer
        return self._known_quote(request)

    def _known_quote(self, request: StartRequest) -> Quote:
        return quote_training(self._provider, request.parameters.iterations, is_our_trainer=self._is_our_trainer)

    async def _ask_price(self, request: StartRequest, call: Call) -> Quote:
        """What it costs, from a provider that trains: nobody is asked for money that it would not take.

        Raises:
            APIError: It does not train, or does not answer while the call lasts.
        """
        try:
            with anyio.fail_after(max(call.left, _PRICE_SECONDS)):
                quote = await self._quote(request)
                if not quote.is_free:
                    await (await self._connect()).check_training_is_open()
                return quote
        except TimeoutError:
            raise APIError(
                f"Not started, nothing was sent or charged: {self._provider.name} did not answer in time when it was "
                "asked whether it trains. Call create_finetune again with the same arguments."
            ) from None

    async def _needs_no_consent(self, request: StartRequest, packed: Packed, quote: Quote) -> bool:
        """Whether nothing will be spent: the same start exists already, or the limit will refuse it."""
        journal = await self.journal()
        limit = self._settings.spend_limit_usd
        if limit is not None and quote.usd and await anyio.to_thread.run_sync(journal.spent_usd) + quote.usd > limit:
            return True
        if request.allow_duplicate:
            return False
        return bool(await anyio.to_thread.run_sync(journal.repeats, self._intent(request, packed.archive, None).key))

    async def _check_consent(self, request: StartRequest, packed: Packed, call: Call, answer: Answer | None) -> bool:
        """Whether money may be spent on this start. False where none will be, as far as can be told beforehand.

        Raises:
            SpendRefusedError: Money would be spent and nobody has agreed to it.
        """
        quote = await self._ask_price(request, call)
        if quote.is_free:
            return False
        if self._settings.confirm_spend == "never":
            check_price_is_known(quote, self._settings.spend_limit_usd)
            return True
        if await self._needs_no_consent(request, packed, quote):
            return False
        self._gate.check(self._question(request, packed, quote), answer, request.confirm_cost_usd)
        return True

    def _question(self, request: StartRequest, packed: Packed, quote: Quote) -> Question:
        archive = packed.archive
        sent = ", ".join(
            f"{name} {quoted(value) if name == 'trigger_word' else value}"
            for name, value in request.sent.items()
            if name != "finetune_comment"
        )
        # Ours comes last, after all that others may have worded.
        text = (
            f"Start the finetune {quoted(request.parameters.finetune_comment, 80)} at {self._provider.name}? It sends "
            f"{count(archive)}, {megabytes(archive.size_bytes)}, from {quoted(request.folder)} (archive "
            f"{archive.sha256[:12]}), with {quote_foreign(sent, 800)}. Price: {quote.words}."
        )
        if request.allow_duplicate:
            text += " It is started and paid for even if the same exists already."
        return Question(f"{archive.sha256} {request.fingerprint}", text, quote)

    # --- sending ----------------------------------------------------------------------------------------------------

    async def _send(
        self, request: StartRequest, packed: Packed, agreed: bool, work: Background[FinetuneStarted]
    ) -> FinetuneStarted:
        archive = packed.archive
        try:
            work.report("asking the provider what it has")
            settler, journal = await self._settler(), await self.journal()
            client = await self._connect()
            await client.check_training_is_open()
            quote = await self._quote(request)
            intent = self._intent(request, archive, quote.usd)
            async with self._turns_of(journal).take(intent.key, wait=True):
                listed = await self._settle_before(settler, client, intent)
                need = await self._ask_need(request, packed, client)
                if not request.allow_duplicate:
                    for entry in await anyio.to_thread.run_sync(journal.repeats, intent.key):
                        if entry.practice and need is not None and need.engine != "practice":
                            # A rehearsal does not stand in the way of the real thing.
                            continue
                        existing = await self._existing(entry, listed, client, journal)
                        if existing is not None:
                            finetune_id, state = existing
                            report = await self._report_on(request, packed)
                            return report.repeated(archive, entry, finetune_id, state)
                if need is not None and not need.fits:
                    raise APIError(
                        f"Not started, nothing was sent or charged: {self._provider.name} cannot train this. It says: "
                        f"{quoted(need.sentence, NEED_CHARACTERS)}"
                    )
                # Told here first, and held to where the row is written.
                spent = await anyio.to_thread.run_sync(journal.spent_usd)
                check_spend_limit(quote.usd, spent, self._settings.spend_limit_usd)
                if not agreed and not quote.is_free:
                    # It looked like a repeat, or free, which costs nothing, until the provider was asked.
                    raise SpendRefusedError(
                        "Not started yet, nothing was sent or charged: this would be a new start that costs money "
                        "(an earlier one of the same failed, was deleted or never arrived, or the provider is no "
                        f"longer a free one). Price: {quote.words}. Call create_finetune again with the same "
                        "arguments, and the person will be asked."
                    )
                others = await anyio.to_thread.run_sync(journal.others_of, intent)
                report = await self._report_on(request, packed)
                number = await anyio.to_thread.run_sync(journal.begin, intent, listed, self._settings.spend_limit_usd)
                work.report(f"sending {megabytes(archive.size_bytes)}")
                self.on_the_wire += 1
                try:
                    finetune_id, practice = await self._post(archive, intent, number, journal, client)
                finally:
                    self.on_the_wire -= 1
            return report.started(archive, finetune_id, others, practice=practice)
        finally:
            archive.close()

    async def _ask_need(self, request: StartRequest, packed: Packed, client: "BFLClient") -> TrainerNeed | None:
        """What our trainer says that it takes, before a dataset is uploaded in vain; None where it does not say."""
        if self._provider.practice or not client.is_our_trainer:
            return None
        try:
            return await client.ask_need(request.sent, packed.archive.images)
        except APIError:
            # The start itself meets the same, and has the words.
            return None

    async def _settle_before(self, settler: Settler, client: "BFLClient", intent: Intent) -> list[str]:
        """What the provider lists before the start, with all open starts settled.

        Raises:
            APIError: It cannot be read; without it nobody could tell later what came of a lost answer.
        """
        try:
            return await settler.settle(client, intent.key)
        except APIError as error:
            raise APIError(
                f"{error} Nothing was sent: before each start the provider's list of finetunes is read, so that what "
                "came of it can be told even if the answer gets lost."
            ) from None

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
            await (await self._settler()).settle(client, intent.key)
            entry = await anyio.to_thread.run_sync(journal.entry, number)
        except (APIError, JournalError):
            return None
        return (entry.finetune_id, entry.practice) if entry.state == "started" and entry.finetune_id else None

    async def _existing(
        self, entry: Entry, listed: list[str], client: "BFLClient", journal: Journal
    ) -> tuple[str, str] | None:
        """The finetune of an earlier start of the same and its state; None where it no longer stands in the way.

        Raises:
            OutcomeUnknownError: What came of the earlier start is not known.
        """
        if entry.state != "started" or entry.finetune_id is None:
            raise OutcomeUnknownError(self._words_for_unclear(entry))
        state: str = "unknown"
        try:
            state = (await read_status(client, entry.finetune_id)).state
        except NotFoundError:
            # A fresh one may not be known everywhere yet, and another account never sees it: gone is what this account
            # started, and finds in no list either after a while.
            known_for = time.time() - entry.changed
            is_ours = entry.account == self._account
            if is_ours and entry.finetune_id not in listed and known_for >= self._settings.settle_seconds:
                await _note(journal.end, entry.number, "deleted")
                return None
        except APIError:
            state = "unknown"
        if state == "failed":
            await _note(journal.end, entry.number, "failed")
            return None
        return entry.finetune_id, state

    def _words_for_unclear(self, entry: Entry) -> str:
        if needed := self.how_to_look_for(entry):
            looked_for = f"It was sent with another API key. {needed}, and call create_finetune again to look for it"
        else:
            looked_for = (
                f"It is looked for at each call, and given up after {self._settings.settle_seconds:.0f} seconds "
                "without a trace of it. Call create_finetune again then, without allow_duplicate"
            )
        return (
            f"Not sent again: the same finetune was sent {ago(time.time() - entry.created)} as "
            f"{quoted(entry.comment, 80)}, and what came of it is not known yet: "
            f"{quote_foreign(entry.problem or 'no answer came')}. It may be running, and may be billed. {looked_for}; "
            "or with allow_duplicate=true if the person wants a second one in any case."
        )

    def _intent(self, request: StartRequest, archive: "Archive", price_usd: float | None) -> Intent:
        return Intent(
            provider=self.provider_url,
            account=self._account,
            engine="practice" if self._provider.practice else None,
            folder=request.folder,
            comment=request.parameters.finetune_comment,
            images=archive.images,
            archive_sha256=archive.sha256,
            pictures_sha256=archive.pictures_sha256,
            parameters=request.sent,
            price_usd=price_usd,
        )

    def _turns_of(self, journal: Journal) -> Turns:
        if self._turns is None:
            self._turns = Turns(journal)
        return self._turns

    async def _settler(self) -> Settler:
        journal = await self.journal()
        return Settler(
            journal, self._turns_of(journal), self.provider_url, self._account, self._settings.settle_seconds
        )

    async def _report_on(self, request: StartRequest, packed: Packed) -> Report:
        """The same with what was found in the folder."""

        def tell() -> Told:
            from bfl_mcp.dataset.judge import judge

            known = {name: request.sent[name] for name in ("mode", "trigger_word", "captioning")}
            findings = judge(packed.dataset, packed.examined, self._packing.plan(**known))
            # What is left out has a list of its own.
            told = [finding for finding in findings if finding.severity != "change" and finding.code != "left-out"]
            return tell_findings(told, "concise", _FINDINGS_BYTES)

        return self._report(request).with_findings(await anyio.to_thread.run_sync(tell))

    def _report(self, request: StartRequest) -> Report:
        return Report(self._provider, self._known_quote(request), request.sent, dry_run=request.dry_run)

    def _still_packing(self, request: StartRequest) -> FinetuneStarted:
        return self._report(request).still_packing(self._packing.doing(request.folder))


async def _note(end: Callable[..., None], *arguments: Any, **facts: Any) -> None:
    """Write an outcome down.

    A journal that cannot be written must not hide the outcome: the row stays open then, and is settled later.
    """
    try:
        await anyio.to_thread.run_sync(partial(end, *arguments, **facts))
    except JournalError as error:
        logger.error("an outcome could not be written down: %s, %s", arguments, error)  # noqa: TRY400 - it is all said
