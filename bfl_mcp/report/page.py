"""The report as one page: everything in one file, nothing from elsewhere, nothing that a name or caption could start.

The page is made part by part, so that a thousand pictures need the memory of a few. All foreign text passes `_text`.
"""

import base64
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import cache
from html import escape
from pathlib import Path
from typing import Final

from bfl_mcp import __version__
from bfl_mcp.dataset.findings import SAID_OF_MOST, Finding, megabytes
from bfl_mcp.dataset.folder import ImageFile
from bfl_mcp.errors import quote_foreign, quote_name, quoted
from bfl_mcp.report.judged import PLURALS, SEVERITIES, SIGNS, Judged
from bfl_mcp.report.target import MARK
from bfl_mcp.report.tiles import Tile

# Longer captions are folded; what is beyond the second is left out, and said to be.
_CAPTION_OPEN: Final = 240
_CAPTION_SHOWN: Final = 4000
_TOGETHER: Final = 3

_SINGULARS: Final = {"fault": "Fault", "warning": "Warning", "info": "Note"}
_VERDICTS: Final = {"ready": "fine", "ready with warnings": "warning", "not ready": "fault"}


def build_page(
    judged: Judged, tiles: Iterable[tuple[ImageFile, Tile | None]], on_tile: Callable[[int], None] = lambda _: None
) -> Iterator[str]:
    """The page in parts. `tiles` are the dataset's images in order; `on_tile` gets the number of those written."""
    numbers = {quote_name(image.path.name): place for place, image in enumerate(judged.dataset.images, start=1)}
    yield _head(judged)
    yield "<body>\n"
    yield _header(judged)
    yield _show_bar(judged)
    yield "<main>\n"
    yield from _findings(judged, numbers)
    yield from _sheet(judged, tiles, numbers, on_tile)
    yield "</main>\n"
    yield _footer()
    yield f"<script>{_script()}</script>\n</body>\n</html>\n"


def _text(foreign: object) -> str:
    """Text that is only read, wherever in the page it stands."""
    return escape(str(foreign), quote=True)


@cache
def _style() -> str:
    return Path(__file__).with_name("page.css").read_text(encoding="utf-8")


@cache
def _script() -> str:
    return Path(__file__).with_name("page.js").read_text(encoding="utf-8")


def _hash(source: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() + "'"


def _head(judged: Judged) -> str:
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(_style())}; script-src {_hash(_script())}; "
        "base-uri 'none'; form-action 'none'"
    )
    return f"""{MARK}-->
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<meta name="generator" content="bfl-mcp {__version__}">
<link rel="icon" href="data:,">
<title>{_text(_name(judged))}: {judged.checked.verdict}</title>
<style>{_style()}</style>
</head>
"""


def _name(judged: Judged) -> str:
    return quote_name(judged.dataset.folder.name) or quoted(judged.dataset.folder)


def _header(judged: Judged) -> str:
    checked, counts = judged.checked, judged.counts
    kind = _VERDICTS[checked.verdict]
    numbers = [("Images", str(checked.images)), ("Captions", str(checked.captions))]
    if checked.with_trigger_word is not None:
        numbers.append(("Trigger word", f"{checked.with_trigger_word} of {checked.captions}"))
    numbers += [
        (PLURALS[severity], str(counts[severity]))
        for severity in SEVERITIES
        if counts[severity] or severity in ("fault", "warning")
    ]
    if checked.archive_bytes is not None:
        numbers.append(("Archive", megabytes(checked.archive_bytes)))
    strip = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>\n" for name, value in numbers)
    return f"""<header>
<p class="overline">Dataset report</p>
<div class="title"><h1><bdi>{_text(_name(judged))}</bdi></h1><p class="verdict {kind}">{checked.verdict}</p></div>
<p class="summary">{_text(checked.summary)}</p>
<dl class="numbers">
{strip}</dl>
<div class="notes">
{_list("Changed in the copy that is sent", checked.changes)}{_list("Not checked", checked.not_checked)}{_facts(judged)}
</div>
</header>
"""


def _list(title: str, items: list[str]) -> str:
    if not items:
        return ""
    return f"<section><h2>{title}</h2><ul>{''.join(f'<li>{_text(item)}</li>' for item in items)}</ul></section>\n"


def _facts(judged: Judged) -> str:
    rows = []
    if judged.wanted.trigger_word is not None:
        rows.append(("Trigger word", _text(quoted(judged.wanted.trigger_word, 60))))
    if judged.quote is not None:
        rows.append(("Price", _text(judged.quote.words)))
    if judged.checked.archive_sha256 is not None:
        rows.append(("SHA-256 of the archive", f"<code>{judged.checked.archive_sha256}</code>"))
    if not rows:
        return ""
    facts = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows)
    return f"<section><h2>This check</h2><dl>{facts}</dl></section>\n"


def _show_bar(judged: Judged) -> str:
    """What is shown: by severity with style alone, by words with the script."""
    if not judged.findings:
        return ""
    counts = judged.counts
    choices = [("all", "Everything", "")]
    choices += [(severity, PLURALS[severity], str(counts[severity])) for severity in SEVERITIES if counts[severity]]
    radios = "".join(
        f'<label><input type="radio" name="show" id="show-{code}"{" checked" if code == "all" else ""}>'
        f"<span>{name}{f' <b>{number}</b>' if number else ''}</span></label>\n"
        for code, name, number in choices
    )
    return f"""<nav aria-label="What is shown">
<fieldset><legend>Show</legend>
{radios}</fieldset>
<input type="search" id="search" placeholder="Name or words" aria-label="Show only what holds these words" hidden>
<p id="shown" role="status"></p>
</nav>
"""


def _findings(judged: Judged, numbers: dict[str, int]) -> Iterator[str]:
    yield '<section aria-labelledby="findings">\n<h2 id="findings">Findings</h2>\n'
    if not judged.findings:
        yield '<p class="nothing">Nothing to note.</p>\n</section>\n'
        return
    yield """<table id="table">
<thead><tr>
<th scope="col" class="severity" aria-sort="ascending">Kind</th>
<th scope="col" class="files">Files</th>
<th scope="col">What was found, and what to do</th>
<th scope="col" class="code">Check</th>
</tr></thead>
<tbody>
"""
    for finding in judged.findings:
        yield _row(finding, numbers)
    yield "</tbody>\n</table>\n</section>\n"


def _row(finding: Finding, numbers: dict[str, int]) -> str:
    severity = str(finding.severity)
    files = "".join(f"<li>{_file(name, numbers)}</li>" for name in finding.files)
    where = f"<ul>{files}</ul>" if files else '<span class="whole">the folder</span>'
    first = numbers.get(finding.files[0], len(numbers) + 1) if finding.files else 0
    return (
        f'<tr class="has-{severity}">'
        f'<td class="severity" data-order="{SEVERITIES.index(severity)}">{_badge(severity)}</td>'
        f'<td class="files" data-order="{first}">{where}</td>'
        f"<td><p>{_text(_sentence(finding.what))}</p>"
        f'<p class="remedy"><span aria-hidden="true">→ </span>{_text(finding.remedy)}</p></td>'
        f'<td class="code">{_text(finding.code)}</td></tr>\n'
    )


def _file(name: str, numbers: dict[str, int]) -> str:
    shown = f"<bdi>{_text(name)}</bdi>"
    number = numbers.get(name)
    return f'<a href="#image-{number}"><b>{number}</b> {shown}</a>' if number is not None else shown


def _badge(severity: str) -> str:
    return (
        f'<span class="badge {severity}"><span class="sign" aria-hidden="true">{SIGNS[severity]}</span>'
        f'<span class="word">{_SINGULARS[severity]}</span></span>'
    )


def _sentence(what: str) -> str:
    return f"{what[:1].upper()}{what[1:]}."


def _sheet(
    judged: Judged,
    tiles: Iterable[tuple[ImageFile, Tile | None]],
    numbers: dict[str, int],
    on_tile: Callable[[int], None],
) -> Iterator[str]:
    if not judged.dataset.images:
        return
    found: dict[str, list[Finding]] = defaultdict(list)
    for finding in judged.findings:
        for name in finding.files if finding.code not in SAID_OF_MOST else ():
            found[name].append(finding)
    yield '<section aria-labelledby="sheet">\n<h2 id="sheet">Contact sheet</h2>\n<div class="sheet">\n'
    for number, (image, tile) in enumerate(tiles, start=1):
        yield _figure(number, image, tile, found.get(quote_name(image.path.name), []), numbers)
        on_tile(number)
    yield "</div>\n</section>\n"


def _figure(number: int, image: ImageFile, tile: Tile | None, findings: list[Finding], numbers: dict[str, int]) -> str:
    name = quote_name(image.path.name)
    severities = [severity for severity in SEVERITIES if any(finding.severity == severity for finding in findings)]
    kinds = " ".join(["tile", *(f"has-{severity}" for severity in severities)])
    worst = f" {severities[0]}" if severities else ""
    flags = "".join(_flag(finding, name, numbers) for finding in findings)
    return (
        f'<figure class="{kinds}" id="image-{number}">'
        f'<div class="frame{worst}">{_picture(number, name, tile)}</div>'
        f'<figcaption><p class="name"><b>{number}</b> <bdi>{_text(name)}</bdi></p>'
        f"{f'<ul>{flags}</ul>' if flags else ''}{_caption(image.caption)}</figcaption></figure>\n"
    )


def _picture(number: int, name: str, tile: Tile | None) -> str:
    if tile is None:
        return '<p class="missing">cannot be shown</p>'
    data = base64.b64encode(tile.jpeg).decode()
    return (
        f'<img src="data:image/jpeg;base64,{data}" width="{tile.width}" height="{tile.height}" '
        f'alt="Image {number}, {_text(name)}" decoding="async">'
    )


def _flag(finding: Finding, name: str, numbers: dict[str, int]) -> str:
    others = [other for other in finding.files if other != name]
    # What is said of many is about each of them; what is said of a few is about them together.
    beside = f" ({', '.join(_file(other, numbers) for other in others)})" if 0 < len(others) <= _TOGETHER else ""
    return f"<li>{_badge(str(finding.severity))} {_text(finding.what)}{beside}</li>"


def _caption(caption: str | None) -> str:
    if caption is None:
        return '<p class="caption none">No caption</p>'
    text = quote_foreign(caption, _CAPTION_SHOWN)
    if len(text) <= _CAPTION_OPEN:
        return f'<p class="caption" dir="auto">{_text(text)}</p>'
    beginning = text[:_CAPTION_OPEN].rsplit(" ", 1)[0]
    return (
        f'<details class="caption" dir="auto"><summary>{_text(beginning)} …</summary>'
        f"<p>{_text(text[len(beginning) :].strip())}</p></details>"
    )


def _footer() -> str:
    now = datetime.now().astimezone()
    return (
        f'<footer><p>Made by bfl-mcp {__version__} on <time datetime="{now.isoformat(timespec="minutes")}">'
        f"{now:%Y-%m-%d, %H:%M}</time>. This page holds the small pictures itself and asks nothing of the network."
        "</p></footer>\n"
    )
