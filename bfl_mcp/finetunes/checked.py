"""What check_dataset answers: the verdict on a folder, its findings, and what will be changed on the way."""

import re
from collections import Counter
from typing import TYPE_CHECKING, Final, Literal

from pydantic import BaseModel, Field

from bfl_mcp.errors import quoted
from bfl_mcp.finetunes.packing import Packed, megabytes
from bfl_mcp.finetunes.provider import Provider
from bfl_mcp.finetunes.spend import Quote

if TYPE_CHECKING:
    from bfl_mcp.dataset.findings import Finding, Severity

Verdict = Literal["ready", "ready with warnings", "not ready"]
Detail = Literal["concise", "full"]

# A concise answer has to stay readable in a conversation.
_FILES_SHOWN: Final = 3
_FINDINGS_SHOWN: Final = 8
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
    changes: list[str] = Field(description="What is changed in the copy that is sent.")
    archive_bytes: int | None = Field(default=None, description="Size of the ZIP in bytes; absent with faults.")
    archive_sha256: str | None = Field(default=None, description="Identity of the dataset: same folder, same value.")
    cost_usd: float | None = Field(default=None, description="Last published price; 0 is free; absent if unknown.")
    not_checked: list[str] = Field(description="Checks left out, and the argument they need.")
    summary: str = Field(description="The verdict in a sentence.")
    next_step: str = Field(description="What to do next.")


def tell_checked(
    packed: Packed,
    provider: Provider,
    quote: Quote | None,
    trigger_word: str | None,
    *,
    max_megapixels: float,
    detail: Detail,
) -> DatasetChecked:
    """Put an examination into the words of the tool. `quote` is None where the iterations are not known."""
    from bfl_mcp.dataset.judge import judge
    from bfl_mcp.dataset.wording import has_word

    dataset, archive = packed.dataset, packed.examined.archive
    findings = judge(dataset, packed.examined, trigger_word)
    counts = Counter(finding.severity for finding in findings)
    verdict: Verdict = "not ready" if counts["fault"] else "ready with warnings" if counts["warning"] else "ready"
    told = _told(findings, detail)
    with_word = None
    if trigger_word:
        with_word = sum(has_word(image.caption or "", trigger_word) for image in dataset.images)
    not_checked = [] if trigger_word else ["trigger word in the captions (trigger_word)"]
    if quote is None and not provider.practice:
        not_checked.append("price (iterations)")
    return DatasetChecked(
        verdict=verdict,
        images=len(dataset.images),
        captions=dataset.captions,
        with_trigger_word=with_word,
        faults=counts["fault"],
        warnings=counts["warning"],
        findings=told,
        changes=_changes(packed, max_megapixels),
        archive_bytes=archive.size_bytes if archive is not None else None,
        archive_sha256=archive.sha256 if archive is not None else None,
        cost_usd=quote.usd if quote is not None else None,
        not_checked=not_checked,
        summary=_summary(packed, verdict, counts, provider),
        next_step=_next_step(verdict, len(findings) - sum(max(len(item.files), 1) for item in told), detail),
    )


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


def _next_step(verdict: Verdict, left_out: int, detail: Detail) -> str:
    more = " detail=full names all of them." if left_out > 0 and detail == "concise" else ""
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


def _told(findings: "list[Finding]", detail: Detail) -> list[FindingTold]:
    """The findings, those of one check with one text together; concise leaves out the least."""
    together: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        # Of single files the numbers may differ, and the first stands for all; pairs stay as they are.
        alone = len(finding.files) == 1
        key = (finding.code, _NUMBER.sub("#", finding.what) if alone else ", ".join(finding.files))
        together.setdefault(key, []).append(finding)
    groups = list(together.values())
    shown = groups[: _FINDINGS_SHOWN_IN_FULL if detail == "full" else _FINDINGS_SHOWN]
    return [_tell(group, detail) for group in shown]


def _tell(group: "list[Finding]", detail: Detail) -> FindingTold:
    first = group[0]
    files = [name for finding in group for name in finding.files]
    what = first.what
    if len({finding.what for finding in group}) > 1:
        what = f"{what} (the first of {len(group)})"
        if detail == "full":
            what = "; ".join(f"{finding.files[0]}: {finding.what}" for finding in group[:_FILES_SHOWN_IN_FULL])
    most = _FILES_SHOWN if detail == "concise" else _FILES_SHOWN_IN_FULL
    if len(files) > most:
        files = [*files[:most], f"… and {len(files) - most} more"]
    return FindingTold(severity=first.severity, code=first.code, files=files, what=what, remedy=first.remedy)


def _changes(packed: Packed, max_megapixels: float) -> list[str]:
    looks = [seen.look for seen in packed.examined.seen.values()]
    pixels = max_megapixels * 1_000_000
    numbers = {
        "turned upright": sum(look.is_turned for look in looks),
        f"shrunk to {max_megapixels:g} megapixels": sum(
            bool(pixels) and look.width * look.height > pixels for look in looks
        ),
        "converted to 8-bit sRGB": sum(look.mode != "RGB" or look.has_profile for look in looks),
        "freed of metadata": sum(look.has_metadata for look in looks),
        "freed of the place where they were taken": sum(look.has_position for look in looks),
    }
    changes = [f"{number} {what}" for what, number in numbers.items() if number]
    before = sum(seen.source_bytes for seen in packed.examined.seen.values())
    after = sum(seen.sent_bytes for seen in packed.examined.seen.values())
    if looks:
        changes.append(f"all renamed 001, 002 …; {megabytes(before)} of images become {megabytes(after)}")
    return changes
