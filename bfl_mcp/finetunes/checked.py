"""What check_dataset answers: the verdict on a folder, its findings, and what will be changed on the way."""

import re
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from pydantic import BaseModel, Field

from bfl_mcp.dataset.findings import megabytes
from bfl_mcp.errors import quote_foreign, quote_name, quoted
from bfl_mcp.finetunes.packing import Packed
from bfl_mcp.finetunes.price import Quote
from bfl_mcp.finetunes.provider import Provider

if TYPE_CHECKING:
    from bfl_mcp.dataset.findings import Finding, Severity
    from bfl_mcp.dataset.judge import Plan

Verdict = Literal["ready", "ready with warnings", "not ready"]
Detail = Literal["concise", "full"]

_CONCISE_BYTES: Final = 1500
"""A concise answer has less text than this, to stay readable in a conversation."""

# What the text has and these facts have not.
_KEPT_FREE_BYTES: Final = 40
_FILES_SHOWN: Final = 3
_NAMES_BYTES: Final = 120
_FOLDER_SHOWN: Final = 120
_CODES_SHOWN: Final = 8
# Longer lines of a list are cut where they become text.
_LINE_CHARACTERS: Final = 240
_NAME_SHOWN: Final = 40
_CHANGES_SHOWN: Final = 4
_FILES_SHOWN_IN_FULL: Final = 100
_FINDINGS_SHOWN_IN_FULL: Final = 60
_NUMBER: Final = re.compile(r"\d+(\.\d+)?")


class FindingTold(BaseModel):
    """One finding."""

    severity: str = Field(description="fault, warning or info.")
    code: str = Field(description="Name of the check.")
    files: list[str] = Field(description="Files it is about; none if it is about the folder.")
    what: str = Field(description="What was found.")
    remedy: str = Field(description="What to do about it.")


class DatasetChecked(BaseModel):
    """What came of a call to check_dataset."""

    verdict: Verdict = Field(description="Whether it can be trained on.")
    images: int = Field(description="Images that would be trained on.")
    captions: int = Field(description="Images with a caption of their own.")
    with_trigger_word: int | None = Field(default=None, description="Captions that hold it; absent without one.")
    faults: int = Field(description="Findings that stand in the way.")
    warnings: int = Field(description="Findings that may cost quality.")
    findings: list[FindingTold] = Field(description="Worst first; concise leaves some out and says so.")
    changes: list[str] = Field(description="What is changed in the copy that is sent; full names the files.")
    names: list[str] | None = Field(default=None, description="New name ← old one; only with detail=full.")
    archive_bytes: int | None = Field(default=None, description="Size of the ZIP in bytes; absent with faults.")
    archive_sha256: str | None = Field(default=None, description="Identity of the dataset: same folder, same value.")
    cost_usd: float | None = Field(default=None, description="Last published price; 0 is free; absent if unknown.")
    not_checked: list[str] = Field(description="Checks left out, and the argument they need.")
    summary: str = Field(description="The verdict in a sentence.")
    next_step: str = Field(description="What to do next.")


def tell_checked(
    packed: Packed, provider: Provider, quote: Quote | None, plan: "Plan", detail: Detail
) -> DatasetChecked:
    """Put an examination into the words of the tool. `quote` is None where the iterations are not known."""
    from bfl_mcp.dataset.judge import judge
    from bfl_mcp.dataset.wording import has_word

    dataset, archive = packed.dataset, packed.examined.archive
    judged = judge(dataset, packed.examined, plan)
    findings = [finding for finding in judged if finding.severity != "change"]
    counts = Counter(finding.severity for finding in findings)
    verdict: Verdict = "not ready" if counts["fault"] else "ready with warnings" if counts["warning"] else "ready"
    with_word = None
    if plan.trigger_word:
        with_word = sum(has_word(image.caption or "", plan.trigger_word) for image in dataset.images)
    changes = [finding for finding in judged if finding.severity == "change"]
    checked = DatasetChecked(
        verdict=verdict,
        images=len(dataset.images),
        captions=dataset.captions,
        with_trigger_word=with_word,
        faults=counts["fault"],
        warnings=counts["warning"],
        findings=[],
        changes=_tell_changes(packed, changes, detail),
        names=_tell_names(packed) if detail == "full" else None,
        archive_bytes=archive.size_bytes if archive is not None else None,
        archive_sha256=archive.sha256 if archive is not None else None,
        cost_usd=quote.usd if quote is not None else None,
        not_checked=_not_checked(plan, quote, provider),
        summary=_summary(packed, verdict, counts, provider),
        next_step=_next_step(verdict),
    )
    taken = len(checked.model_dump_json(exclude_none=True).encode()) + _KEPT_FREE_BYTES
    told = tell_findings(findings, detail, _CONCISE_BYTES - taken)
    checked.findings = told.findings
    checked.next_step += _more(told, detail)
    return checked


@dataclass(frozen=True, slots=True)
class Told:
    """Findings as an answer shows them, and what it leaves out."""

    findings: list[FindingTold]
    warnings: int
    left_out: str
    """The findings that are not shown, by their checks; empty where all are."""
    is_whole: bool
    """Whether every file of those that are shown is named."""


def tell_findings(findings: "list[Finding]", detail: Detail, room_bytes: int) -> Told:
    """Put findings into words: full those of one check and text together, concise those of one check.

    Concise leaves out the least, so that the text fits into `room_bytes`; the first finding is told in any case.
    """
    groups = _together(findings, lambda finding: finding.code)
    if detail == "full":
        groups = _together(findings, lambda finding: (finding.code, finding.what, _group(finding)))
        if len(groups) > _FINDINGS_SHOWN_IN_FULL:
            # Of single files the numbers differ, and the first stands for all.
            groups = _together(
                findings, lambda finding: (finding.code, _NUMBER.sub("#", finding.what), _group(finding))
            )
    told = [_tell(group, detail) for group in groups[:_FINDINGS_SHOWN_IN_FULL]]
    if detail == "concise":
        told = told[: _how_many_fit(told, groups, room_bytes)]
    return Told(
        findings=told,
        warnings=sum(finding.severity == "warning" for finding in findings),
        left_out=_name_checks(groups[len(told) :]),
        is_whole=not any(name.startswith("… and ") for item in told for name in item.files)
        and not any("(the first of " in item.what for item in told),
    )


def _together(findings: "list[Finding]", key: "Callable[[Finding], object]") -> "list[list[Finding]]":
    groups: dict[object, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(key(finding), []).append(finding)
    return list(groups.values())


def _group(finding: "Finding") -> tuple[str, ...]:
    """What keeps findings about several files apart."""
    return finding.files if len(finding.files) > 1 else ()


def _how_many_fit(told: list[FindingTold], groups: "list[list[Finding]]", room_bytes: int) -> int:
    """How many findings fit beside what is said of the others; at least one."""
    sizes = [
        len("  ".join([item.severity, item.code, *item.files, item.what, item.remedy]).encode()) + 8 for item in told
    ]
    for number in range(len(told), 1, -1):
        if sum(sizes[:number]) + len(_more_words(_name_checks(groups[number:])).encode()) <= room_bytes:
            return number
    return min(len(told), 1)


def _name_checks(groups: "list[list[Finding]]") -> str:
    """Findings that are not shown: "9 findings (small, long, blurred, …)"."""
    number = sum(map(len, groups))
    codes = list(dict.fromkeys(group[0].code for group in groups))
    named = ", ".join([*codes[:_CODES_SHOWN], *(["…"] if len(codes) > _CODES_SHOWN else [])])
    return f"{number} finding{'' if number == 1 else 's'} ({named})" if number else ""


def _not_checked(plan: "Plan", quote: Quote | None, provider: Provider) -> list[str]:
    left_out = []
    if plan.mode is None:
        left_out.append("what the mode asks for (mode)")
    if not plan.trigger_word:
        left_out.append("trigger word in the captions (trigger_word)")
    # The trainer inside this server is free.
    if quote is None and provider.url is not None:
        left_out.append("price (iterations)")
    return left_out


def _summary(packed: Packed, verdict: Verdict, counts: "Counter[Severity]", provider: Provider) -> str:
    found = ", ".join(
        f"{counts[severity]} {severity}" + ("s" if counts[severity] > 1 and severity != "info" else "")
        for severity in ("fault", "warning", "info")
        if counts[severity]
    )
    images = len(packed.dataset.images)
    what = f"{images} image{'' if images == 1 else 's'}, {packed.dataset.captions} with a caption"
    text = f"{quoted(packed.dataset.folder, _FOLDER_SHOWN)} is {verdict}: {what}; {found or 'nothing to note'}."
    if packed.examined.archive is not None:
        size = packed.examined.archive.size_bytes
        text += f" The archive for {provider.name} has {megabytes(size)}, {megabytes(size * 4 // 3)} in base64."
    return f"{text} Nothing was sent, and no file was changed."


def _more(told: Told, detail: Detail) -> str:
    """How to see what is not shown."""
    if told.left_out:
        return _more_words(told.left_out) if detail == "concise" else f" Not shown: {told.left_out}."
    return " detail=full names every file." if detail == "concise" and not told.is_whole else ""


def _more_words(left_out: str) -> str:
    return f" Not shown: {left_out}; detail=full tells all." if left_out else ""


def _next_step(verdict: Verdict) -> str:
    match verdict:
        case "not ready":
            return "Tell the person the faults and their remedies; once they are mended, check again."
        case "ready with warnings":
            return (
                "Tell the person the warnings; they decide whether to mend them. Then create_finetune with "
                "dry_run=true shows what would be sent."
            )
        case _:
            return "Tell the person, and call create_finetune with dry_run=true to see what would be sent."


def _tell(group: "list[Finding]", detail: Detail) -> FindingTold:
    first = group[0]
    alone = all(len(finding.files) == 1 for finding in group)
    files = [name for finding in group for name in finding.files] if alone else list(first.files)
    what = first.what
    if len({(finding.what, _group(finding)) for finding in group}) > 1:
        what = f"{what} (the first of {len(group)})"
    return FindingTold(
        severity=first.severity,
        code=first.code,
        files=_some(files, detail),
        what=what,
        remedy=first.remedy,
    )


def _some(names: Sequence[str], detail: Detail) -> list[str]:
    most = _FILES_SHOWN_IN_FULL
    shown = list(names[:most])
    if detail == "concise":
        shown = [quote_foreign(name, _NAME_SHOWN) for name in names[:_FILES_SHOWN]]
        while len(shown) > 1 and sum(len(name.encode()) for name in shown) > _NAMES_BYTES:
            shown.pop()
        most = len(shown)
    return [*shown, f"… and {len(names) - most} more"] if len(names) > most else shown


def _tell_changes(packed: Packed, changes: "list[Finding]", detail: Detail) -> list[str]:
    told = [f"{len(change.files)} {change.what}" for change in changes]
    if detail == "full":
        told = [
            line
            for start, change in zip(told, changes, strict=True)
            for line in _wrapped(f"{start}: {', '.join(_some(change.files, detail))}")
        ]
    elif len(told) > _CHANGES_SHOWN:
        told = [*told[: _CHANGES_SHOWN - 1], f"… and {len(told) - _CHANGES_SHOWN + 1} other kinds of changes"]
    before = sum(seen.source_bytes for seen in packed.examined.seen.values())
    after = sum(seen.sent_bytes for seen in packed.examined.seen.values())
    if packed.examined.seen:
        told.append(f"all renamed 001, 002 …; {megabytes(before)} of images become {megabytes(after)}")
    return told


def _wrapped(line: str) -> list[str]:
    first, *more = textwrap.wrap(line, _LINE_CHARACTERS, break_long_words=False, break_on_hyphens=False)
    return [first, *(f"… {part}" for part in more)]


def _tell_names(packed: Packed) -> list[str] | None:
    """Which image becomes which, where an archive was made."""
    if packed.examined.archive is None:
        return None
    seen = packed.examined.seen
    pairs = [
        f"{number:03}{seen[image.path.name].picture.suffix} ← {quote_name(image.path.name, 100)}"
        for number, image in enumerate(packed.dataset.images, start=1)
    ]
    return _some(pairs, "full")
