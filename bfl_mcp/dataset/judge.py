"""Judges a dataset as an expert at this desk would: what stands in the way, what may cost quality, what is changed."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from typing import Final

from bfl_mcp.contract import MIN_IMAGES
from bfl_mcp.dataset.archive import Examined
from bfl_mcp.dataset.findings import (
    BAD_SIDE_PX,
    BLOWN_ABOVE,
    BLURRED_BELOW,
    CHECKS,
    DARK_BELOW,
    FLAT_BELOW,
    LONGEST_RATIO,
    MIN_ADVISED_IMAGES,
    NEAR_BITS,
    WEAK_SIDE_PX,
    Finding,
)
from bfl_mcp.dataset.folder import Dataset, ImageFile
from bfl_mcp.dataset.looks import Look
from bfl_mcp.dataset.wording import has_word
from bfl_mcp.errors import quote_name, quoted

_SEVERITIES: Final = ("fault", "warning", "info")
_ORDER: Final = {code: number for number, code in enumerate(CHECKS)}

# Beyond so many pairs of pictures a reader has understood.
_PAIRS_NAMED: Final = 20


def judge(dataset: Dataset, examined: Examined, trigger_word: str | None, *, captioning: bool = False) -> list[Finding]:
    """Every check of the table that trips, faults first. Without a trigger word the checks about it are left out."""
    found = [
        *examined.faults,
        *(Finding(skipped.code, (skipped.name,), skipped.reason) for skipped in dataset.skipped),
        *_judge_whole(dataset),
        *_judge_pairs(examined),
        *_judge_captions(dataset, trigger_word, captioning=captioning),
    ]
    for image in dataset.images:
        if (seen := examined.seen.get(image.path.name)) is not None:
            found += _judge_image(quote_name(image.path.name), seen.look)
    return sorted(found, key=lambda finding: (_SEVERITIES.index(finding.severity), _ORDER[finding.code], finding.files))


def _judge_whole(dataset: Dataset) -> Iterator[Finding]:
    count = len(dataset.images)
    if MIN_IMAGES <= count < MIN_ADVISED_IMAGES:
        yield Finding("few-images", (), f"it holds {count} of the {MIN_ADVISED_IMAGES} or more images that are advised")
    stems: dict[str, list[ImageFile]] = defaultdict(list)
    for image in dataset.images:
        stems[unicodedata.normalize("NFC", image.path.stem)].append(image)
    for images in stems.values():
        if len(images) > 1:
            caption = "share one caption" if images[0].caption is not None else "would share one caption"
            yield Finding("shared-stem", _names(images), f"they have one stem, so they {caption}")


def _judge_image(name: str, look: Look) -> Iterator[Finding]:
    def finding(code: str, what: str) -> Finding:
        return Finding(code, (name,), what)

    size = f"{look.width} × {look.height}"
    shorter, longer = sorted((look.width, look.height))
    if shorter < WEAK_SIDE_PX:
        how = "much too small" if shorter < BAD_SIDE_PX else "small"
        yield finding("small", f"it is {how} ({size}); 1024 pixels on the shorter side are desirable")
    if longer > LONGEST_RATIO * shorter:
        yield finding("long", f"it is 1:{longer / shorter:.1f} ({size}), and most of it may be cropped in training")
    if look.contrast < FLAT_BELOW:
        yield finding("flat", f"there is hardly anything on it (contrast {look.contrast:.0f})")
    elif look.sharpness < BLURRED_BELOW:
        # What has nothing on it is not called out of focus too.
        yield finding("blurred", f"it looks blurred (sharpness {look.sharpness:.0f}, usual are hundreds)")
    if look.brightness < DARK_BELOW:
        yield finding("dark", f"it is almost black (brightness {look.brightness:.0f} of 255)")
    elif look.brightness > BLOWN_ABOVE:
        yield finding("blown", f"it is almost white (brightness {look.brightness:.0f} of 255)")
    if look.is_animated:
        yield finding("animated", "it has several frames, of which the first is used")
    if look.has_position:
        yield finding("position-removed", "it says where it was taken; that is removed")


def _judge_pairs(examined: Examined) -> Iterator[Finding]:
    """Pictures that are the same, or nearly. Those with nothing on them resemble everything, and are left out."""
    pairs = []
    telling = [(name, seen) for name, seen in examined.seen.items() if seen.look.contrast >= FLAT_BELOW]
    for (first, one), (second, other) in combinations(telling, 2):
        if one.look.pixels_sha256 == other.look.pixels_sha256:
            pairs.append(Finding("same-picture", (quote_name(first), quote_name(second)), "they are the same picture"))
        elif (one.look.dhash ^ other.look.dhash).bit_count() <= NEAR_BITS:
            what = "they look almost the same"
            pairs.append(Finding("similar-pictures", (quote_name(first), quote_name(second)), what))
    yield from pairs[:_PAIRS_NAMED]
    if (more := len(pairs) - _PAIRS_NAMED) > 0:
        yield Finding("similar-pictures", (), f"{more} more pairs of images are the same or almost the same")


def _judge_captions(dataset: Dataset, trigger_word: str | None, *, captioning: bool) -> Iterator[Finding]:
    captioned = [image for image in dataset.images if image.caption is not None]
    bare = [image for image in dataset.images if image.caption is None]
    if captioned and bare:
        yield Finding("some-captions", _names(bare), f"they have no caption, and {len(captioned)} others have one")
    if captioned and captioning:
        yield Finding("captions-and-captioning", (), f"{len(captioned)} images bring captions, and captioning is on")
    if not trigger_word:
        return
    if trigger_word.isalpha() and trigger_word.islower():
        yield Finding(
            "ordinary-trigger", (), f"the trigger word {quoted(trigger_word, 60)} reads like an ordinary word"
        )
    lacking = [image for image in captioned if not has_word(image.caption or "", trigger_word)]
    if lacking and len(lacking) == len(captioned):
        yield Finding("trigger-absent", (), f"no caption has the trigger word {quoted(trigger_word, 60)}")
    elif lacking:
        what = f"their captions lack the trigger word {quoted(trigger_word, 60)}, which the others have"
        yield Finding("trigger-missing", _names(lacking), what)


def _names(images: list[ImageFile]) -> tuple[str, ...]:
    return tuple(quote_name(image.path.name) for image in images)
