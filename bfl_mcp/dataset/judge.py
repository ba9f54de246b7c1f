"""Judges a dataset as an expert at this desk would: what stands in the way, what may cost quality, what is changed."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from bfl_mcp.contract import MEGAPIXEL, MIN_IMAGES, Mode
from bfl_mcp.dataset.archive import Examined
from bfl_mcp.dataset.findings import (
    BAD_SIDE_PX,
    BLOWN_ABOVE,
    BLURRED_BELOW,
    BLURRED_SHARE_BELOW,
    CHECKS,
    DARK_BELOW,
    FLAT_BELOW,
    LONG_NAME_CHARACTERS,
    LONGEST_RATIO,
    MIN_ADVISED_IMAGES,
    NEAR_BITS,
    SUFFIXES_OF,
    TRANSPARENT_ABOVE,
    WEAK_SIDE_PX,
    Finding,
    megabytes,
)
from bfl_mcp.dataset.folder import Dataset, ImageFile
from bfl_mcp.dataset.images import SUFFIXES as IMAGE_SUFFIXES
from bfl_mcp.dataset.looks import Look
from bfl_mcp.dataset.wording import find_style_word, has_word
from bfl_mcp.errors import quote_name, quoted

_SEVERITIES: Final = ("fault", "warning", "info", "change")
_ORDER: Final = {code: number for number, code in enumerate(CHECKS)}

# Beyond so many groups of pictures a reader has understood.
_GROUPS_NAMED: Final = 20


@dataclass(frozen=True, slots=True)
class Plan:
    """What a dataset is to be trained for. Checks about what is None, False or 0 are left out."""

    mode: Mode | None = None
    trigger_word: str | None = None
    captioning: bool = False
    max_megapixels: float = 0.0
    """Above it pictures are shrunk; 0 keeps every size."""
    provider: str = "the provider"
    max_upload_bytes: int | None = None
    """Largest request body the provider takes."""


def judge(dataset: Dataset, examined: Examined, plan: Plan) -> list[Finding]:
    """Every check of the table that trips: faults first, what is changed on the way last."""
    found = [
        *examined.faults,
        *(Finding(skipped.code, (skipped.name,), skipped.reason) for skipped in dataset.skipped),
        *_judge_whole(dataset),
        *_judge_pairs(examined),
        *_judge_captions(dataset, plan),
        *_judge_colours(examined),
        *_judge_changes(dataset, examined, plan),
    ]
    if examined.archive is not None:
        found += judge_size(examined.archive.size_bytes, plan)
    for image in dataset.images:
        if (seen := examined.seen.get(image.path.name)) is not None:
            found += _judge_image(image, seen.look)
    return sorted(found, key=_place)


def _place(finding: Finding) -> tuple[object, ...]:
    """Where a finding stands among the others: of one check, what is said of no file comes last."""
    return _SEVERITIES.index(finding.severity), _ORDER[finding.code], not finding.files, finding.files


def judge_size(archive_bytes: int, plan: Plan) -> list[Finding]:
    """Whether an archive is too large for the provider."""
    limit = plan.max_upload_bytes
    # Base64 makes four bytes of three.
    if limit is None or archive_bytes * 4 / 3 <= limit:
        return []
    what = f"the archive has {megabytes(archive_bytes)}; {plan.provider} takes at most {megabytes(limit * 3 // 4)}"
    return [Finding("too-large", (), what)]


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


def _judge_image(image: ImageFile, look: Look) -> Iterator[Finding]:
    name = quote_name(image.path.name)

    def finding(code: str, what: str) -> Finding:
        return Finding(code, (name,), what)

    size = f"{look.width} × {look.height}"
    shorter, longer = sorted((look.width, look.height))
    if shorter < WEAK_SIDE_PX:
        how = "much too small" if shorter < BAD_SIDE_PX else "small"
        yield finding("small", f"it is {how} ({size}); 1024 pixels on the shorter side are desirable")
    if longer > LONGEST_RATIO * shorter:
        yield finding("long", f"it is 1:{longer / shorter:.1f} ({size}), and most of it may be cropped in training")
    if look.contrast < FLAT_BELOW and look.sharpness < BLURRED_BELOW:
        yield finding("flat", f"there is hardly anything on it (contrast {look.contrast:.0f})")
    elif look.sharpness < min(BLURRED_BELOW, BLURRED_SHARE_BELOW * look.contrast**2):
        # What has nothing on it is not called out of focus too.
        yield finding("blurred", f"it looks blurred (sharpness {look.sharpness:.0f}, usual are hundreds)")
    if look.brightness < DARK_BELOW:
        yield finding("dark", f"it is almost black (brightness {look.brightness:.0f} of 255)")
    elif look.brightness > BLOWN_ABOVE:
        yield finding("blown", f"it is almost white (brightness {look.brightness:.0f} of 255)")
    yield from (finding(code, what) for code, what in _judge_kind(image, look))


def _judge_kind(image: ImageFile, look: Look) -> Iterator[tuple[str, str]]:
    """What kind of picture it is: a code, and what is said."""
    if look.is_animated:
        yield "animated", "it has several frames, of which the first is used"
    if look.transparent_share > TRANSPARENT_ABOVE:
        yield "transparent", "it is transparent in places, which become white"
    if look.mode in ("CMYK", "YCCK"):
        yield "cmyk", "its colours are for print (CMYK), and may shift when they become sRGB"
    if image.path.suffix.lower() not in SUFFIXES_OF[look.form]:
        yield "misnamed", f"it is a {look.form}, whatever its name says, and is used as one"
    if look.has_position:
        yield "position-removed", "it says where it was taken; that is removed"


def _judge_pairs(examined: Examined) -> Iterator[Finding]:
    """Pictures that are the same, or nearly. Those with nothing on them resemble everything, and are left out."""
    by_content: dict[str, list[str]] = defaultdict(list)
    for name, seen in examined.seen.items():
        if seen.look.contrast >= FLAT_BELOW:
            by_content[seen.look.pixels_sha256].append(name)
    groups = [
        Finding("same-picture", tuple(map(quote_name, names)), "they are the same picture")
        for names in by_content.values()
        if len(names) > 1
    ]
    looks = {names[0]: examined.seen[names[0]].look for names in by_content.values()}
    groups += [
        Finding("similar-pictures", tuple(map(quote_name, names)), "they look almost the same")
        for names in _alike(looks)
    ]
    yield from groups[:_GROUPS_NAMED]
    if (more := len(groups) - _GROUPS_NAMED) > 0:
        yield Finding("similar-pictures", (), f"there are {more} more groups of images that are almost the same")


def _alike(looks: dict[str, Look]) -> list[list[str]]:
    """Groups of names whose pictures resemble at least one other of their group."""
    group_of = {name: [name] for name in looks}
    hashes = [(name, look.dhash, look.dhash_down) for name, look in looks.items()]
    for (one, across, down), (other, other_across, other_down) in combinations(hashes, 2):
        if (
            (across ^ other_across).bit_count() <= NEAR_BITS
            and (down ^ other_down).bit_count() <= NEAR_BITS
            and group_of[one] is not group_of[other]
        ):
            group_of[one].extend(group_of[other])
            for name in group_of[other]:
                group_of[name] = group_of[one]
    groups = {id(group): group for group in group_of.values() if len(group) > 1}
    return [sorted(group) for group in groups.values()]


def _judge_colours(examined: Examined) -> Iterator[Finding]:
    """A grey picture teaches a model of coloured ones that colours may be left out."""
    looks = {name: seen.look for name, seen in examined.seen.items() if seen.look.contrast >= FLAT_BELOW}
    grey = [name for name, look in looks.items() if look.is_grey]
    for name in grey if len(grey) < len(looks) else ():
        yield Finding("grey", (quote_name(name),), "it has no colours, and others have")


def _judge_changes(dataset: Dataset, examined: Examined, plan: Plan) -> Iterator[Finding]:
    """What is done to the copy, a finding for each kind of it with all the files it is done to."""
    pixels = plan.max_megapixels * MEGAPIXEL
    looks = {name: seen.look for name, seen in examined.seen.items()}
    told = [look for look in looks.values() if look.contrast >= FLAT_BELOW]
    is_grey = bool(told) and all(look.is_grey for look in told)
    changed: dict[tuple[str, str], list[str]] = {
        ("turned", "turned upright"): [name for name, look in looks.items() if look.is_turned],
        ("shrunk", f"shrunk to {plan.max_megapixels:g} megapixel{'' if plan.max_megapixels == 1 else 's'}"): [
            name for name, look in looks.items() if pixels and look.width * look.height > pixels
        ],
        ("converted", "converted to JPEG or PNG"): [
            name for name, look in looks.items() if look.form not in IMAGE_SUFFIXES
        ],
        ("deep", "brought from 16 to 8 bits a channel"): [name for name, look in looks.items() if look.is_deep],
        ("palette", "freed of its palette"): [name for name, look in looks.items() if look.mode in ("P", "PA", "1")],
        ("all-grey", "grey, and stored as RGB"): [name for name, look in looks.items() if is_grey and look.is_grey],
        ("wide-colours", "converted to sRGB from another colour profile"): [
            name for name, look in looks.items() if look.has_profile
        ],
        ("metadata-removed", "freed of metadata"): [name for name, look in looks.items() if look.has_metadata],
        ("odd-name", "given a plain name"): _odd_names(dataset),
    }
    for (code, what), names in changed.items():
        if names:
            yield Finding(code, tuple(map(quote_name, names)), what)


def _odd_names(dataset: Dataset) -> list[str]:
    names = [image.path.name for image in dataset.images]
    alike = Counter(name.casefold() for name in names)
    return [
        name for name in names if not name.isascii() or len(name) > LONG_NAME_CHARACTERS or alike[name.casefold()] > 1
    ]


def _judge_captions(dataset: Dataset, plan: Plan) -> Iterator[Finding]:
    captioned = [image for image in dataset.images if image.caption is not None]
    bare = [image for image in dataset.images if image.caption is None]
    if captioned and bare:
        they_have = "it has" if len(bare) == 1 else "they have"
        others = "1 other has" if len(captioned) == 1 else f"{len(captioned)} others have"
        yield Finding("some-captions", _names(bare), f"{they_have} no caption, and {others} one")
    if captioned and plan.captioning:
        yield Finding("captions-and-captioning", (), f"{_images(len(captioned))} a caption, and captioning is on")
    yield from _judge_mode(plan, captioned, bare)
    if plan.trigger_word:
        yield from _judge_trigger(plan.trigger_word, captioned)


def _judge_mode(plan: Plan, captioned: list[ImageFile], bare: list[ImageFile]) -> Iterator[Finding]:
    if plan.mode == "character":
        what = "a character is learnt best from images of one person"
        if bare:
            what += f"; {_images(len(bare))} no caption to tell people apart by"
        yield Finding("character-scenes", (), what)
    elif plan.mode == "style":
        named = [(image, find_style_word(image.caption or "", plan.trigger_word)) for image in captioned]
        naming = [(image, word) for image, word in named if word]
        if naming and 2 * len(naming) >= len(captioned):
            what = f"their captions name a style ({quoted(naming[0][1], 40)}), which then is no part of it"
            yield Finding("style-named", _names([image for image, _ in naming]), what)


def _judge_trigger(trigger_word: str, captioned: list[ImageFile]) -> Iterator[Finding]:
    if trigger_word.isalpha() and trigger_word.islower():
        yield Finding(
            "ordinary-trigger", (), f"the trigger word {quoted(trigger_word, 60)} reads like an ordinary word"
        )
    lacking = [image for image in captioned if not has_word(image.caption or "", trigger_word)]
    if lacking and len(lacking) == len(captioned):
        yield Finding("trigger-absent", (), f"no caption has the trigger word {quoted(trigger_word, 60)}")
    elif lacking:
        whose = "its caption lacks" if len(lacking) == 1 else "their captions lack"
        what = f"{whose} the trigger word {quoted(trigger_word, 60)}, which the others have"
        yield Finding("trigger-missing", _names(lacking), what)


def _images(number: int) -> str:
    return "1 image has" if number == 1 else f"{number} images have"


def _names(images: list[ImageFile]) -> tuple[str, ...]:
    return tuple(quote_name(image.path.name) for image in images)
