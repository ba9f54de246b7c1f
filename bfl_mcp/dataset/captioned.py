"""What write_captions answers, in facts and in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, Field

from bfl_mcp.dataset.undo import Replaced
from bfl_mcp.errors import quote_foreign, quote_name, quoted

Mode = Literal["set", "prepend_trigger", "undo"]
State = Literal["new", "changed", "unchanged", "removed", "restored", "left alone"]

_FILES_LISTED: Final = 40
_TEXT_SHOWN: Final = 120


@dataclass(frozen=True, slots=True)
class Outcome:
    """What changes, what is as it should be already, and what is left alone because somebody else changed it."""

    changes: tuple[Replaced, ...]
    same: tuple[Replaced, ...] = ()
    left_alone: tuple[Replaced, ...] = ()


class CaptionTold(BaseModel):
    """What happened to one caption."""

    file: str = Field(description="Image, or images that share the caption.")
    state: State = Field(description="left alone: somebody changed it since.")
    before: str | None = Field(default=None, description="Old text, shortened; only on a dry run.")
    after: str | None = Field(default=None, description="New text, shortened; only on a dry run.")


class CaptionsWritten(BaseModel):
    """What came of a call to write_captions."""

    written: int = Field(description="Caption files changed; on a dry run those that would be.")
    unchanged: int = Field(description="Captions that were right already.")
    files: list[CaptionTold] = Field(description="Each caption; of many the first, and summary has the numbers.")
    without_caption: list[str] = Field(description="Images that have no caption after this.")
    dry_run: bool = Field(description="Whether this was a preview.")
    summary: str = Field(description="What happened.")
    next_step: str = Field(description="What to do next.")


def tell_written(
    folder: Path, mode: Mode, outcome: Outcome, without: Sequence[str], lacking: Sequence[str], *, dry_run: bool
) -> CaptionsWritten:
    """The answer. `without` are images without a caption, `lacking` those whose caption lacks the trigger word."""
    undo = mode == "undo"
    told = [
        *(_tell(back, "left alone", dry_run=False) for back in outcome.left_alone),
        *(_tell(change, _state(change, undo=undo), dry_run=dry_run) for change in outcome.changes),
        *(_tell(same, "unchanged", dry_run=False) for same in outcome.same),
    ]
    return CaptionsWritten(
        written=len(outcome.changes),
        unchanged=len(outcome.same),
        files=told[:_FILES_LISTED],
        without_caption=_listed(without),
        dry_run=dry_run,
        summary=_summary(folder, mode, outcome, without, lacking, dry_run=dry_run),
        next_step=_next_step(mode, outcome, without, lacking, dry_run=dry_run),
    )


def _state(change: Replaced, *, undo: bool) -> State:
    if change.after is None:
        return "removed"
    if undo:
        return "restored"
    return "new" if change.before is None else "changed"


def _tell(change: Replaced, state: State, *, dry_run: bool) -> CaptionTold:
    return CaptionTold(
        file=", ".join(quote_name(name, 100) for name in change.images),
        state=state,
        before=_shown(change.before) if dry_run else None,
        after=_shown(change.after) if dry_run else None,
    )


def _shown(content: bytes | None) -> str | None:
    if content is None:
        return None
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return quote_foreign(content.decode(encoding, "backslashreplace"), _TEXT_SHOWN)


def _listed(names: Sequence[str]) -> list[str]:
    shown = [quote_name(name, 100) for name in names[:_FILES_LISTED]]
    return [*shown, f"… and {len(names) - len(shown)} more"] if len(names) > len(shown) else shown


def _summary(
    folder: Path, mode: Mode, outcome: Outcome, without: Sequence[str], lacking: Sequence[str], *, dry_run: bool
) -> str:
    undo = mode == "undo"
    states = [_state(change, undo=undo) for change in outcome.changes]
    parts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    if outcome.same:
        parts.append(f"{len(outcome.same)} {'as before' if undo else 'right'} already")
    if outcome.left_alone:
        parts.append(f"{len(outcome.left_alone)} left alone because somebody changed them since")
    what = f"{_count(len(outcome.changes), 'caption')} in {quoted(folder)}"
    if parts:
        what += f" ({', '.join(parts)})"
    if dry_run:
        said = [f"Dry run: would {'bring back' if undo else 'write'} {what}. Nothing was written."]
    elif undo:
        said = [f"Brought back {what}."]
    else:
        said = [f"Wrote {what}."]
        if outcome.changes:
            said.append("What they said before is kept.")
    if lacking and not undo:
        said.append(f"Captions without the trigger word: {len(lacking)}.")
    if without:
        said.append(f"Images without a caption: {len(without)}.")
    return " ".join(said)


def _next_step(mode: Mode, outcome: Outcome, without: Sequence[str], lacking: Sequence[str], *, dry_run: bool) -> str:
    if dry_run:
        if not outcome.changes:
            return "There is nothing to write. Call check_dataset to see how the folder stands."
        return "Show the person what would change. If they agree, call write_captions again with dry_run false."
    if mode == "undo":
        if outcome.left_alone:
            return (
                "Tell the person which captions were left alone: they were changed after the write, and only a new "
                "text in mode set would replace them."
            )
        return "Call check_dataset to see how the folder stands now."
    steps = []
    if without:
        steps.append("Write captions for the images in without_caption too, or ask the person whether to.")
    if lacking:
        steps.append("Mode prepend_trigger puts the trigger word into the captions that lack it.")
    steps.append(f"{'Then call' if steps else 'Call'} check_dataset to look at the folder again.")
    if outcome.changes:
        steps.append("Mode undo takes this write back.")
    return " ".join(steps)


def _count(number: int, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"
