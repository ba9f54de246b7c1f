"""Folders to report on: one that is fine, and one of planted faults with names and captions that attack a page."""

from pathlib import Path
from typing import Final

from PIL import Image, ImageFilter

from tests.dataset.test_judge import fill, photo

EXAMPLES: Final = Path(__file__).parents[2] / "examples"

HOSTILE_NAMES: Final = (
    "<img src=x onerror=window.pwned=1>.jpg",
    "\"'><svg onload=window.pwned=1>.jpg",
    "javascript:window.pwned=1.jpg",
    "\u202egpj.exe.jpg",
    "&lt;b&gt; &amp; x.jpg",
    "\x1b[31mred\x07.jpg",
    "機器人-" + "very-long-" * 20 + ".jpg",
)
HOSTILE_CAPTION: Final = (
    "TOKBOT</p></figcaption></figure><script>window.pwned=1</script>"
    "<img src=http://127.0.0.1:9/x onerror=window.pwned=1> \u202etuo \"quoted\" 'and' & more"
)
HOSTILE_FOLDER: Final = "<script>window.pwned=1<x>&'\""


def plant(folder: Path) -> Path:
    """A folder of six good pictures, and others with faults, warnings and notes."""
    fill(folder)
    (folder / "cut.jpg").write_bytes((folder / "p0.jpg").read_bytes()[:9000])
    photo(7, 400, 300).save(folder / "small.png")
    photo(8).filter(ImageFilter.GaussianBlur(14)).save(folder / "blurred.jpg")
    (folder / "p1.txt").write_text("no word of it here, and " + "a very long description " * 30)
    (folder / "orphan.txt").write_text("TOKBOT")
    (folder / "notes.md").write_text("x")
    with Image.open(folder / "p2.jpg") as image:
        image.save(folder / "p10.jpg", quality=80)
    return folder


def attack(folder: Path) -> Path:
    """The same, with whatever names and captions can hold against a page or a terminal."""
    plant(folder)
    for number, name in enumerate(HOSTILE_NAMES):
        photo(number + 11, 500, 400).save(folder / name, "JPEG")
        (folder / name).with_suffix(".txt").write_text(HOSTILE_CAPTION, encoding="utf-8")
    return folder
