"""Folders of every sort, drawn by hypothesis, each with what must come of it.

A plan knows what it planted: which pictures can be used, which faults must be named, what must be left out. It is
written to a real folder.
"""

import os
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from hypothesis import strategies as st
from PIL import Image

from bfl_mcp.contract import MAX_CAPTION_BYTES
from tests.pictures import picture

Draw = Callable[[st.SearchStrategy[Any]], Any]

_TURNED: Final = Image.Exif()
_TURNED[0x0112] = 6

_KINDS: Final[dict[str, tuple[str, str, dict[str, Any]]]] = {
    "jpeg": ("JPEG", "RGB", {"quality": 95}),
    "jpeg-grey": ("JPEG", "L", {"quality": 95}),
    "jpeg-cmyk": ("JPEG", "CMYK", {"quality": 95}),
    "jpeg-progressive": ("JPEG", "RGB", {"quality": 95, "progressive": True, "comment": b"cut me"}),
    "jpeg-turned": ("JPEG", "RGB", {"quality": 95, "exif": _TURNED}),
    "png": ("PNG", "RGB", {}),
    "png-alpha": ("PNG", "RGBA", {}),
    "png-grey-alpha": ("PNG", "LA", {}),
    "png-palette": ("PNG", "P", {}),
    "png-16": ("PNG", "I;16", {}),
    "gif": ("GIF", "P", {}),
    "gif-moving": ("GIF", "P", {"save_all": True, "append_images": [Image.new("P", (64, 48))]}),
    "webp": ("WEBP", "RGB", {"quality": 95}),
    "webp-lossless": ("WEBP", "RGBA", {"lossless": True}),
    "tiff": ("TIFF", "RGB", {}),
    "tiff-lzw": ("TIFF", "CMYK", {"compression": "tiff_lzw"}),
    "bmp": ("BMP", "RGB", {}),
    "bmp-grey": ("BMP", "L", {}),
    "avif": ("AVIF", "RGB", {"quality": 95}),
}
_SIZES: Final = ((1, 1), (2, 3), (17, 5), (64, 48))
_SUFFIXES: Final = (".jpg", ".JPG", ".Jpeg", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff")
_LONGEST_NAME_BYTES: Final = 255
_ROOM_FOR_A_SUFFIX: Final = 5

_NO_PICTURE: Final = "it is not an image, whatever its name says."
_BROKEN: Final = r"it is (cut short|damaged).*\."
_NO_TEXT: Final = "the caption is not UTF-8 text; save it as UTF-8."
_HOLDS_NUL: Final = "the caption holds NUL characters; save it as plain UTF-8 text."
_TOO_LONG: Final = "the caption is longer than 64 kB; shorten it."


@dataclass(frozen=True)
class Picture:
    """What a picture must be in the archive. Without a size it was damaged at random, and nobody knows."""

    size: tuple[int, int] | None = None
    grey: int = 0
    caption: str | None = None


@dataclass(repr=False)
class Plan:
    """A folder, and what must be said of it. Faults and reasons are regular expressions behind the file's name."""

    files: dict[str, bytes] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, Picture] = field(default_factory=dict)
    faults: list[tuple[str, str]] = field(default_factory=list)
    broken: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __repr__(self) -> str:
        """Short enough to be read in a failure."""
        files = {name: (len(content), content[:16]) for name, content in self.files.items()}
        captions = {
            name: (picture.size, picture.grey, (picture.caption or "")[:16]) for name, picture in self.pictures.items()
        }
        return f"Plan({files=}, {self.others=}, {captions=}, {self.faults=}, {self.broken=}, {self.skipped=})"

    def write(self, folder: Path) -> None:
        """Make the folder for real."""
        folder.mkdir()
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        for name, kind in self.others.items():
            match kind:
                case "folder":
                    (folder / name).mkdir()
                    (folder / name / "inside.jpg").write_bytes(coded("jpeg", (17, 5), 99))
                case "pipe":
                    os.mkfifo(folder / name)
                case _:
                    (folder / name).symlink_to(kind)

    def in_order(self) -> list[tuple[str, Picture]]:
        """The pictures as they must be numbered: by their letters, however those are coded."""
        return sorted(self.pictures.items(), key=lambda item: _order(item[0]))


@cache
def coded(kind: str, size: tuple[int, int], grey: int) -> bytes:
    """A picture of one grey, the same in every colour model, so that it is known again whatever it was saved as."""
    form, mode, options = _KINDS[kind]
    plain = Image.new("L", size, grey)
    match mode:
        case "I;16":
            image = Image.new(mode, size, grey * 257)
        case "P":
            image = plain.convert(mode)
        case _:
            image = plain.convert("RGB").convert(mode)
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


# --- names ------------------------------------------------------------------------------------------------------------

_WORDS: Final = ("robot", "Müllerstraße", "Ω", "가나다", "写真", "e\u0301\u0323", "ﬁ", "İstanbul", "a b", "😀")
_TRAPS: Final = (
    *(
        "-rf",
        "--help",
        "a.b.c",
        "a..",
        "a.",
        " ",
        "  a",
        "a ",
        "~",
        "$HOME",
        "%s",
        "{0}",
        "*",
        "?",
        "a\\b",
        "C:",
        "'",
        '"',
    ),
    *("a\nAll is well.", "\x1b[2J", "\x01", "\u202egpj", "\u200b", "\u2066a", "\ufeff", "\x7f", "\u2028", "\t"),
    *("\udcff", "caf\udce9", "\udcff\udcfe", "a\udc80b", "aux", "con", "NUL", "__MACOSX_", "001", "a.jpg", "a.txt"),
    *("x" * 250, "ü" * 125, "写" * 83, "😀" * 62, "\udce9" * 250),
)
_ALPHABET: Final = st.characters(exclude_categories=["Cs"], exclude_characters="/\0")


def _as_found(name: str) -> str:
    # Bytes that are no UTF-8 alone may be UTF-8 side by side.
    return os.fsdecode(os.fsencode(name))


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _order(name: str) -> tuple[str, str]:
    return _nfc(name), name


def _fits(stem: str) -> bool:
    size = len(os.fsencode(stem))
    return bool(stem) and not stem.startswith(".") and size <= _LONGEST_NAME_BYTES - _ROOM_FOR_A_SUFFIX


_stems: Final = (
    st.one_of(st.sampled_from(_WORDS), st.sampled_from(_TRAPS), st.text(_ALPHABET, min_size=1, max_size=40))
    .map(_as_found)
    .filter(_fits)
)


def _draw_name(draw: Draw, stem: str, suffix: str) -> str:
    """The stem as some system would code its letters."""
    form = draw(st.sampled_from(("NFC", "NFD", None, None)))
    other = unicodedata.normalize(form, stem) if form else stem
    return (other if _fits(other) else stem) + suffix


# --- captions ---------------------------------------------------------------------------------------------------------

_CODINGS: Final = ("utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-be")
_BAD_CAPTIONS: Final = (
    ("café".encode("latin-1"), _NO_TEXT),
    (b"\xff\xfea", _NO_TEXT),
    (b"\xff\xfe\x00\xd8", _NO_TEXT),
    (b"\xed\xa0\x80", _NO_TEXT),
    (b"photo of TOK\x00", _HOLDS_NUL),
    ("photo of TOK".encode("utf-16-le"), _HOLDS_NUL),
    ("photo of TOK".encode("utf-32"), _HOLDS_NUL),
    (b"x" * (MAX_CAPTION_BYTES + 1), _TOO_LONG),
    (b"x" * 200_000, _TOO_LONG),
    # Two bytes each in the file and three in the archive.
    (("写" * 22_000).encode("utf-16"), _TOO_LONG),
)
_NO_CAPTIONS: Final = (
    b"",
    b" \r\n\t",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xef\xbb\xbf\xef\xbb\xbf\n",
    b"\xff\xfe\xff\xfe",
)
_texts: Final = st.one_of(
    st.sampled_from(("photo of TOK", "x" * MAX_CAPTION_BYTES, "one\r\ntwo\r\n", "写" * 21_333, "\ufeffa", "\u202e")),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=100),
)


def _coded_text(text: str, coding: str) -> bytes:
    return (b"\xfe\xff" if coding == "utf-16-be" else b"") + text.encode(coding)


def _draw_caption(draw: Draw, plan: Plan, stem: str, tidy: bool) -> str | None:
    """Put captions beside the pictures of a stem; what the one that counts must say in the archive."""
    suffixes = draw(st.sampled_from(((".txt",), (".txt",), (".TXT",), (".Txt", ".txt"))))
    names = sorted({_draw_name(draw, stem, suffix) for suffix in suffixes}, key=_order)
    for name in names[:-1]:
        plan.files[name] = b"overruled"
        plan.skipped.append((name, "a second caption of that name"))
    name = names[-1]
    kinds = ("text", "text", "none") if tidy else ("text", "none", "bad", "bad")
    match draw(st.sampled_from(kinds)):
        case "bad":
            plan.files[name], fault = draw(st.sampled_from(_BAD_CAPTIONS))
            plan.faults.append((name, fault))
            return None
        case "none":
            plan.files[name] = draw(st.sampled_from(_NO_CAPTIONS))
            plan.skipped.append((name, "an empty caption"))
            return None
    text = draw(_texts)
    coding = draw(st.sampled_from(_CODINGS))
    plan.files[name] = _coded_text(text if len(_coded_text(text, coding)) <= MAX_CAPTION_BYTES else "short", coding)
    said = plan.files[name].decode("utf-16" if coding.startswith("utf-16") else "utf-8-sig")
    said = said.replace("\r\n", "\n").replace("\ufeff", "").strip()
    if not said:
        plan.skipped.append((name, "an empty caption"))
    return said or None


# --- pictures, and what is none ---------------------------------------------------------------------------------------


# What cameras, messengers and pranksters put behind the end of a picture.
_TAILS: Final = (b"", b"", b"", b"\x00", b"\xff\xd8\xff", b"PK\x03\x04" * 9, b"a film" * 99)


@cache
def _textured(form: str) -> bytes:
    """A picture with something in it to damage."""
    file = BytesIO()
    picture(64, 48, seed=3).save(file, form)
    return file.getvalue()


def _draw_picture(draw: Draw, plan: Plan, name: str) -> None:
    kind, size = draw(st.sampled_from([*_KINDS])), draw(st.sampled_from(_SIZES))
    grey = 10 + 20 * (len(plan.pictures) % 12)
    tail = draw(st.sampled_from(_TAILS)) if kind.startswith(("jpeg", "png", "gif")) else b""
    plan.files[name] = coded(kind, size, grey) + tail
    plan.pictures[name] = Picture(size[::-1] if kind == "jpeg-turned" else size, grey)


def _draw_bad_picture(draw: Draw, plan: Plan, name: str) -> None:
    """Files called pictures. What looks like one at its start counts as one until it is decoded."""
    match draw(st.sampled_from(("empty", "garbage", "cut", "magic", "flipped"))):
        case "empty":
            plan.files[name] = b""
            plan.faults.append((name, "it is empty."))
        case "garbage":
            plan.files[name] = b"\x00no picture" + draw(st.binary(max_size=100))
            plan.faults.append((name, _NO_PICTURE))
        case "cut":
            whole = coded(draw(st.sampled_from([*_KINDS])), _SIZES[-1], 77)
            plan.files[name] = whole[: max(len(whole) // 2, 20)]
            plan.pictures[name] = Picture()
            plan.broken.append((name, _BROKEN))
        case "magic":
            magic = draw(
                st.sampled_from((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x00\x01\x00\x00WEBPVP8 ", b"GIF89a"))
            )
            plan.files[name] = magic + draw(st.binary(max_size=40))
            plan.pictures[name] = Picture()
            plan.broken.append((name, _BROKEN))
        case _:
            content = bytearray(_textured(draw(st.sampled_from(("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")))))
            for _ in range(draw(st.integers(1, 3))):
                content[draw(st.integers(20, len(content) - 1))] ^= 1 << draw(st.integers(0, 7))
            plan.files[name] = bytes(content)
            plan.pictures[name] = Picture()


def _draw_group(draw: Draw, plan: Plan, stem: str, tidy: bool) -> None:
    """One picture, or several of one stem, with a caption or without."""
    names = {
        _draw_name(draw, stem, draw(st.sampled_from(_SUFFIXES))) for _ in range(draw(st.sampled_from((1, 1, 1, 2))))
    }
    for name in sorted(names):
        if tidy or draw(st.booleans()):
            _draw_picture(draw, plan, name)
        else:
            _draw_bad_picture(draw, plan, name)
    usable = names & plan.pictures.keys()
    if usable and draw(st.booleans()):
        caption = _draw_caption(draw, plan, stem, tidy)
        for name in usable:
            plan.pictures[name] = Picture(plan.pictures[name].size, plan.pictures[name].grey, caption)


_NO_PICTURES: Final = (
    (".md", b"# notes", "not an image"),
    (".dat", b"", "not an image"),
    ("", b"\x00", "not an image"),
    (".zip", b"PK\x03\x04" + bytes(60), "an archive"),
    (".png", b"PK\x05\x06" + bytes(18), "an archive"),
    (".nef", b"II*\x00" + bytes(60), "a camera raw file"),
    (".txt", b"nobody's caption", "a caption without an image"),
    (".txt", b"caf\xe9\x00" * 20_000, "a caption without an image"),
)
_OTHERS: Final = (
    ("folder", "a subfolder"),
    ("pipe", "not a regular file"),
    ("/etc/hostname", "a link"),
    ("nowhere", "a link"),
    (".", "a link"),
)


def _draw_other(draw: Draw, plan: Plan, stem: str) -> None:
    """What must be left out, with its name."""
    if draw(st.booleans()):
        suffix, content, reason = draw(st.sampled_from(_NO_PICTURES))
        hidden = draw(st.integers(0, 5)) == 0
        name = f".{stem}"[:60] if hidden else stem + suffix
        name = _as_found(name)
        if not suffix and "." in stem:
            name += ".md"
        plan.files[name] = content
        plan.skipped.append((name, "hidden" if hidden else reason))
    else:
        kind, reason = draw(st.sampled_from(_OTHERS))
        name = stem + draw(st.sampled_from(("", ".jpg", ".txt")))
        plan.others[name] = kind
        plan.skipped.append((name, reason))


@st.composite
def plans(draw: Draw) -> Plan:
    """A folder with up to eight stems; every second one holds nothing that must stop it."""
    plan, tidy = Plan(), draw(st.booleans())
    for stem in draw(st.lists(_stems, max_size=8, unique_by=_nfc)):
        if draw(st.integers(0, 2)):
            _draw_group(draw, plan, stem, tidy)
        else:
            _draw_other(draw, plan, stem)
    return plan
