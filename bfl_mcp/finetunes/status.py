"""How a finetune stands: two answers of the API joined into one state, explained in words."""

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import anyio
from pydantic import BaseModel, Field

from bfl_mcp.contract import FAILED_STATUSES, ResultResponse, TrainerDetails
from bfl_mcp.errors import APIError, NotFoundError, quote_foreign, quoted
from bfl_mcp.finetunes.background import Call
from bfl_mcp.finetunes.provider import HOW_TO_TRAIN_FOR_REAL
from bfl_mcp.finetunes.trained import Trained

if TYPE_CHECKING:
    from bfl_mcp.client import BFLClient

State = Literal["queued", "training", "ready", "failed", "unknown"]
"""Ours, beside the API's own word."""

StartState = Literal["sending", "queued", "training", "ready", "failed", "unknown"]
"""The same, and a start that has no answer yet."""
_T = TypeVar("_T")

# BFL advises to begin at 0.5-1 s and to back off to 5-10 s.
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 5.0
_TASK_NOT_FOUND: Final = "Task not found"
# Characters of JSON; the details seen have some hundred.
_DETAILS_LIMIT: Final = 32_000
_TEXT_LIMIT: Final = 4_000
_DOING_CHARACTERS: Final = 120
_REASON_CHARACTERS: Final = 400
"""A training that failed says what to change: the reason and every remedy."""


class FinetuneStatus(BaseModel):
    """How a finetune stands."""

    finetune_id: str | None = Field(default=None, description="Its id; absent while a start has none yet.")
    status: str | None = Field(default=None, description="The API's own word; absent if it gave none.")
    state: StartState = Field(description="sending: the start has no answer yet.")
    progress: float | None = Field(default=None, description="Share done, 0-1; absent if not told.")
    seconds_left: float | None = Field(default=None, description="Estimate; absent if not told.")
    doing: str | None = Field(default=None, description="Stage of the training; absent if not told.")
    download: str | None = Field(default=None, description="Shell command that fetches the LoRA of a ready finetune.")
    load: list[str] | None = Field(default=None, description="Python lines that use the LoRA of a ready finetune.")
    samples: list[str] | None = Field(default=None, description="Sample pictures before and after training.")
    details: dict[str, Any] = Field(description="Every key the API gave.")
    problem: str | None = Field(default=None, description="What went wrong.")
    practice: bool | None = Field(default=None, description="True where nothing is really trained; absent if unknown.")
    summary: str = Field(description="How it stands.")
    next_step: str = Field(description="What to do next.")


async def read_status(client: "BFLClient", finetune_id: str) -> FinetuneStatus:
    """Ask for the details and the task of a finetune, and join them.

    Raises:
        NotFoundError: The provider knows neither.
        APIError: Neither could be read.
    """
    details: list[dict[str, Any] | APIError] = []
    result: list[ResultResponse | APIError] = []
    async with anyio.create_task_group() as both:
        both.start_soon(_attempt, client.get_finetune_details, finetune_id, details)
        both.start_soon(_attempt, client.get_result, finetune_id, result)
    return _join(client, finetune_id, details[0], result[0])


async def follow_status(client: "BFLClient", finetune_id: str, call: Call) -> FinetuneStatus:
    """Read the status, and wait as long as the call lasts for its state to change.

    Raises:
        APIError: As `read_status`, for the first reading only; later failures are waited out.
    """
    first = status = await read_status(client, finetune_id)
    pause = _FIRST_PAUSE_SECONDS
    while status.state == first.state and status.state not in ("ready", "failed"):
        left = call.left
        if left <= 0:
            break
        await call.tell(_progress_words(status))
        await anyio.sleep(min(pause, left))
        pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)
        with anyio.move_on_after(max(left, 1.0)):
            try:
                status = await read_status(client, finetune_id)
            except APIError:
                # What was known a moment ago is a better answer than a passing failure.
                continue
    return status


async def _attempt(ask: Callable[[str], Awaitable[_T]], finetune_id: str, answer: list[_T | APIError]) -> None:
    try:
        answer.append(await ask(finetune_id))
    except APIError as error:
        answer.append(error)


def _join(
    client: "BFLClient", finetune_id: str, details: dict[str, Any] | APIError, result: ResultResponse | APIError
) -> FinetuneStatus:
    """The state behind two answers. Source: how the API was observed to behave, see each branch."""
    shown = quoted(finetune_id, 100)
    gone = isinstance(result, NotFoundError) or (
        isinstance(result, ResultResponse) and result.status == _TASK_NOT_FOUND
    )
    if gone and isinstance(details, APIError):
        if isinstance(details, NotFoundError):
            raise NotFoundError(
                f"The provider knows no finetune {shown}. Check the id. If it is right, it belongs to another account, "
                "or was made at another host: finetunes are known only where they were trained (BFL_API_URL; for the "
                "trainer inside this server, BFL_MCP_HOME)."
            )
        raise APIError(f"The provider has no task for {shown}, and its details could not be read: {details}")
    if isinstance(result, APIError) and isinstance(details, APIError):
        if isinstance(details, NotFoundError):
            # Observed January 2025: a finetune just created answered 500.
            raise APIError(
                f"The provider does not know {shown} yet, and its status could not be read: {result} If it was started "
                "moments ago, ask again in a minute."
            )
        raise APIError(f"The status of {shown} could not be read. {result} Nothing was changed by asking.")
    known = details if isinstance(details, dict) else {}
    status = _Reading(client, finetune_id, known)
    if gone:
        return status.deduced_ready(_word(result))
    if isinstance(result, APIError):
        return status.unknown(result)
    if isinstance(details, APIError):
        status.problem = f"Its details could not be read: {details}"
    return status.told(result)


# What the summary of a finished training and the facts beside it say already.
_TOLD_IN_WORDS: Final = frozenset({"captions_used", "files"})


class _Reading:
    """What is known of one finetune, being put into words."""

    def __init__(self, client: "BFLClient", finetune_id: str, details: dict[str, Any]) -> None:
        self.finetune_id = finetune_id
        self.details = _bounded(details)
        self.problem: str | None = None
        self.ours = TrainerDetails.model_validate(details)
        self.trained = Trained(client, finetune_id, details)
        engine = details.get("engine")
        self.practice = None if engine is None else engine == "practice"
        comment = details.get("finetune_comment")
        named = quoted(comment, 80) if comment else quote_foreign(finetune_id, 100)
        self.name = f"The practice finetune {named}" if self.practice else f"The finetune {named}"

    def told(self, result: ResultResponse) -> FinetuneStatus:
        if result.status == "Ready":
            return self._ready(result.status)
        if result.status in FAILED_STATUSES:
            return self._failed(result)
        queued = self.ours.state == "queued"
        progress = None if result.progress is None else min(max(result.progress, 0.0), 1.0)
        seconds_left = None if self.ours.seconds_left is None else max(self.ours.seconds_left, 0.0)
        doing = quote_foreign(self.ours.doing, _DOING_CHARACTERS) if self.ours.doing and not queued else None
        if queued:
            place = self.ours.queue_position
            summary = f"{self.name} is waiting for its turn" + (f", number {place:.0f} in line." if place else ".")
        else:
            parts = [f"{progress:.0%} done" if progress is not None else "", _time_left(seconds_left)]
            told = ", ".join(part for part in parts if part)
            summary = f"{self.name} is training" + (f": {told}." if told else ".")
            summary += f" Doing now: {quoted(doing, _DOING_CHARACTERS)}." if doing else ""
        return self._status(
            result.status,
            "queued" if queued else "training",
            summary + (" Nothing is really trained." if self.practice else ""),
            f"Call get_finetune_details again with finetune_id {self._shown_id} and wait_seconds 45."
            + ("" if progress is not None else " Training can take from minutes to an hour or more."),
            progress=progress,
            seconds_left=seconds_left,
            doing=doing,
        )

    def deduced_ready(self, word: str | None) -> FinetuneStatus:
        summary = (
            f"{self.name} is most likely ready. This is a deduction: the provider still has its details, but no longer "
            "the record of its training, which it forgets some time after the end."
        )
        return self._status(word, "ready", summary, self._how_to_use())

    def unknown(self, error: APIError) -> FinetuneStatus:
        self.problem = str(error)
        summary = f"{self.name} exists, but how it stands could not be read just now."
        next_step = (
            f"Call get_finetune_details again with finetune_id {self._shown_id} in a minute. Do not start it again."
        )
        return self._status(None, "unknown", summary, next_step)

    def _ready(self, word: str) -> FinetuneStatus:
        summary = f"{self.name} is ready." + (
            " Nothing was trained and there is no model: practice only goes through the motions."
            if self.practice
            else ""
        )
        if not self._is_model:
            return self._status(word, "ready", summary, self._how_to_use(), progress=1.0)
        trained = self.trained
        self.details = {name: value for name, value in self.details.items() if name not in _TOLD_IN_WORDS}
        return self._status(
            word,
            "ready",
            f"{summary} {trained.summary()}",
            trained.how_to_use(),
            progress=1.0,
            download=trained.download,
            load=trained.load,
            samples=trained.samples or None,
        )

    @property
    def _is_model(self) -> bool:
        return not self.practice and self.trained.is_there

    def _failed(self, result: ResultResponse) -> FinetuneStatus:
        reasons = _reasons(result)
        self.problem = f"{quote_foreign(result.status)}: {reasons}" if reasons else quote_foreign(result.status)
        summary = f"{self.name} failed. The provider says: {quoted(self.problem, _REASON_CHARACTERS)}."
        if "Moderated" in result.status:
            next_step = (
                "The provider's filter objected to images, captions or their number (BFL took at most 20). Tell the "
                "person, remove what may have caused it, and start again."
            )
        else:
            next_step = (
                "Tell the person the reason, and change what it names: images, parameters, or the trainer's settings. "
                "Then start again with create_finetune."
            )
        return self._status(result.status, "failed", summary, next_step)

    def _how_to_use(self) -> str:
        if self.practice:
            return (
                f"Nothing is left to do: the rehearsal went well. {HOW_TO_TRAIN_FOR_REAL} Then call create_finetune "
                "again."
            )
        word = self.details.get("trigger_word")
        prompt = f", with the trigger word {quoted(word, 60)} in the prompt" if word else ""
        return (
            f"Use finetune_id {self._shown_id} with the provider's finetuned image endpoints (at BFL: "
            f"/v1/flux-pro-1.1-ultra-finetuned){prompt}."
        )

    @property
    def _shown_id(self) -> str:
        return quoted(self.finetune_id, 100)

    def _status(
        self,
        word: str | None,
        state: State,
        summary: str,
        next_step: str,
        **facts: Any,
    ) -> FinetuneStatus:
        return FinetuneStatus(
            finetune_id=self.finetune_id,
            status=quote_foreign(word, 100) if word is not None else None,
            state=state,
            details=self.details,
            problem=self.problem,
            practice=self.practice,
            summary=summary,
            next_step=next_step,
            **facts,
        )


def _word(result: ResultResponse | APIError) -> str | None:
    return result.status if isinstance(result, ResultResponse) else None


def _reasons(result: ResultResponse) -> str:
    """The reasons a failed task gives, in `details` or in `result`: texts and lists of texts, named by their key."""
    given = {**(result.result if isinstance(result.result, dict) else {}), **(result.details or {})}
    parts = []
    for key, value in given.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        if value:
            parts.append(text if key == "error" else f"{key}: {text}")
    return quote_foreign("; ".join(parts), _REASON_CHARACTERS)


def _bounded(details: dict[str, Any]) -> dict[str, Any]:
    """The details without what a conversation cannot hold; how much was left out stands in their place."""
    details = _harmless(details)
    if len(json.dumps(details)) <= _DETAILS_LIMIT:
        return details
    kept: dict[str, Any] = {}
    size = 0
    for name, value in details.items():
        size += len(name) + len(json.dumps(value))
        if size > _DETAILS_LIMIT:
            kept["left_out"] = f"{len(details) - len(kept)} more keys: the details are too long to show"
            break
        kept[name] = value
    return kept


def _harmless(value: Any) -> Any:
    """The same with all texts made safe to show: hosts hand these on to the model as they are."""
    if isinstance(value, str):
        return quote_foreign(value, _TEXT_LIMIT)
    if isinstance(value, list):
        return [_harmless(item) for item in value]
    if isinstance(value, dict):
        return {quote_foreign(name, 100): _harmless(item) for name, item in value.items()}
    return value


def _count(number: float, noun: str) -> str:
    return f"{number:.0f} {noun}{'' if round(number) == 1 else 's'}"


def _time_left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 1:
        return "almost done"
    if seconds < 90:
        return f"about {_count(seconds, 'second')} left"
    return (
        f"about {_count(seconds / 60, 'minute')} left" if seconds < 5400 else f"about {seconds / 3600:.1f} hours left"
    )


def _progress_words(status: FinetuneStatus) -> str:
    parts = [
        status.state,
        f"{status.progress:.0%}" if status.progress is not None else "",
        _time_left(status.seconds_left),
        status.doing or "",
    ]
    return ", ".join(part for part in parts if part)
