"""The tools that start and follow: create_finetune and get_finetune_details."""

import math
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import anyio
from mcp.server.elicitation import AcceptedElicitation
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.resolve import Elicit, ElicitationResult, Resolve
from mcp_types import ToolAnnotations
from pydantic import BaseModel, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from bfl_mcp.config import Settings
from bfl_mcp.contract import (
    MAX_COMMENT_CHARACTERS,
    MAX_ID_CHARACTERS,
    MAX_PATH_CHARACTERS,
    MAX_TRIGGER_WORD_CHARACTERS,
    TrainingParameters,
)
from bfl_mcp.finetunes import spend
from bfl_mcp.finetunes.background import Call
from bfl_mcp.finetunes.desk import Desk
from bfl_mcp.finetunes.export import Exports
from bfl_mcp.finetunes.lookup import find_status
from bfl_mcp.finetunes.past import Past
from bfl_mcp.finetunes.request import StartRequest
from bfl_mcp.finetunes.start import Starts
from bfl_mcp.finetunes.started import FinetuneStarted
from bfl_mcp.finetunes.status import FinetuneStatus
from bfl_mcp.server.schema import ToolInput, make_tool

if TYPE_CHECKING:
    from bfl_mcp.server.build import Connection


ANSWER_SECONDS = 45.0
"""Hosts give up after 60 seconds; what takes longer goes on, and the same call again returns its outcome."""


@dataclass(slots=True)
class InHand:
    """The call in hand: its clock, and the question to a person that may be open in it."""

    call: Call
    asking: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    """Ends the call when nobody answers."""
    asked_about: str | None = None

    def ask(self, question: spend.Question) -> None:
        """A person is asked now: the clock stands, and they have their own time."""
        self.asked_about = question.about
        self.call.pause()
        self.asking.deadline = anyio.current_time() + spend.CONSENT_SECONDS

    def answered(self) -> None:
        """Nobody is waited for any more."""
        self.asking.deadline = math.inf
        self.call.resume()


IN_HAND: ContextVar[InHand] = ContextVar("in_hand")


@dataclass(frozen=True, slots=True)
class App:
    """What the tools share for the life of the process."""

    connection: "Connection"
    desk: Desk
    starts: Starts
    past: Past
    exports: Exports
    settings: Settings


class FolderInput(ToolInput):
    """Where the images are."""

    folder: str = Field(
        min_length=1,
        max_length=MAX_PATH_CHARACTERS,
        description="Whole path of the local folder with the images, e.g. /home/ana/Pictures/teapot.",
    )


class Consent(BaseModel):
    """What the person answers before money is spent."""

    proceed: bool = Field(description="Start it and pay for it?")


class CreateFinetune(TrainingParameters, FolderInput):
    """Arguments of create_finetune."""

    dry_run: bool = Field(default=False, description="True: check and pack the folder, send no images, start nothing.")
    allow_duplicate: bool = Field(
        default=False,
        description="True: start even if the same was started within 24 hours. Only if the person wants two.",
    )
    confirm_cost_usd: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Price the person agreed to, when an answer asked for it. Ignored where nothing costs.",
    )

    @property
    def start(self) -> StartRequest:
        return StartRequest(self.folder, self, self.dry_run, self.allow_duplicate, self.confirm_cost_usd)

    @field_validator("finetune_comment", "trigger_word")
    @classmethod
    def _check_length(cls, value: str, info: ValidationInfo) -> str:
        # BFL's schema knows no lengths; a name that fills the conversation is still no name.
        most = MAX_COMMENT_CHARACTERS if info.field_name == "finetune_comment" else MAX_TRIGGER_WORD_CHARACTERS
        if not value.strip():
            raise PydanticCustomError("string_too_short", "empty")
        if len(value) > most:
            raise PydanticCustomError("string_too_long", "too long", {"max_length": most})
        return value

    @field_validator("lora_rank", mode="before")
    @classmethod
    def _read_rank(cls, value: object) -> object:
        # Some hosts send every argument as a string.
        return int(value) if isinstance(value, str) and value.isdecimal() else value


class GetFinetuneDetails(ToolInput):
    """Arguments of get_finetune_details."""

    finetune_id: str | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_ID_CHARACTERS,
        description="Id that create_finetune returned. Leave out for the newest start.",
    )
    wait_seconds: int = Field(
        default=0, ge=0, le=45, description="Wait up to this many seconds for the state to change. 0 answers at once."
    )


async def ask_consent(request: CreateFinetune, ctx: Context[App]) -> Consent | Elicit[Consent]:
    """Ask the person before money is spent, where the host can ask. Runs again in each round of the newer protocol."""
    if not _can_ask(ctx):
        # The tool itself asks then, by refusing until confirm_cost_usd names the price.
        return Consent(proceed=False)
    in_hand = IN_HAND.get()
    question = await _app(ctx).starts.question(request.start, in_hand.call, answered=bool(ctx.input_responses))
    if question is None:
        # Where nothing is asked nothing is agreed to either: only a person says yes.
        return Consent(proceed=False)
    in_hand.ask(question)
    return Elicit(question.text, Consent)


async def create_finetune(
    request: CreateFinetune, consent: Annotated[ElicitationResult[Consent], Resolve(ask_consent)], ctx: Context[App]
) -> FinetuneStarted:
    """Pack a local folder of images and start one FLUX finetune from it; may cost money at a paid provider.

    Checks every image, sends a clean archive and returns the finetune_id while training goes on. Refuses a bad folder
    with all its faults and sends nothing. Use dry_run=true first to see what would be sent. The person is asked before
    money is spent. A repeat within 24 hours is not sent: it returns the finetune that exists. While state is sending,
    call it again with the same arguments.
    """
    in_hand = IN_HAND.get()
    in_hand.answered()
    answer = None
    if _can_ask(ctx):
        agreed = isinstance(consent, AcceptedElicitation) and consent.data.proceed
        answer = spend.Answer(in_hand.asked_about, agreed)
    return await _app(ctx).starts.start(request.start, in_hand.call, answer)


async def get_finetune_details(request: GetFinetuneDetails, ctx: Context[App]) -> FinetuneStatus:
    """Tell how a finetune stands (queued, training, ready, failed), how far it is, and its parameters. Free.

    Changes nothing. Without finetune_id it tells of the newest start. With wait_seconds it waits for the state to
    change and reports progress meanwhile; call it again until the state is ready or failed.
    """
    app = _app(ctx)
    return await find_status(
        app.starts, app.past, app.connection.client_for, request.finetune_id, request.wait_seconds, ctx.report_progress
    )


def _app(ctx: Context[App]) -> App:
    return ctx.request_context.lifespan_context


def _can_ask(ctx: Context[App]) -> bool:
    asking = ctx.client_capabilities.elicitation if ctx.client_capabilities is not None else None
    # A host that can only open web pages cannot show our question.
    return asking is not None and (asking.form is not None or asking.url is None)


TOOLS = [
    make_tool(
        create_finetune,
        title="Start a finetune from a folder",
        annotations=ToolAnnotations(
            title="Start a finetune from a folder",
            read_only_hint=False,
            # Not undone once billed.
            destructive_hint=True,
            idempotent_hint=False,
            open_world_hint=True,
        ),
    ),
    make_tool(
        get_finetune_details,
        title="How a finetune stands",
        annotations=ToolAnnotations(
            title="How a finetune stands",
            read_only_hint=True,
            destructive_hint=False,
            idempotent_hint=True,
            open_world_hint=True,
        ),
    ),
]
