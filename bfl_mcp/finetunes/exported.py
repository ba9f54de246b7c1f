"""What export_dataset answers, in facts and in words."""

from typing import TYPE_CHECKING, Final, Literal

from pydantic import BaseModel, Field

from bfl_mcp.contract import MAX_PATH_CHARACTERS
from bfl_mcp.dataset.findings import megabytes
from bfl_mcp.errors import quote_foreign, quote_name, quoted
from bfl_mcp.finetunes.packing import Packed

if TYPE_CHECKING:
    from bfl_mcp.dataset.export import Exported

_NAMES_LISTED: Final = 40


class DatasetExported(BaseModel):
    """What came of a call to export_dataset."""

    path: str = Field(description="What was made.")
    kind: Literal["archive", "folder"] = Field(description="archive is a ZIP.")
    images: int = Field(description="Images in it.")
    captions: int = Field(description="Images with a caption of their own.")
    size_bytes: int = Field(description="Size of the ZIP, or of the folder's files.")
    archive_sha256: str = Field(description="Identity of the dataset, and checksum of the ZIP.")
    names: list[str] = Field(description="New name ← name in the dataset; of many the first.")
    warnings: int = Field(description="Findings that may cost quality; check_dataset names them.")
    summary: str = Field(description="What happened.")
    next_step: str = Field(description="What to do next.")


def tell_exported(packed: Packed, exported: "Exported") -> DatasetExported:
    """The answer to an export that was written."""
    from bfl_mcp.dataset.judge import Plan, judge

    archive = packed.archive
    findings = judge(packed.dataset, packed.examined, Plan())
    warnings = sum(finding.severity == "warning" for finding in findings)
    return DatasetExported(
        path=quote_foreign(exported.path, MAX_PATH_CHARACTERS),
        kind=exported.kind,
        images=archive.images,
        captions=archive.captions,
        size_bytes=exported.size_bytes,
        archive_sha256=archive.sha256,
        names=_list_names(packed, exported),
        warnings=warnings,
        summary=_summary(packed, exported),
        next_step=_next_step(exported, archive.captions, archive.images, warnings),
    )


def _list_names(packed: Packed, exported: "Exported") -> list[str]:
    pairs = list(zip(exported.names, packed.dataset.images, strict=True))
    listed = [f"{name} ← {quote_name(image.path.name, 100)}" for name, image in pairs[:_NAMES_LISTED]]
    if more := len(pairs) - len(listed):
        listed.append(f"… and {more} more, in the order of their names in the dataset")
    return listed


def _summary(packed: Packed, exported: "Exported") -> str:
    archive = packed.archive
    images = "1 image" if archive.images == 1 else f"{archive.images} images"
    what = f"{images}, {archive.captions} with a caption, {megabytes(exported.size_bytes)}"
    made = "archive" if exported.kind == "archive" else "new folder"
    return (
        f"Exported {quoted(packed.dataset.folder)} to the {made} {quoted(exported.path)}: {what}. Nothing was sent, "
        "and no file was changed."
    )


def _next_step(exported: "Exported", captions: int, images: int, warnings: int) -> str:
    steps = ["Tell the person where it is."]
    if exported.kind == "folder":
        steps.append(
            "Trainers such as kohya's sd-scripts, ai-toolkit, OneTrainer and SimpleTuner take such a folder; where "
            "they ask, a caption is the .txt of its image's name."
        )
    else:
        steps.append("It holds 001.jpg beside 001.txt and so on, without folders.")
    if captions < images:
        steps.append("write_captions writes captions for images without one; then export to a new name.")
    if warnings:
        steps.append("check_dataset names the warnings.")
    return " ".join(steps)
