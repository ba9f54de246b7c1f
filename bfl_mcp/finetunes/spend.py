"""The spend gate: what a training costs, who must agree to it, and the limit for a day. Pure; asks nobody."""

from dataclasses import dataclass

from bfl_mcp.config import is_loopback
from bfl_mcp.contract import BFL_TRAINING_PRICES_USD
from bfl_mcp.errors import BFLError
from bfl_mcp.finetunes.provider import Provider


class SpendRefusedError(BFLError):
    """Money would be spent that nobody has agreed to; nothing was sent."""


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


def check_spend_limit(price_usd: float | None, spent_usd: float, limit_usd: float | None) -> None:
    """Refuse a training that would bring the last 24 hours above the limit.

    Raises:
        SpendRefusedError: It would.
    """
    if limit_usd is None or not price_usd or spent_usd + price_usd <= limit_usd:
        return
    raise SpendRefusedError(
        f"Not started, and nothing was sent: it costs ${price_usd:.2f}, ${spent_usd:.2f} were spent or may have been "
        f"spent in the last 24 hours, and the person set a limit of ${limit_usd:.2f} (BFL_MCP_SPEND_LIMIT_USD). Tell "
        "the person; only they can raise it."
    )
