"""What a training costs at a provider, as far as anybody knows."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import anyio

from bfl_mcp.config import is_loopback
from bfl_mcp.contract import BFL_TRAINING_PRICES_USD
from bfl_mcp.errors import APIError
from bfl_mcp.finetunes.background import Call
from bfl_mcp.finetunes.provider import Provider

if TYPE_CHECKING:
    from bfl_mcp.client import BFLClient

ASKED_SECONDS: Final = 5.0
"""How long a provider is asked at least before a start, however little time the call has left."""


@dataclass(frozen=True, slots=True)
class Quote:
    """What a training costs. `usd` is None where nobody knows."""

    usd: float | None
    words: str

    @property
    def is_free(self) -> bool:
        return self.usd == 0

    @property
    def confirmation_usd(self) -> float:
        """What `confirm_cost_usd` must say once the person has agreed: the price, or 0 for an unknown one."""
        return self.usd or 0.0


def quote_training(provider: Provider, iterations: int, *, is_our_trainer: bool) -> Quote:
    """The price of a training of so many iterations at a provider."""
    if provider.url is None or is_loopback(provider.url) or is_our_trainer:
        return Quote(0.0, "free")
    if provider.is_bfl:
        price = next(usd for most, usd in BFL_TRAINING_PRICES_USD if iterations <= most)
        return Quote(price, f"${price:.2f} (BFL's last published price for {iterations} iterations)")
    return Quote(None, "unknown: this provider publishes no price here")


class Prices:
    """The prices of the configured provider. A server whose price is unknown turns out free once it answers as ours."""

    def __init__(self, provider: Provider, connect: Callable[[], Awaitable["BFLClient"]]) -> None:
        self._provider = provider
        self._connect = connect
        self._is_our_trainer = False

    def known(self, iterations: int) -> Quote:
        """The price as far as it is known without asking."""
        return quote_training(self._provider, iterations, is_our_trainer=self._is_our_trainer)

    def note(self, client: "BFLClient") -> None:
        """Remember whose server gave the last answer."""
        self._is_our_trainer = client.is_our_trainer

    async def ask(self, iterations: int) -> Quote:
        """The price of now, for which a server may have to be asked whose it is.

        Raises:
            APIError: It cannot be asked.
        """
        if quote_training(self._provider, iterations, is_our_trainer=False).usd is None:
            client = await self._connect()
            # Any answer tells whose server it is, and only the one of now counts.
            await client.list_finetunes()
            self.note(client)
        return self.known(iterations)

    async def ask_one_that_trains(self, iterations: int, call: Call) -> Quote:
        """The same from a provider that trains: nobody is asked for money that it would not take.

        Raises:
            APIError: It does not train, or does not answer while the call lasts.
        """
        try:
            with anyio.fail_after(max(call.left, ASKED_SECONDS)):
                quote = await self.ask(iterations)
                if not quote.is_free:
                    await (await self._connect()).check_training_is_open()
                return quote
        except TimeoutError:
            raise APIError(
                f"Not started, nothing was sent or charged: {self._provider.name} did not answer in time when it was "
                "asked whether it trains. Call create_finetune again with the same arguments."
            ) from None
