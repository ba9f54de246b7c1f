"""The spend gate: who must agree to a price, and the limit for a day."""

from dataclasses import dataclass
from typing import Final

import anyio

from bfl_mcp.errors import BFLError
from bfl_mcp.finetunes.price import Quote

CONSENT_SECONDS = 600.0
"""A question that nobody answers for so long is answered with no."""

_QUESTIONS_REMEMBERED: Final = 100


class SpendRefusedError(BFLError):
    """Money would be spent that nobody has agreed to; nothing was sent."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a person is asked. `about` is the identity of the very thing that is paid for, contents included."""

    about: str
    text: str
    quote: Quote


@dataclass(frozen=True, slots=True)
class Answer:
    """What the person said. `about` is what they were asked about, None where they could not be asked this time."""

    about: str | None
    yes: bool


class SpendGate:
    """Remembers what was asked, so that an answer counts for that very thing alone."""

    def __init__(self) -> None:
        self._asked: dict[str, float] = {}

    def ask(self, question: Question) -> None:
        """Remember that this is being asked."""
        self._asked.pop(question.about, None)
        self._asked[question.about] = anyio.current_time()
        while len(self._asked) > _QUESTIONS_REMEMBERED:
            del self._asked[next(iter(self._asked))]

    def check_answered(self, question: Question) -> None:
        """Check that the question to which an answer has come is this one.

        Raises:
            SpendRefusedError: It was asked about something else, or too long ago.
        """
        asked = self._asked.get(question.about)
        if asked is None:
            raise _changed()
        if anyio.current_time() - asked > CONSENT_SECONDS:
            raise no_answer()

    def check(self, question: Question, answer: Answer | None, confirm_cost_usd: float | None) -> None:
        """Check that the person has agreed. `answer` is None where the host cannot ask: the agent must, then.

        Raises:
            SpendRefusedError: They have not, or not to this; the message is the question where the agent must ask it.
        """
        asked = self._asked.pop(question.about, None)
        price = question.quote.confirmation_usd
        if answer is None:
            if asked is not None and confirm_cost_usd == price:
                return
            # Confirming counts only after the question, and only for what the question was about.
            self.ask(question)
            raise SpendRefusedError(
                f"Not started yet, nothing was sent or charged. {question.text} Ask the person. If they agree, call "
                f"create_finetune again with the same arguments and confirm_cost_usd={price:g}."
            )
        if answer.about is None:
            raise SpendRefusedError(
                f"Not started yet, nothing was sent or charged. Price: {question.quote.words}. The person could not be "
                "asked this time. Call create_finetune again with the same arguments, and they will be."
            )
        if answer.about != question.about:
            raise _changed()
        if not answer.yes:
            raise SpendRefusedError(
                "Not started, nothing was sent or charged: the person was asked and did not agree. Ask what they would "
                "like to change."
            )


def no_answer() -> SpendRefusedError:
    """The refusal of what nobody has answered in time."""
    return SpendRefusedError(
        "Not started, nothing was sent or charged: the person was asked, and no answer came within "
        f"{CONSENT_SECONDS / 60:.0f} minutes. Call create_finetune again when they are there."
    )


def unusable_answer() -> SpendRefusedError:
    """The refusal of an answer that is neither a yes nor a no."""
    return SpendRefusedError(
        "Not started, nothing was sent or charged: the person was asked, and the host answered neither yes nor no. "
        "Call create_finetune again, and they will be asked anew."
    )


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


def check_price_is_known(quote: Quote, limit_usd: float | None) -> None:
    """Refuse to spend an unknown amount under a limit where nobody is asked.

    Raises:
        SpendRefusedError: There is a limit, and nobody knows whether this stays below it.
    """
    if limit_usd is not None and quote.usd is None:
        raise SpendRefusedError(
            f"Not started, and nothing was sent: the price is {quote.words}, the person set a limit of "
            f"${limit_usd:.2f} (BFL_MCP_SPEND_LIMIT_USD), and they are not to be asked (BFL_MCP_CONFIRM_SPEND=never). "
            "Tell the person; only they can change one of the two."
        )


def _changed() -> SpendRefusedError:
    return SpendRefusedError(
        "Not started, nothing was sent or charged: the folder changed after the person was asked about it, or their "
        "answer was used already. Call create_finetune again, and they will be asked anew."
    )
