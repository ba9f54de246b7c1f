"""Failures this project expects, in words a model and its reader can act on.

BFLError
├── ConfigError                  the configuration cannot be used; nothing was started
│   └── JournalError             the journal cannot be read or written (finetunes.journal)
├── DatasetError                 the image folder cannot be trained on, or captioned; carries every fault found
├── SpendRefusedError            money would be spent that nobody agreed to (finetunes.spend)
├── ReportError                  a report cannot be written where it is wanted (report.target)
└── APIError                     the API refused, or could not be reached; nothing was started
    ├── TrainingClosedError      BFL's hosts no longer train; nothing was uploaded
    ├── NotFoundError            the API answers, and knows no such finetune
    ├── StartInFlightError       another process is sending the same start (finetunes.journal)
    └── OutcomeUnknownError      a start was sent and no usable answer came back

Every message says what happened, with which value, and what to do next.
"""

import unicodedata
from collections.abc import Sequence

_FOREIGN_TEXT_LIMIT = 300

# They bind letters and emoji together in many scripts, and turn nothing around.
_JOINERS = "\u200c\u200d"
_FIRST_LOST_BYTE, _LAST_LOST_BYTE = 0xDC80, 0xDCFF


class BFLError(Exception):
    """A failure with a message written for the reader of the conversation."""


class ConfigError(BFLError):
    """The environment or a flag cannot be used as it stands."""


class DatasetError(BFLError):
    """The image folder cannot be trained on, or its captions not be written.

    `faults` holds one sentence for each fault, all of them at once, so that nobody fixes one to meet the next.
    """

    def __init__(self, message: str, faults: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults)


class APIError(BFLError):
    """The API refused the request or could not be reached."""


class TrainingClosedError(APIError):
    """The host answers, but its training endpoint is gone."""


class NotFoundError(APIError):
    """The API does not know this finetune, or this account may not see it."""


class OutcomeUnknownError(APIError):
    """A start left this machine and nothing readable came back: it may be running."""


def quote_foreign(text: object, limit: int = _FOREIGN_TEXT_LIMIT) -> str:
    r"""Make text from an API, a file name or a caption safe to stand in one of our sentences.

    Runs of white space, line breaks included, become one space. Other control and formatting characters (terminal
    escapes, bidirectional marks) and bytes that are no text are shown as escapes, such as `\u202e`. What is longer
    than `limit` characters is cut with an ellipsis.
    """
    # Four characters of source for each one shown bounds the work on a hostile text.
    source = str(text)[: limit * 4]
    plain = " ".join("".join(map(_harmless, source)).split())
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"


def quote_name(name: str, limit: int = _FOREIGN_TEXT_LIMIT) -> str:
    """Make a file's name safe like any foreign text.

    One of blanks alone is spelled out. One with a colon stands between quotation marks, or it could pass for a line of
    ours.
    """
    plain = quote_foreign(name, limit) or quote_foreign(ascii(name), limit)
    return quoted(name, limit) if ":" in plain else plain


def quoted(text: object, limit: int = _FOREIGN_TEXT_LIMIT) -> str:
    """The same between quotation marks, which it cannot end."""
    plain = quote_foreign(text, limit)
    mark = '"' if "'" in plain else "'"
    return mark + plain.replace(mark, "\\" + mark) + mark


def _harmless(char: str) -> str:
    if char.isspace():
        return " "
    if unicodedata.category(char)[0] not in "CZ" or char in _JOINERS:
        return char
    code = ord(char)
    if _FIRST_LOST_BYTE <= code <= _LAST_LOST_BYTE:
        # A byte of a file name that is no UTF-8, as Python carries it.
        return f"\\x{code - _FIRST_LOST_BYTE + 0x80:02x}"
    return char.encode("unicode_escape").decode()
