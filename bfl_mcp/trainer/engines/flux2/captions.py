"""What each picture is said to show: the user's words where there are some, written ones elsewhere."""

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from bfl_mcp.trainer.engines.flux2.store import write_text

Source = Literal["own", "written", "none"]


@dataclass(frozen=True, slots=True)
class Caption:
    """A caption as it is trained with, and whose it is: with `none` it is the trigger word alone."""

    text: str
    source: Source


def read_captions(folder: Path, pictures: Iterable[Path]) -> dict[str, str]:
    """The captions that lie in a folder as `001.txt` for `001.jpg`, by the picture's name; empty ones are none."""
    captions = {}
    for picture in pictures:
        try:
            text = (folder / f"{picture.stem}.txt").read_text(encoding="utf-8-sig").strip()
        except FileNotFoundError:
            continue
        if text:
            captions[picture.name] = text
    return captions


def settle_captions(
    pictures: Sequence[Path], own: Mapping[str, str], written: Mapping[str, str], trigger_word: str
) -> dict[str, Caption]:
    """Settle on one caption for each picture's name: the user's, else the written one, else the trigger word alone."""
    return {picture.name: _settle(picture.name, own, written, trigger_word) for picture in pictures}


def _settle(name: str, own: Mapping[str, str], written: Mapping[str, str], trigger_word: str) -> Caption:
    sources: tuple[tuple[Source, Mapping[str, str]], ...] = (("own", own), ("written", written))
    for source, captions in sources:
        if name in captions:
            return Caption(place_trigger_word(captions[name], trigger_word), source)
    return Caption(trigger_word, "none")


def place_trigger_word(caption: str, trigger_word: str) -> str:
    """Put the trigger word in front of a caption that lacks it as a whole word, in any case of its letters."""
    caption = " ".join(caption.split())
    if not trigger_word or _has_word(caption, trigger_word):
        return caption
    return f"{trigger_word}, {caption}" if caption else trigger_word


def _has_word(text: str, word: str) -> bool:
    # As the dataset desk looks for it.
    text, word = unicodedata.normalize("NFC", text), unicodedata.normalize("NFC", word)
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def keep_captions(path: Path, captions: Mapping[str, Caption]) -> None:
    """Write down what was trained with, for whoever wants to read it."""
    content = {name: asdict(caption) for name, caption in captions.items()}
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
