"""What a caption says: its file's bytes → text and back, whether a word is in it, and words for a style."""

import re
import unicodedata
from typing import Final

from bfl_mcp.contract import MAX_CAPTION_BYTES
from bfl_mcp.errors import DatasetError

_STYLE: Final = re.compile(
    r"\b(?:styles?|styled|styli[sz]ed|aesthetics?|paintings?|painted|illustrations?|illustrated|water-?colou?rs?|"
    r"gouache|acrylics?|pastels?|oil on canvas|sketch(?:es)?|drawings?|engravings?|etchings?|woodcuts?|linocuts?|"
    r"pixel art|line art|vector art|concept art|digital art|artworks?|anime|manga|cartoons?|comics?|impressionis[mt]|"
    r"cubis[mt]|art nouveau|art deco|pop art|collages?|3d renders?)\b",
    re.IGNORECASE,
)

_TOO_LONG: Final = f"the caption is longer than {MAX_CAPTION_BYTES // 1000} kB; shorten it"


def decode_caption(data: bytes) -> str:
    """The text of a caption's file, without the white space around it.

    Raises:
        DatasetError: It is no text, or too long. Half a sentence.
    """
    if len(data) > MAX_CAPTION_BYTES:
        raise DatasetError(_TOO_LONG)
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        raise DatasetError("the caption is not UTF-8 text; save it as UTF-8") from None
    if "\x00" in text:
        raise DatasetError("the caption holds NUL characters; save it as plain UTF-8 text")
    text = _tidy(text)
    # What has two bytes in UTF-16 has up to three in the archive.
    if len(text.encode()) > MAX_CAPTION_BYTES:
        raise DatasetError(_TOO_LONG)
    return text


def encode_caption(text: str) -> bytes:
    """A caption's file: plain UTF-8 with a line break at its end.

    Raises:
        DatasetError: It is empty, too long or no text. Half a sentence.
    """
    # A reader turns only pairs of them into line breaks.
    text = _tidy(text.replace("\r\n", "\n").replace("\r", "\n"))
    if not text:
        raise DatasetError("its text is empty, and an empty caption breaks trainers; write what the picture shows")
    if any(unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t" for char in text):
        raise DatasetError("its text holds control characters; leave them out")
    data = f"{text}\n".encode()
    if len(data) > MAX_CAPTION_BYTES:
        raise DatasetError(f"its text is longer than {MAX_CAPTION_BYTES // 1000} kB; shorten it")
    return data


def has_word(text: str, word: str) -> bool:
    """Whether a caption holds a trigger word as a whole word, in any case and coding of its letters."""
    text, word = unicodedata.normalize("NFC", text), unicodedata.normalize("NFC", word)
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def find_style_word(text: str, trigger_word: str | None) -> str:
    """The first word of a caption that names a style or a medium, in lower case; empty where none does.

    "In the style of" the trigger word names none: that is what the word is for.
    """
    if trigger_word:
        word = re.escape(trigger_word)
        own = rf"\bstyles? of (?:an? |the )?{word}(?!\w)|(?<!\w){word}[- ]styled?\b"
        text = re.sub(own, " ", text, flags=re.IGNORECASE)
    found = _STYLE.search(text)
    return found[0].lower() if found is not None else ""


def _tidy(text: str) -> str:
    # Joined files hold several byte order marks, of which a reader of the archive would drop the first.
    return text.replace("\r\n", "\n").replace("\ufeff", "").strip()
