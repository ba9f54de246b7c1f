"""What check_dataset answers: the verdict on a folder, its findings, and what will be changed on the way."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from pydantic import BaseModel, Field

from bfl_mcp.dataset.findings import megabytes
from bfl_mcp.errors import quote_name, quoted
from bfl_mcp.finetunes.packing import Packed
from bfl_mcp.finetunes.provider import Provider
from bfl_mcp.finetunes.spend import Quote

if TYPE_CHECKING:
    from bfl_mcp.dataset.findings import Finding, Severity
    from bfl_mcp.dataset.judge import Plan

Verdict = Literal["ready", "ready with warnings", "not ready"]
Detail = Literal["concise", "full"]

# A concise answer has to stay readable in a conversation: in all below 1 500 bytes.
_FILES_SHOWN: Final = 3
_FINDINGS_BYTES: Final = 800
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
    told = tell_findings(findings, detail)
    with_word = None
    if plan.trigger_word:
        with_word = sum(has_word(image.caption or "", plan.trigger_word) for image in dataset.images)
    changes = [finding for finding in judged if finding.severity == "change"]
    return DatasetChecked(
        verdict=verdict,
        images=len(dataset.images),
        captions=dataset.captions,
        with_trigger_word=with_word,
        faults=counts["fault"],
        warnings=counts["warning"],
        findings=told.findings,
        changes=_tell_changes(packed, changes, detail),
        names=_tell_names(packed) if detail == "full" else None,
        archive_bytes=archive.size_bytes if archive is not None else None,
        archive_sha256=archive.sha256 if archive is not None else None,
        cost_usd=quote.usd if quote is not None else None,
        not_checked=_not_checked(plan, quote, provider),
        summary=_summary(packed, verdict, counts, provider),
        next_step=_next_step(verdict, told, detail),
    )


@dataclass(frozen=True, slots=True)
class Told:
    """Findings as an answer shows them, and what it leaves out."""

    findings: list[FindingTold]
    warnings: int
    left_out: int
    """Findings that are not shown."""
    is_whole: bool
    """Whether every file of every finding is named."""


def tell_findings(findings: "list[Finding]", detail: Detail) -> Told:
    """Put findings into words, those of one check with one text together; concise leaves out the least."""
    together: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        # Of single files the numbers may differ, and the first stands for all; groups stay as they are.
        alone = len(finding.files) == 1
        key = (finding.code, _NUMBER.sub("#", finding.what) if alone else ", ".join(finding.files))
        together.setdefault(key, []).append(finding)
    groups = list(together.values())
    told = [_tell(group, detail) for group in groups[:_FINDINGS_SHOWN_IN_FULL]]
    if detail == "concise":
        told = _that_fit(told)
    most = _FILES_SHOWN if detail == "concise" else _FILES_SHOWN_IN_FULL
    return Told(
        findings=told,
        warnings=sum(finding.severity == "warning" for finding in findings),
        left_out=sum(map(len, groups[len(told) :])),
        is_whole=len(told) == len(groups)
        and all(sum(len(finding.files) for finding in group) <= most for group in groups),
    )


def _that_fit(told: list[FindingTold]) -> list[FindingTold]:
    """The first findings, at least one, that fit into a concise answer."""
    left = _FINDINGS_BYTES
    for number, item in enumerate(told):
        left -= len(" ".join([item.severity, item.code, *item.files, item.what, item.remedy]).encode())
        if number and left < 0:
            return told[:number]
    return told


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
    text = f"{quoted(packed.dataset.folder)} is {verdict}: {what}" + (f"; {found}." if found else "; nothing to note.")
    if packed.examined.archive is not None:
        text += f" The archive for {provider.name} has {megabytes(packed.examined.archive.size_bytes)}."
    return f"{text} Nothing was sent, and no file was changed."


def _next_step(verdict: Verdict, told: Told, detail: Detail) -> str:
    more = ""
    if detail == "concise" and told.left_out:
        more = f" {told.left_out} findings are left out here: detail=full names all."
    elif detail == "concise" and not told.is_whole:
        more = " detail=full names all files."
    match verdict:
        case "not ready":
            return f"Tell the person the faults and their remedies; once they are mended, check again.{more}"
        case "ready with warnings":
            return (
                "Tell the person the warnings; they decide whether to mend them. Then create_finetune with "
                f"dry_run=true shows what would be sent.{more}"
            )
        case _:
            return f"Tell the person, and call create_finetune with dry_run=true to see what would be sent.{more}"


def _tell(group: "list[Finding]", detail: Detail) -> FindingTold:
    first = group[0]
    files = [name for finding in group for name in finding.files]
    what = first.what
    if len({finding.what for finding in group}) > 1:
        what = f"{what} (the first of {len(group)})"
        if detail == "full":
            what = "; ".join(f"{finding.files[0]}: {finding.what}" for finding in group[:_FILES_SHOWN_IN_FULL])
    return FindingTold(
        severity=first.severity,
        code=first.code,
        files=_some(files, detail),
        what=what,
        remedy=first.remedy,
    )


def _some(names: Sequence[str], detail: Detail) -> list[str]:
    most = _FILES_SHOWN if detail == "concise" else _FILES_SHOWN_IN_FULL
    shown = [quote_name(name, _NAME_SHOWN) if detail == "concise" else name for name in names[:most]]
    return [*shown, f"… and {len(names) - most} more"] if len(names) > most else shown


def _tell_changes(packed: Packed, changes: "list[Finding]", detail: Detail) -> list[str]:
    told = [f"{len(change.files)} {change.what}" for change in changes]
    if detail == "full":
        told = [f"{line}: {', '.join(_some(change.files, detail))}" for line, change in zip(told, changes, strict=True)]
    elif len(told) > _CHANGES_SHOWN:
        told = [*told[: _CHANGES_SHOWN - 1], f"… and {len(told) - _CHANGES_SHOWN + 1} other kinds of changes"]
    before = sum(seen.source_bytes for seen in packed.examined.seen.values())
    after = sum(seen.sent_bytes for seen in packed.examined.seen.values())
    if packed.examined.seen:
        told.append(f"all renamed 001, 002 …; {megabytes(before)} of images become {megabytes(after)}")
    return told


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
