"""One start, sent exactly once: settle, ask, write down, send, write down, tell. Or rehearsed."""

import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread

from bfl_mcp.config import Settings
from bfl_mcp.contract import TrainerNeed
from bfl_mcp.dataset.findings import megabytes
from bfl_mcp.errors import APIError, BFLError, NotFoundError, OutcomeUnknownError, quote_foreign, quoted
from bfl_mcp.finetunes.background import Background, Call
from bfl_mcp.finetunes.checked import Told, tell_findings
from bfl_mcp.finetunes.journal import Entry, Intent, Journal, JournalError
from bfl_mcp.finetunes.packing import Packed, Packing
from bfl_mcp.finetunes.past import Past
from bfl_mcp.finetunes.price import ASKED_SECONDS, Prices, Quote
from bfl_mcp.finetunes.provider import Provider
from bfl_mcp.finetunes.request import StartRequest
from bfl_mcp.finetunes.settle import Settler
from bfl_mcp.finetunes.spend import SpendRefusedError, check_spend_limit
from bfl_mcp.finetunes.started import NEED_CHARACTERS, FinetuneStarted, Report, ago
from bfl_mcp.finetunes.status import read_status

if TYPE_CHECKING:
    from bfl_mcp.client import BFLClient
    from bfl_mcp.dataset.archive import Archive

logger = logging.getLogger(__name__)

_FINDINGS_BYTES: Final = 800
"""How much of a start's answer may be about the images."""

_WIRE_SECONDS_ON_CLOSE: Final = 30.0


class Sender:
    """Sends packed folders, and writes down what came of it before anybody is told."""

    def __init__(
        self,
        settings: Settings,
        provider: Provider,
        connect: Callable[[], Awaitable["BFLClient"]],
        packing: Packing,
        prices: Prices,
        past: Past,
    ) -> None:
        self._settings = settings
        self._provider = provider
        self._connect = connect
        self._packing = packing
        self._prices = prices
        self._past = past
        self.on_the_wire = 0
        """How many starts have left, or are leaving, and have no outcome in the journal yet."""

    async def send(
        self, request: StartRequest, packed: Packed, agreed: bool, work: Background[FinetuneStarted]
    ) -> FinetuneStarted:
        """Send one start, unless the same exists. `agreed` is whether a person pays for it. The archive is closed.

        Raises:
            SpendRefusedError: It would cost money that nobody has agreed to, or more than the limit allows.
            APIError: The provider refused or could not be reached; nothing was started.
            OutcomeUnknownError: It, or an earlier one of the same, was sent and may be running.
        """
        archive = packed.archive
        try:
            work.report("asking the provider what it has")
            settler, journal = await self._past.settler(), await self._past.journal()
            client = await self._connect()
            await client.check_training_is_open()
            quote = await self._prices.ask(request.parameters.iterations)
            intent = self._past.intent(request, archive, quote.usd)
            async with (await self._past.turns()).take(intent.key, wait=True):
                listed = await self._settle_before(settler, client, intent)
                need = await self._ask_need(request, packed, client)
                if not request.allow_duplicate:
                    repeat = await self._repeat(intent, need, listed, client, journal)
                    if repeat is not None:
                        entry, finetune_id, state = repeat
                        return (await self._report_on(request, packed)).repeated(archive, entry, finetune_id, state)
                self._check_fits(need)
                # Told here first, and held to where the row is written.
                spent = await anyio.to_thread.run_sync(journal.spent_usd)
                check_spend_limit(quote.usd, spent, self._settings.spend_limit_usd)
                _check_agreed(quote, agreed=agreed)
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
            await (await self._past.settler()).settle(client, intent.key)
            entry = await anyio.to_thread.run_sync(journal.entry, number)
        except (APIError, JournalError):
            return None
        return (entry.finetune_id, entry.practice) if entry.state == "started" and entry.finetune_id else None

    async def _repeat(
        self, intent: Intent, need: TrainerNeed | None, listed: list[str], client: "BFLClient", journal: Journal
    ) -> tuple[Entry, str, str] | None:
        """The earlier start of the same that stands in the way, its finetune and that one's state; None without one.

        Raises:
            OutcomeUnknownError: What came of an earlier start is not known.
        """
        for entry in await anyio.to_thread.run_sync(journal.repeats, intent.key):
            if entry.practice and need is not None and need.engine != "practice":
                # A rehearsal does not stand in the way of the real thing.
                continue
            existing = await self._existing(entry, listed, client, journal)
            if existing is not None:
                return (entry, *existing)
        return None

    def _check_fits(self, need: TrainerNeed | None) -> None:
        if need is not None and not need.fits:
            raise APIError(
                f"Not started, nothing was sent or charged: {self._provider.name} cannot train this. It says: "
                f"{quoted(need.sentence, NEED_CHARACTERS)}"
            )

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
            is_ours = entry.account == self._past.account
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
        if needed := self._past.how_to_look_for(entry):
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

    async def rehearse(self, request: StartRequest, packed: Packed, call: Call) -> FinetuneStarted:
        """What a start would send, and whether our trainer has what it takes. Nothing is sent."""
        need = await self._ask_need_of_rehearsed(request, packed, call)
        return (await self._report_on(request, packed)).rehearsed(packed.archive, need)

    async def _ask_need_of_rehearsed(
        self, request: StartRequest, packed: Packed, call: Call
    ) -> TrainerNeed | str | None:
        """What our trainer says that it takes, or why it could not be asked; None where somebody else trains."""
        if self._provider.is_bfl or self._provider.practice:
            return None
        try:
            with anyio.fail_after(max(call.left, ASKED_SECONDS)):
                client = await self._connect()
                need = await client.ask_need(request.sent, packed.archive.images)
                self._prices.note(client)
        except TimeoutError:
            return "It did not answer in time."
        except BFLError as error:
            # A rehearsal is about the folder: a provider that is away for a while is no reason to refuse it.
            return str(error)
        return need

    async def _ask_need(self, request: StartRequest, packed: Packed, client: "BFLClient") -> TrainerNeed | None:
        """What our trainer says that it takes, before a dataset is uploaded in vain; None where it does not say."""
        if self._provider.practice or not client.is_our_trainer:
            return None
        try:
            return await client.ask_need(request.sent, packed.archive.images)
        except APIError:
            # The start itself meets the same, and has the words.
            return None

    async def _report_on(self, request: StartRequest, packed: Packed) -> Report:
        """The same as `report`, with what was found in the folder."""

        def tell() -> Told:
            from bfl_mcp.dataset.judge import judge

            known = {name: request.sent[name] for name in ("mode", "trigger_word", "captioning")}
            findings = judge(packed.dataset, packed.examined, self._packing.plan(**known))
            # What is left out has a list of its own.
            told = [finding for finding in findings if finding.severity != "change" and finding.code != "left-out"]
            return tell_findings(told, "concise", _FINDINGS_BYTES)

        return self.report(request).with_findings(await anyio.to_thread.run_sync(tell))

    def report(self, request: StartRequest) -> Report:
        """Words the answers to a request, with what is known of its price so far."""
        quote = self._prices.known(request.parameters.iterations)
        return Report(self._provider, quote, request.sent, dry_run=request.dry_run)

    async def close(self) -> None:
        """Let what is on the wire finish, for a while; nothing else is waited for."""
        with anyio.move_on_after(_WIRE_SECONDS_ON_CLOSE, shield=True):
            while self.on_the_wire:  # noqa: ASYNC110 - a number that other tasks count down, not one event
                await anyio.sleep(0.02)


def _check_agreed(quote: Quote, *, agreed: bool) -> None:
    if not agreed and not quote.is_free:
        # It looked like a repeat, or free, which costs nothing, until the provider was asked.
        raise SpendRefusedError(
            "Not started yet, nothing was sent or charged: this would be a new start that costs money (an earlier one "
            "of the same failed, was deleted or never arrived, or the provider is no longer a free one). Price: "
            f"{quote.words}. Call create_finetune again with the same arguments, and the person will be asked."
        )


async def _note(end: Callable[..., None], *arguments: Any, **facts: Any) -> None:
    """Write an outcome down.

    A journal that cannot be written must not hide the outcome: the row stays open then, and is settled later.
    """
    try:
        await anyio.to_thread.run_sync(partial(end, *arguments, **facts))
    except JournalError as error:
        logger.error("an outcome could not be written down: %s, %s", arguments, error)  # noqa: TRY400 - it is all said
