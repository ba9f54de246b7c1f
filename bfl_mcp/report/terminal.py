"""The report as lines of a terminal: wrapped to its width, coloured where it shows colours; and a progress bar."""

import os
import shutil
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Final, Self, TextIO

from bfl_mcp.dataset.findings import Finding, megabytes
from bfl_mcp.errors import quoted
from bfl_mcp.report.judged import PLURALS, SEVERITIES, SIGNS, Judged

_WIDEST: Final = 100
_NARROWEST: Final = 24
_BAR_WIDTH: Final = 30
# Fewer are done before anybody wonders.
_MANY: Final = 12
# Of one check. The page and --json name all.
_FINDINGS_SHOWN: Final = 20

_BOLD, _DIM, _RED, _GREEN, _YELLOW, _BLUE = "1", "2", "31", "32", "33", "36"
_COLOURS: Final = {"fault": _RED, "warning": _YELLOW, "info": _BLUE}
_VERDICTS: Final = {"ready": ("✓", _GREEN), "ready with warnings": ("!", _YELLOW), "not ready": ("✗", _RED)}


@dataclass(frozen=True, slots=True)
class Terminal:
    """How many columns there are, and whether colours are shown."""

    width: int
    coloured: bool

    @classmethod
    def of(cls, stream: TextIO) -> Self:
        """What a stream leads to. NO_COLOR, whatever it says, turns colours off."""
        width = min(max(shutil.get_terminal_size().columns, _NARROWEST), _WIDEST)
        return cls(width, is_terminal(stream) and not os.environ.get("NO_COLOR"))

    def paint(self, text: str, *styles: str) -> str:
        """The text in a style, if there are colours."""
        return f"\033[{';'.join(styles)}m{text}\033[0m" if self.coloured and styles else text

    def lines(self, text: str, indent: int, *styles: str, first: str = "") -> Iterator[str]:
        """The text wrapped and indented; `first` stands in the indent of its first line."""
        for number, line in enumerate(wrap(text, self.width - indent)):
            margin = first.ljust(indent) if number == 0 else " " * indent
            yield margin + self.paint(line, *styles)


def is_terminal(stream: TextIO) -> bool:
    """Whether a person looks at it, through something that moves the cursor."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def tell(judged: Judged, terminal: Terminal) -> Iterator[str]:
    """The lines of the report: the findings, worst first, then what will be sent, and the verdict where the eye is."""
    yield terminal.paint("Dataset report", _BOLD)
    yield from terminal.lines(quoted(judged.dataset.folder), 0, _DIM)
    for severity in SEVERITIES:
        found = [finding for finding in judged.findings if finding.severity == severity]
        if found:
            yield ""
            yield terminal.paint(f"{PLURALS[severity]} ({len(found)})", _BOLD, _COLOURS[severity])
            for code, same in groupby(found, key=lambda finding: finding.code):
                yield from _tell_check(code, list(same), terminal)
    yield from _tell_list("Changed in the copy that is sent", judged.checked.changes, terminal)
    yield from _tell_list("Not checked", judged.checked.not_checked, terminal)
    yield ""
    for name, value in facts(judged):
        yield from terminal.lines(value, 16, first=f"  {name}")
    yield ""
    sign, colour = _VERDICTS[judged.checked.verdict]
    yield terminal.paint(f"{sign} {judged.checked.verdict}", _BOLD, colour)
    yield from terminal.lines(judged.checked.summary, 0)


def facts(judged: Judged) -> Iterator[tuple[str, str]]:
    """What will be sent, in numbers: names and values."""
    checked = judged.checked
    yield "images", str(checked.images)
    yield "captions", str(checked.captions)
    if checked.with_trigger_word is not None:
        yield "trigger word", f"{quoted(judged.wanted.trigger_word, 60)} in {checked.with_trigger_word}"
    if checked.archive_bytes is not None and checked.archive_sha256 is not None:
        yield "archive", megabytes(checked.archive_bytes)
        yield "SHA-256", checked.archive_sha256
    if judged.quote is not None:
        yield "price", judged.quote.words


def _tell_check(code: str, found: list[Finding], terminal: Terminal) -> Iterator[str]:
    sign = terminal.paint(SIGNS[found[0].severity], _COLOURS[found[0].severity])
    yield f"  {sign} {terminal.paint(code, _BOLD)}"
    for finding in found[:_FINDINGS_SHOWN]:
        yield from terminal.lines(finding.sentence, 6)
    if (more := len(found) - _FINDINGS_SHOWN) > 0:
        yield from terminal.lines(f"… and {more} more; --html shows all.", 6)
    yield from terminal.lines(found[0].remedy, 6, _DIM, first="    →")


def _tell_list(title: str, items: list[str], terminal: Terminal) -> Iterator[str]:
    if items:
        yield ""
        yield terminal.paint(title, _BOLD)
    for item in items:
        yield from terminal.lines(item, 4, first="  ·")


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most so many columns of a terminal, where letters may take none, one or two."""
    lines, line, used = [], "", 0
    for word in text.split():
        size = columns(word)
        if line and used + 1 + size > width:
            lines.append(line)
            line, used = "", 0
        if line:
            line, used = f"{line} {word}", used + 1 + size
            continue
        # A word that is wider than a whole line is broken.
        for char in word:
            wide = columns(char)
            if line and used + wide > width:
                lines.append(line)
                line, used = "", 0
            line, used = line + char, used + wide
    return [*lines, line] if line else lines


def columns(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(_columns_of(char) for char in text)


def _columns_of(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("F", "W") else 1


class Bar:
    """A progress bar for many files, where a person looks; nothing anywhere else."""

    def __init__(self, stream: TextIO, doing: str, total: int) -> None:
        self._stream = stream
        self._doing = doing
        self._total = total
        self._shown = ""
        self._is_wanted = total >= _MANY and is_terminal(stream)

    def __enter__(self) -> Self:
        if self._is_wanted:
            self.show(0)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the line as it was before."""
        if self._shown:
            self._stream.write("\r" + " " * len(self._shown) + "\r")
            self._stream.flush()

    def show(self, done: int) -> None:
        """So many are done."""
        if not self._is_wanted:
            return
        share = done / self._total
        width = min(_BAR_WIDTH, max(5, self._columns() - 40))
        full = int(share * width)
        text = f"{self._doing} {'█' * full}{'░' * (width - full)} {share:4.0%}, {done} of {self._total} images"
        text = text[: self._columns() - 1]
        if text != self._shown:
            self._stream.write("\r" + text.ljust(len(self._shown)))
            self._stream.flush()
            self._shown = text

    def _columns(self) -> int:
        try:
            return max(os.get_terminal_size(self._stream.fileno()).columns, _NARROWEST)
        except OSError:
            return 80
