"""What can be said of a dataset: one row for each check, with its threshold, its source and what to do about it."""

from dataclasses import dataclass
from typing import Final, Literal

Severity = Literal["fault", "warning", "info", "change"]
"""fault: it cannot be trained on · warning: it can, and the result may suffer · info: worth knowing · change: done to
the copy that is sent, with nothing left to do."""

# Where a rule or a threshold comes from.
_BFL: Final = "BFL's finetuning guide"
_TRAINERS: Final = "documentation and issue threads of a dozen trainers"
_MEASURED: Final = "measured on 42 photographs and wallpapers"
_OURS: Final = "how this project packs an archive"

MIN_ADVISED_IMAGES: Final = 6
"""More than 5 are advised."""

WEAK_SIDE_PX: Final = 768
BAD_SIDE_PX: Final = 512
LONGEST_RATIO: Final = 2.5
BLURRED_BELOW: Final = 60.0
"""`Look.sharpness`. Sharp photographs had 309 to 2 539, their copies blurred by 8 px 5 to 36."""

BLURRED_SHARE_BELOW: Final = 0.06
"""`Look.sharpness` beside the square of `Look.contrast`: fog and pale walls have little of both, and are not blurred.
The same blurred copies had at most 0.057."""

FLAT_BELOW: Final = 12.0
"""`Look.contrast`."""

DARK_BELOW: Final = 16.0
BLOWN_ABOVE: Final = 239.0
"""`Look.brightness`."""

NEAR_BITS: Final = 8
"""Of the 64 of `Look.dhash`, and of `Look.dhash_down`: across alone, a lawn, a night sky and stripes look alike."""

TRANSPARENT_ABOVE: Final = 0.001
"""`Look.transparent_share`. One wallpaper of 42 had a few pixels of alpha 253."""

LONG_NAME_CHARACTERS: Final = 100

SUFFIXES_OF: Final = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"},
    "PNG": {".png", ".apng"},
    "WEBP": {".webp"},
    "AVIF": {".avif"},
    "HEIC": {".heic", ".heif", ".hif"},
    "BMP": {".bmp", ".dib"},
    "GIF": {".gif"},
    "TIFF": {".tif", ".tiff"},
}
"""What files of a format are called, in lower case."""


@dataclass(frozen=True, slots=True)
class Check:
    """A row of the table. `rule` says when it trips, `remedy` what to do then."""

    severity: Severity
    rule: str
    remedy: str
    source: str


CHECKS: Final[dict[str, Check]] = {
    # What cannot be trained on.
    "no-images": Check("fault", "no image that can be read", "Name a folder with images directly in it.", _OURS),
    "too-many-images": Check(
        "fault", "more images than the provider takes", "Remove some, the weakest first.", f"{_BFL}: 1 to 20"
    ),
    "unreadable-file": Check("fault", "the system does not let it be read", "Let this user read it.", _OURS),
    "no-image": Check("fault", "named like an image, and is none", "Remove it, or export it again.", _TRAINERS),
    "damaged-image": Check("fault", "does not decode to its end", "Export or copy it again.", _TRAINERS),
    "changing": Check(
        "fault", "written to while it was being read", "Wait until nothing writes to it, then check again.", _OURS
    ),
    "huge": Check(
        "fault",
        "a side above 65 500 px, more than 89 megapixels, or a file above 128 MB; it is not decoded",
        "Make it smaller first.",
        "Pillow's guard against decompression bombs, and libjpeg",
    ),
    "too-large": Check(
        "fault",
        "the archive, a third larger in base64, is above what the provider takes",
        "Use fewer images, let them be shrunk (BFL_MCP_MAX_MEGAPIXELS), or raise BFL_TRAINER_MAX_UPLOAD_MB.",
        _OURS,
    ),
    "unreadable-caption": Check(
        "fault", "no UTF-8 or UTF-16 text, or too long", "Save it as plain UTF-8 text of at most 64 kB.", _TRAINERS
    ),
    # What is left out.
    "left-out": Check("info", "no image that is used", "Nothing, unless it was meant to be used.", _OURS),
    "left-out-image": Check(
        "warning", "an image or archive in a form that is not read", "Put what it holds into the folder as JPEG.", _OURS
    ),
    "link": Check("warning", "a link, which is never followed", "Copy the file itself into the folder.", _OURS),
    "orphan-caption": Check("warning", "a caption without its image", "Give it the stem of an image.", _TRAINERS),
    "caption-case": Check(
        "warning", "a caption whose stem is an image's but for case", "Give it the very stem.", _TRAINERS
    ),
    "empty-caption": Check("warning", "a caption without text", "Write it, or remove the file.", _TRAINERS),
    "shared-stem": Check(
        "warning", "images that share one caption by their stem", "Rename one of them and its caption.", _TRAINERS
    ),
    "second-caption": Check("warning", "several captions for one stem", "Keep one of them.", _TRAINERS),
    # The dataset as a whole.
    "few-images": Check(
        "warning", f"fewer than {MIN_ADVISED_IMAGES} images", "Add pictures of the same from other sides.", _BFL
    ),
    "same-picture": Check("warning", "the same pixels twice", "Keep one of them.", _TRAINERS),
    "similar-pictures": Check(
        "warning",
        f"at most {NEAR_BITS} of 64 bits differ, both across and down",
        "Keep the best one, unless they differ on purpose.",
        f"{_TRAINERS}: dHash",
    ),
    # One picture.
    "small": Check(
        "warning",
        f"shorter side below {WEAK_SIDE_PX} px; below {BAD_SIDE_PX} it is bad",
        "Take a larger original; enlarging adds nothing.",
        _TRAINERS,
    ),
    "long": Check("warning", f"beyond 1:{LONGEST_RATIO}", "Crop it around what matters.", _TRAINERS),
    "blurred": Check(
        "warning",
        f"sharpness below {BLURRED_BELOW:.0f}, and below {BLURRED_SHARE_BELOW:g} of the squared contrast",
        "Look at it; leave it out if it is.",
        _MEASURED,
    ),
    "flat": Check(
        "info",
        f"contrast below {FLAT_BELOW:.0f}, and sharpness below {BLURRED_BELOW:.0f}",
        "Look at it: is anything on it?",
        _MEASURED,
    ),
    "dark": Check(
        "info", f"brightness below {DARK_BELOW:.0f} of 255", "Look at it; brighten or leave it out.", _TRAINERS
    ),
    "blown": Check(
        "info", f"brightness above {BLOWN_ABOVE:.0f} of 255", "Look at it; it may be overexposed.", _TRAINERS
    ),
    "animated": Check(
        "warning", "several frames", "Nothing, if the first frame is the one; else export another.", _OURS
    ),
    "transparent": Check(
        "warning",
        f"something shines through more than {TRANSPARENT_ABOVE:.1%} of it",
        "Look at it; where white is wrong, put a background behind it.",
        _TRAINERS,
    ),
    "cmyk": Check("warning", "colours for print", "Export it as sRGB if the colours matter.", _TRAINERS),
    "grey": Check(
        "warning", "no colours, among images that have some", "Leave it out, or make all of them grey.", _TRAINERS
    ),
    "misnamed": Check("info", "named like another format", "Nothing: its content counts.", _TRAINERS),
    "position-removed": Check("info", "its EXIF says where it was taken", "Nothing: it is not sent.", _OURS),
    # What the training is for.
    "character-scenes": Check(
        "info",
        "mode character",
        "See that one person is in each image; describe crowded scenes by hand.",
        _BFL,
    ),
    "style-named": Check(
        "info",
        "mode style, and half of the captions or more name a style",
        "Describe what is shown, and leave the style to the trigger word.",
        _TRAINERS,
    ),
    # Captions.
    "some-captions": Check(
        "warning", "some images have captions and some have none", "Caption all of them or none.", _TRAINERS
    ),
    "trigger-missing": Check(
        "warning", "captions without the trigger word as a whole word", "Put it into all of them.", _TRAINERS
    ),
    "trigger-absent": Check(
        "info",
        "no caption has the trigger word",
        "At our trainer it is put into each; elsewhere nobody says.",
        _TRAINERS,
    ),
    "ordinary-trigger": Check(
        "info",
        "a trigger word of letters in lower case that reads like any word",
        "Take one that no language has, such as TOKBOT.",
        _TRAINERS,
    ),
    "captions-and-captioning": Check(
        "info", "own captions, and captioning=true", "At our trainer your own captions win; at BFL nobody says.", _BFL
    ),
    # What is changed on the way.
    "turned": Check("change", "an orientation in its EXIF", "Nothing.", _TRAINERS),
    "shrunk": Check("change", "above BFL_MCP_MAX_MEGAPIXELS", "Nothing.", f"{_BFL}: more brings nothing"),
    "converted": Check("change", "AVIF, HEIC, BMP, GIF or TIFF", "Nothing.", f"{_BFL}: JPEG, PNG, WebP"),
    "deep": Check("change", "16 bits a channel", "Nothing.", _TRAINERS),
    "palette": Check("change", "a palette of colours", "Nothing.", _TRAINERS),
    "all-grey": Check("change", "no colours, like all the others", "Nothing.", _TRAINERS),
    "wide-colours": Check("change", "a colour profile other than sRGB", "Nothing.", _TRAINERS),
    "metadata-removed": Check("change", "EXIF, XMP, comments", "Nothing.", _OURS),
    "odd-name": Check(
        "change",
        f"letters beyond ASCII, more than {LONG_NAME_CHARACTERS} characters, or two names that differ in case only",
        "Nothing: in the archive they are 001, 002 ….",
        _TRAINERS,
    ),
}

SAID_OF_MOST: Final = frozenset({"some-captions"})
"""What is said of most images or of none: beside a single picture, which shows its caption, it tells nothing."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A check that tripped: on which files, and what exactly, as half a sentence."""

    code: str
    files: tuple[str, ...]
    what: str

    @property
    def severity(self) -> Severity:
        return CHECKS[self.code].severity

    @property
    def remedy(self) -> str:
        return CHECKS[self.code].remedy

    @property
    def sentence(self) -> str:
        return f"{', '.join(self.files)}: {self.what}." if self.files else f"{self.what[0].upper()}{self.what[1:]}."


def megabytes(size_bytes: int) -> str:
    """A size in words."""
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 100_000 else f"{size_bytes / 1e3:.1f} kB"
