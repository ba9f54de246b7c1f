"""What create_finetune answers, in facts and in words."""

import time
from typing import TYPE_CHECKING, Any, Final, Self

from pydantic import BaseModel, Field

from bfl_mcp.contract import BFL_TRAINING_CLOSED_ON, TrainerNeed
from bfl_mcp.dataset.findings import megabytes
from bfl_mcp.errors import quote_foreign, quoted
from bfl_mcp.finetunes.checked import FindingTold, Told
from bfl_mcp.finetunes.journal import Entry
from bfl_mcp.finetunes.packing import count
from bfl_mcp.finetunes.price import Quote
from bfl_mcp.finetunes.provider import HOW_TO_TRAIN_FOR_REAL, Provider
from bfl_mcp.finetunes.status import StartState

if TYPE_CHECKING:
    from bfl_mcp.dataset.archive import Archive

_SKIPPED_LISTED: Final = 40

NEED_CHARACTERS: Final = 600
"""Shown of what a trainer says that a training takes: need, present and every remedy do not fit into less."""


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
    fits: bool | None = Field(
        default=None, description="Dry run: whether our trainer has what it takes; absent if unknown."
    )
    cost_usd: float | None = Field(default=None, description="Last published price; 0 is free; absent if unknown.")
    images: int | None = Field(default=None, description="Images in the archive.")
    captions: int | None = Field(default=None, description="Images with a caption of their own.")
    skipped: list[SkippedFile] | None = Field(default=None, description="Files left out.")
    findings: list[FindingTold] | None = Field(
        default=None, description="What an expert would note, worst first; check_dataset names the rest."
    )
    archive_bytes: int | None = Field(default=None, description="Size of the ZIP in bytes.")
    archive_sha256: str | None = Field(default=None, description="Identity of the dataset: same folder, same value.")
    parameters: dict[str, Any] = Field(description="Training parameters as sent.")
    dry_run: bool = Field(description="Whether this was a rehearsal.")
    summary: str = Field(description="What happened.")
    next_step: str = Field(description="What to do next.")


class Report:
    """Words the answers to one request. `quote` is what is known of its price so far, `sent` its parameters."""

    def __init__(self, provider: Provider, quote: Quote, sent: dict[str, Any], *, dry_run: bool) -> None:
        self._provider = provider
        self._quote = quote
        self._sent = sent
        self._dry_run = dry_run
        self._found: Told | None = None

    def with_findings(self, found: Told) -> Self:
        """The same, with what was found in the folder beyond faults."""
        self._found = found
        return self

    def still_packing(self, doing: str) -> FinetuneStarted:
        return self._facts(
            started=False,
            state=None if self._dry_run else "sending",
            practice=self._provider.practice,
            summary=f"Still packing the folder: {doing or 'reading it'}. Nothing was sent yet; the work goes on.",
            next_step="Call create_finetune again with the same arguments to go on waiting.",
        )

    def still_sending(self, doing: str) -> FinetuneStarted:
        return self._facts(
            started=False,
            state="sending",
            practice=self._provider.practice,
            summary=f"The start is under way and goes on by itself: {doing}. There is no answer yet.",
            next_step=(
                "Call create_finetune again with the same arguments to learn the outcome: it is sent only once. "
                "get_finetune_details without an id tells it too."
            ),
        )

    def rehearsed(self, archive: "Archive", need: TrainerNeed | str | None = None) -> FinetuneStarted:
        """Nothing was sent. `need` is what our trainer says of it, or why it could not be asked."""
        provider = self._provider
        practice = need.engine == "practice" if isinstance(need, TrainerNeed) else provider.practice
        summary = (
            f"Dry run: {count(archive)}, {megabytes(archive.size_bytes)}, would go to {provider.name}. "
            f"Nothing was sent or charged.{self._words_for_findings()}"
        )
        if provider.is_bfl:
            summary += f" Price: {self._quote.words}."
            next_step = (
                f"Black Forest Labs closed hosted training on {BFL_TRAINING_CLOSED_ON}, so a start there will most "
                "likely be refused, before anything is uploaded. To train, point BFL_API_URL at a server that still "
                "answers this API."
            )
        elif practice:
            summary += " This trainer only practises: it goes through the motions, trains nothing and costs nothing."
            next_step = (
                f"{'' if self._warnings else 'Tell the person. '}To rehearse the whole way, call create_finetune again "
                f"with dry_run false. {HOW_TO_TRAIN_FOR_REAL}"
            )
        else:
            next_step = self._ask_the_person(need)
        summary += _words_for_need(need)
        if self._warnings:
            next_step = f"Tell the person the warnings; they decide whether to mend them. {next_step}"
        fits = need.fits if isinstance(need, TrainerNeed) else None
        return self._facts(archive, started=False, practice=practice, fits=fits, summary=summary, next_step=next_step)

    def _ask_the_person(self, need: TrainerNeed | str | None) -> str:
        if isinstance(need, TrainerNeed) and not need.fits:
            return (
                "Tell the person what is missing, and change what the trainer names. Then make another dry run: as it "
                "stands, a start would be refused, before anything is sent."
            )
        once = "Once it answers, call" if isinstance(need, str) else "Then call"
        costs = "it costs nothing" if self._quote.is_free else "what it costs is between them and that server"
        return f"Show the person, and ask whether to start: {costs}. {once} create_finetune again with dry_run false."

    def started(
        self, archive: "Archive", finetune_id: str, others: list[Entry], *, practice: bool | None
    ) -> FinetuneStarted:
        """It was started. `others` are earlier starts of the same pictures."""
        name = quoted(self._sent["finetune_comment"], 80)
        what = f"{count(archive)}, {megabytes(archive.size_bytes)}, {self._sent['iterations']} iterations"
        kind = "practice finetune" if practice else "finetune"
        summary = f"Started the {kind} {name} at {self._provider.name}: {what}."
        if practice:
            summary += " Practice goes through the motions and trains nothing; it costs nothing."
        elif not self._quote.is_free:
            summary += f" Price: {self._quote.words}."
        summary += self._words_for_findings()
        if others:
            other = others[0]
            summary += (
                f" The same pictures were started {ago(time.time() - other.created)} as "
                f"{quoted(other.comment, 80)} ({quote_foreign(other.finetune_id or 'outcome not known', 100)}), with "
                "other captions or parameters."
            )
        return self._facts(
            archive,
            finetune_id=finetune_id,
            started=True,
            state="queued",
            practice=practice,
            summary=summary,
            next_step=f"Call get_finetune_details with finetune_id {quoted(finetune_id, 100)} and wait_seconds 45 to "
            "follow it.",
        )

    def of_an_earlier_folder(self, outcome: FinetuneStarted) -> FinetuneStarted:
        """The outcome of a start nobody was told of, whose folder has changed since."""
        return outcome.model_copy(
            update={
                "summary": f"{outcome.summary} This was started earlier, from the folder as it was: it has changed "
                "since, and what is new in it was not sent.",
                "next_step": f"{outcome.next_step} To start another one from the folder as it is now, call "
                "create_finetune again.",
            }
        )

    def repeated(self, archive: "Archive", entry: Entry, finetune_id: str, state: str) -> FinetuneStarted:
        """It exists already, and nothing was sent."""
        name = quoted(entry.comment, 80)
        return self._facts(
            archive,
            finetune_id=finetune_id,
            started=False,
            state=state,
            practice=entry.practice,
            summary=(
                f"Nothing was sent: the same pictures, captions and parameters were started "
                f"{ago(time.time() - entry.created)} as {name}. That finetune is {state}."
            ),
            next_step=(
                f"Call get_finetune_details with finetune_id {quoted(finetune_id, 100)}. Only if the person wants a "
                "second one of the same, call create_finetune again with allow_duplicate=true."
            ),
        )

    @property
    def _warnings(self) -> int:
        return self._found.warnings if self._found is not None else 0

    def _words_for_findings(self) -> str:
        number = self._warnings
        return f" {number} warning{'s' if number > 1 else ''} about the images, see findings." if number else ""

    def _facts(self, archive: "Archive | None" = None, **facts: Any) -> FinetuneStarted:
        known: dict[str, Any] = {}
        if archive is not None:
            known = {
                "images": archive.images,
                "captions": archive.captions,
                "skipped": _list_skipped(archive),
                "archive_bytes": archive.size_bytes,
                "archive_sha256": archive.sha256,
                "findings": self._found.findings or None if self._found is not None else None,
            }
        return FinetuneStarted(
            provider=self._provider.name,
            cost_usd=self._quote.usd,
            parameters=self._sent,
            dry_run=self._dry_run,
            **known,
            **facts,
        )


def _words_for_need(need: TrainerNeed | str | None) -> str:
    if need is None:
        return ""
    if isinstance(need, str):
        return f" The trainer could not be asked what this takes: {quote_foreign(need, NEED_CHARACTERS)}"
    fits = "" if need.fits else " The trainer cannot do this as it stands."
    return f"{fits} The trainer says: {quoted(need.sentence, NEED_CHARACTERS)}"


def ago(seconds: float) -> str:
    """How long ago something was, in words."""
    if seconds < 90:
        return f"{max(seconds, 0):.0f} seconds ago"
    return f"{seconds / 60:.0f} minutes ago" if seconds < 5400 else f"{seconds / 3600:.0f} hours ago"


def _list_skipped(archive: "Archive") -> list[SkippedFile]:
    listed = [SkippedFile(name=item.name, reason=item.reason) for item in archive.skipped[:_SKIPPED_LISTED]]
    if more := len(archive.skipped) - len(listed):
        listed.append(SkippedFile(name=f"… and {more} more", reason="not listed here"))
    return listed
