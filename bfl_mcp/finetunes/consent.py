"""Who has agreed to pay for a start: what a person is asked, and when nobody has to be."""

import anyio.to_thread

from bfl_mcp.config import Settings
from bfl_mcp.dataset.findings import megabytes
from bfl_mcp.errors import quote_foreign, quoted
from bfl_mcp.finetunes.background import Call
from bfl_mcp.finetunes.packing import Packed, Packing, count
from bfl_mcp.finetunes.past import Past
from bfl_mcp.finetunes.price import Prices, Quote
from bfl_mcp.finetunes.provider import Provider
from bfl_mcp.finetunes.request import StartRequest
from bfl_mcp.finetunes.spend import Answer, Question, SpendGate, check_price_is_known


class Consents:
    """The questions of one server process, and what was answered."""

    def __init__(self, settings: Settings, provider: Provider, packing: Packing, prices: Prices, past: Past) -> None:
        self._settings = settings
        self._provider = provider
        self._packing = packing
        self._prices = prices
        self._past = past
        self._gate = SpendGate()

    async def question(self, request: StartRequest, call: Call, *, answered: bool) -> Question | None:
        """What the person must be asked before this start, or None where nothing needs their consent.

        Worded the same each time for the same folder. What it asks about is what will be sent: once it was `answered`,
        a folder that has changed is refused.

        Raises:
            SpendRefusedError: The answer came too late, or to a question about a folder that has changed.
            DatasetError, APIError: As for the start itself, which would meet the same.
        """
        if self._settings.confirm_spend == "never":
            return None
        quote = await self._prices.ask_one_that_trains(request.parameters.iterations, call)
        if quote.is_free:
            return None
        packed = await self._packing.pack(request.folder, call)
        if packed is None or await self._needs_none(request, packed, quote):
            return None
        question = self._question(request, packed, quote)
        if answered:
            self._gate.check_answered(question)
        else:
            self._gate.ask(question)
        return question

    async def check(self, request: StartRequest, packed: Packed, call: Call, answer: Answer | None) -> bool:
        """Whether money may be spent on this start. False where none will be, as far as can be told beforehand.

        Raises:
            SpendRefusedError: Money would be spent and nobody has agreed to it.
            APIError: The provider does not train, or does not say.
        """
        quote = await self._prices.ask_one_that_trains(request.parameters.iterations, call)
        if quote.is_free:
            return False
        if self._settings.confirm_spend == "never":
            check_price_is_known(quote, self._settings.spend_limit_usd)
            return True
        if await self._needs_none(request, packed, quote):
            return False
        self._gate.check(self._question(request, packed, quote), answer, request.confirm_cost_usd)
        return True

    async def _needs_none(self, request: StartRequest, packed: Packed, quote: Quote) -> bool:
        """Whether nothing will be spent: the same start exists already, or the limit will refuse it."""
        journal = await self._past.journal()
        limit = self._settings.spend_limit_usd
        if limit is not None and quote.usd and await anyio.to_thread.run_sync(journal.spent_usd) + quote.usd > limit:
            return True
        if request.allow_duplicate:
            return False
        key = self._past.intent(request, packed.archive, None).key
        return bool(await anyio.to_thread.run_sync(journal.repeats, key))

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
