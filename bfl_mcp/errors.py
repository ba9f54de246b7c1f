"""Failures this project expects, in words a model and its reader can act on.

BFLError
├── ConfigError                  the configuration cannot be used; nothing was started
│   └── JournalError             the journal cannot be read or written (finetunes.journal)
├── DatasetError                 the image folder cannot be trained on; carries every fault found
├── SpendRefusedError            money would be spent that nobody agreed to (finetunes.spend)
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


class BFLError(Exception):
    """A failure with a message written for the reader of the conversation."""


class ConfigError(BFLError):
    """The environment or a flag cannot be used as it stands."""


class DatasetError(BFLError):
    """The image folder cannot be trained on.

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
    """Make text from an API, a file name or a caption safe to stand in one of our sentences.

    Control and formatting characters (line breaks, terminal escapes, bidirectional marks) become spaces, runs of white
    space become one space, and what is longer than `limit` characters is cut with an ellipsis.
    """
    # Four characters of source for each one shown bounds the work on a hostile text.
    source = str(text)[: limit * 4]
    plain = "".join(" " if unicodedata.category(char)[0] in "CZ" else char for char in source)
    plain = " ".join(plain.split())
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"


def quote_name(name: str, limit: int = _FOREIGN_TEXT_LIMIT) -> str:
    """Make a file's name safe like any foreign text. One without a visible character is spelled out."""
    return quote_foreign(name, limit) or quote_foreign(ascii(name), limit)
