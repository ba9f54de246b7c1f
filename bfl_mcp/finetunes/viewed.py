"""What view_dataset answers: a contact sheet or one image, and the words beside it."""

import unicodedata
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from pydantic import BaseModel

from bfl_mcp.contract import MAX_PATH_CHARACTERS
from bfl_mcp.dataset.findings import SAID_OF_MOST
from bfl_mcp.errors import DatasetError, quote_foreign, quote_name, quoted
from bfl_mcp.finetunes.packing import Packed

if TYPE_CHECKING:
    from bfl_mcp.dataset.access import Access
    from bfl_mcp.dataset.findings import Finding, Severity
    from bfl_mcp.dataset.folder import ImageFile

_CAPTION_SHOWN: Final = 160
_NAMES_SHOWN: Final = 3


class Picture(BaseModel):
    """A picture to look at, as JPEG, and what there is to say about it."""

    text: str
    jpeg: bytes


def view_page(packed: Packed, access: "Access", page: int, home: Path) -> Picture:
    """A page of the contact sheet, kept as a file below `home` too.

    Raises:
        DatasetError: There is no such page, or the folder can no longer be read.
    """
    from bfl_mcp.dataset.judge import Plan, judge
    from bfl_mcp.dataset.sheet import TILES_A_PAGE, Tile, draw_sheet

    images = packed.dataset.images
    pages = max(1, -(-len(images) // TILES_A_PAGE))
    folder = quoted(packed.dataset.folder)
    if not images:
        raise DatasetError(f"{folder} holds no image to look at. check_dataset tells what lies there instead.")
    if page > pages:
        raise DatasetError(
            f"{folder} has {len(images)} images on {pages} page{'s' if pages > 1 else ''}; there is no {page}."
        )
    findings = _by_file(judge(packed.dataset, packed.examined, Plan()))
    first = (page - 1) * TILES_A_PAGE
    shown = images[first : first + TILES_A_PAGE]
    tiles = [
        Tile(first + place, quote_name(image.path.name), _worst(findings.get(quote_name(image.path.name), [])))
        for place, image in enumerate(shown, start=1)
    ]
    with access.open(packed.dataset.folder) as source, ExitStack() as files:

        def opened(image: "ImageFile") -> BinaryIO | None:
            try:
                seen = packed.examined.seen.get(image.path.name)
                prepared = seen.picture.open() if seen is not None else None
                return prepared or files.enter_context(source.open(image.path.name))
            except OSError:
                return None

        jpeg = draw_sheet(tiles, [opened(image) for image in shown])
    lines = [f"Page {page} of {pages} of {folder}: images {first + 1} to {first + len(shown)} of {len(images)}.", ""]
    for tile, image in zip(tiles, shown, strict=True):
        lines += _about(f"{tile.number}. {tile.name}", tile.name, image, findings.get(tile.name, []))
    lines += ["", _where(jpeg, home), "", f"Next: {_next(page, pages)}"]
    return Picture(text="\n".join(lines), jpeg=jpeg)


def view_image(packed: Packed, access: "Access", name: str, home: Path) -> Picture:
    """One image large, kept as a file below `home` too.

    Raises:
        DatasetError: There is no such image, or it cannot be decoded or read any more.
    """
    from bfl_mcp.dataset.judge import Plan, judge
    from bfl_mcp.dataset.sheet import draw_large

    image = _find(packed, name)
    shown = quote_name(image.path.name)
    try:
        with access.open(packed.dataset.folder) as source, source.open(image.path.name) as file:
            jpeg = draw_large(file)
    except DatasetError as error:
        raise DatasetError(f"{shown} cannot be shown: {error}. Nothing was sent.") from None
    except OSError:
        raise DatasetError(f"{shown} cannot be shown: it can no longer be read. Nothing was sent.") from None
    seen = packed.examined.seen.get(image.path.name)
    size = f", {seen.look.width} × {seen.look.height} pixels" if seen is not None else ""
    findings = _by_file(judge(packed.dataset, packed.examined, Plan())).get(shown, [])
    lines = [f"{quoted(image.path)}{size}.", "", *_about(shown, shown, image, findings)]
    lines += ["", _where(jpeg, home)]
    lines += ["", "Next: view_dataset without image shows all of them; write_captions writes what it shows."]
    return Picture(text="\n".join(lines), jpeg=jpeg)


def _where(jpeg: bytes, home: Path) -> str:
    """Where a person finds the picture whose host shows none."""
    from bfl_mcp.dataset.album import album_folder, keep_picture

    try:
        return f"This picture as a file: {quoted(keep_picture(home, jpeg), MAX_PATH_CHARACTERS)}"
    except OSError as error:
        return (
            f"This picture could not be kept as a file in {quoted(album_folder(home), MAX_PATH_CHARACTERS)}: "
            f"{quote_foreign(error.strerror or error)}."
        )


def _find(packed: Packed, name: str) -> "ImageFile":
    wanted = unicodedata.normalize("NFC", name)
    for image in packed.dataset.images:
        if unicodedata.normalize("NFC", image.path.name) == wanted:
            return image
    some = ", ".join(quote_name(image.path.name) for image in packed.dataset.images[:5]) or "none"
    raise DatasetError(
        f"There is no image {quoted(name, 100)} in {quoted(packed.dataset.folder)}. Name it as the folder does, "
        f"without a path, for example: {some}."
    )


def _by_file(findings: "list[Finding]") -> "dict[str, list[Finding]]":
    of_file: dict[str, list[Finding]] = {}
    for finding in findings:
        for name in finding.files if finding.severity != "change" and finding.code not in SAID_OF_MOST else ():
            of_file.setdefault(name, []).append(finding)
    return of_file


def _worst(findings: "list[Finding]") -> "Severity | None":
    # The judge puts the worst first.
    return findings[0].severity if findings else None


def _about(label: str, name: str, image: "ImageFile", findings: "list[Finding]") -> list[str]:
    caption = "no caption" if image.caption is None else f"caption: {quoted(image.caption, _CAPTION_SHOWN)}"
    lines = [f"{label}: {caption}"]
    for finding in findings:
        others = [other for other in finding.files if other != name]
        which = f" ({', '.join(others[:_NAMES_SHOWN])}" if others else ""
        if len(others) > _NAMES_SHOWN:
            which += f" and {len(others) - _NAMES_SHOWN} more"
        lines.append(f"   {finding.severity}: {quote_foreign(finding.what)}{which}{')' if others else ''}")
    return lines


def _next(page: int, pages: int) -> str:
    if page < pages:
        return f"view_dataset with page {page + 1} shows the next; with image and a name it shows one large."
    return "view_dataset with image and a name shows one large. write_captions writes captions for what you see."
