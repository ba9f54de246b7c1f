"""Archives changed on purpose: each kind of change spoils one thing, a seed decides which and how.

zipfile would not write most of them, so the archives are laid out by hand, field by field.
"""

import binascii
import random
import stat
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from typing import Final

from PIL import Image

from tests.pictures import picture
from tests.trainer.archives import good_archive


def _fields(layout: str) -> dict[str, str]:
    return dict(field.split(":") for field in layout.split())


_LOCAL: Final = _fields(
    "signature:4s version:H flags:H method:H time:H date:H crc:L packed:L size:L name_length:H extra_length:H"
)
_CENTRAL: Final = _fields(
    "signature:4s made_by:B system:B version:H flags:H method:H time:H date:H crc:L packed:L size:L "
    "name_length:H extra_length:H comment_length:H disk:H internal:H attributes:L offset:L"
)
_END: Final = _fields(
    "signature:4s disk:H first_disk:H entries_here:H entries:H directory_size:L directory_offset:L comment_length:H"
)
_END_64: Final = _fields(
    "signature:4s record_size:Q made_by:H version:H disk:L first_disk:L "
    "entries_here:Q entries:Q directory_size:Q directory_offset:Q"
)
_LOCATOR: Final = _fields("signature:4s disk:L offset:Q disks:L")
_BITS: Final = {"B": 8, "H": 16, "L": 32, "Q": 64}
_FLAG_ENCRYPTED: Final = 0x1
_FLAG_UTF8: Final = 0x800

HOSTILE_NAMES: Final = (
    *("../" * up + "bfl-mcp-evil.jpg" for up in range(1, 6)),
    *("/bfl-mcp-evil.jpg", "//bfl-mcp-evil.jpg", "a/../../bfl-mcp-evil.jpg", "a/..", "a/../b.jpg", ".."),
    *("..\\bfl-mcp-evil.jpg", "a\\b.jpg", "C:\\bfl-mcp-evil.jpg", "C:evil.jpg", "a.jpg:stream", "\\\\host\\evil.jpg"),
    *("../a.txt", "/a.txt", "a\\b.txt"),
)
"""Names that lead out of a folder on some system. None may come through, whatever it holds."""

_ODD_NAMES: Final = (
    *("a.jpg\0.txt", "\0", "\0../evil.jpg", "", " ", ".", "./a.jpg", "a//b.jpg", "a/./b.jpg", "...", "a/", "a/b/"),
    *("-rf.jpg", "--", "con.jpg", "nul", "a.jpg ", "a.jpg.", "~/a.jpg", "$HOME.jpg", "*.jpg", "%2e%2e%2fevil.jpg"),
    *("\x1b[2J.jpg", "a\nb.jpg", "\u202egpj.exe", "e\u0301.jpg", "\u00e9.jpg", "猫.jpg", "😀" * 80 + ".jpg"),
    *("A.JPG", "a.TXT", "001.part", "001.jpg", "request.json", "progress.json", "a.txt.jpg", ".txt", "a" * 5000),
    *("Thumbs.db", "__MACOSX/._a.jpg", ".hidden", "a/.hidden/b.jpg", "/".join("d" * 500) + "/a.jpg", "\uff0e\uff0e/a"),
)
_OTHER_KINDS: Final = (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFDIR, 0o150000)
_OTHER_METHODS: Final = (*range(1, 8), *range(9, 21), 93, 94, 95, 96, 97, 98, 99, 0xFFFF)


@dataclass
class Member:
    """One file of an archive. `local` and `central` hold what its two headers say instead of the truth."""

    name: bytes
    content: bytes
    method: int = 0
    flags: int = _FLAG_UTF8
    attributes: int = (stat.S_IFREG | 0o644) << 16
    local_extra: bytes = b""
    extra: bytes = b""
    local: dict[str, int] = field(default_factory=dict)
    central: dict[str, int] = field(default_factory=dict)

    def packed(self) -> bytes:
        return deflated(self.content) if self.method == 8 else self.content

    def facts(self) -> dict[str, int]:
        """What both headers say of it, unless they lie."""
        return {
            "version": 20,
            "flags": self.flags,
            "method": self.method,
            "date": 33,
            "crc": zlib.crc32(self.content),
            "packed": len(self.packed()),
            "size": len(self.content),
            "name_length": len(self.name),
        }


@dataclass
class Draft:
    """An archive that can still be changed; `spoilers` change its bytes once they are laid out."""

    members: list[Member]
    before: bytes = b""
    gap: bytes = b""
    end_64: bytes = b""
    comment: bytes = b""
    end: dict[str, int] = field(default_factory=dict)
    spoilers: list[Callable[[bytearray], None]] = field(default_factory=list)

    def laid_out(self) -> bytes:
        content, directory = bytearray(self.before), b""
        for member in self.members:
            local = {"extra_length": len(member.local_extra), **member.facts(), **member.local}
            central = {
                "made_by": 20,
                "system": 3,
                "attributes": member.attributes,
                "offset": len(content),
                "extra_length": len(member.extra),
                **member.facts(),
                **member.central,
            }
            content += _struct(_LOCAL, b"PK\x03\x04", local) + member.name + member.local_extra + member.packed()
            directory += _struct(_CENTRAL, b"PK\x01\x02", central) + member.name + member.extra
        content += self.gap
        end = {
            "entries_here": len(self.members),
            "entries": len(self.members),
            "directory_size": len(directory),
            "directory_offset": len(content),
            "comment_length": len(self.comment),
            **self.end,
        }
        content += directory + self.end_64 + _struct(_END, b"PK\x05\x06", end) + self.comment
        for spoil in self.spoilers:
            spoil(content)
        return bytes(content)


def _struct(fields: dict[str, str], signature: bytes, values: dict[str, int]) -> bytes:
    """A header; what `values` leaves out is zero."""
    _, *names = fields
    return struct.pack("<" + "".join(fields.values()), signature, *(values.get(name, 0) for name in names))


@cache
def deflated(content: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(content) + packer.flush()


@cache
def coded(form: str, seed: int = 0) -> bytes:
    """A small picture as a file of that format."""
    file = BytesIO()
    picture(32, 24, seed).save(file, form)
    return file.getvalue()


def good_draft(chance: random.Random) -> Draft:
    """Three pictures of the three formats and a caption, as somebody might have packed them by hand."""
    method = chance.choice((0, 8))
    return Draft(
        [
            Member(b"a.jpg", coded("JPEG", 1), method),
            Member(b"d/b.png", coded("PNG", 2), method),
            Member(b"a.txt", b"photo of TOK", method),
            Member(b"c.webp", coded("WEBP", 3), method),
        ]
    )


# --- kinds of change --------------------------------------------------------------------------------------------------


def flip_bits(draft: Draft, chance: random.Random) -> None:
    """As a bad disk or a bad line does, mostly where the structure is."""

    def spoil(content: bytearray) -> None:
        for _ in range(chance.choice((1, 1, 2, 3, 8))):
            content[_somewhere(content, chance)] ^= 1 << chance.randrange(8)

    draft.spoilers.append(spoil)


def cut_and_paste(draft: Draft, chance: random.Random) -> None:
    """As transfers in text mode, torn downloads and careless tools do."""

    def spoil(content: bytearray) -> None:
        for _ in range(chance.randint(1, 3)):
            place, length = _somewhere(content, chance), chance.randint(1, 20)
            match chance.randrange(6):
                case 0:
                    del content[max(place, 1) :]
                case 1:
                    del content[place : place + min(length, len(content) - 1)]
                case 2:
                    content[place:place] = chance.randbytes(length)
                case 3:
                    content[place : place + length] = bytes(min(length, len(content) - place))
                case 4:
                    other = _somewhere(content, chance)
                    content[place:place] = content[other : other + chance.randint(1, 400)]
                case _:
                    content[:] = content.replace(b"\n", b"\r\n")

    draft.spoilers.append(spoil)


def lie_in_a_field(draft: Draft, chance: random.Random) -> None:
    """Any field of any header says something else."""
    member = chance.choice(draft.members)
    for _ in range(chance.randint(1, 3)):
        headers = ((member.local, _LOCAL), (member.central, _CENTRAL), (draft.end, _END))
        header, fields = chance.choice(headers)
        name = chance.choice([name for name in fields if name != "signature"])
        header[name] = _number(chance, _BITS[fields[name]], header.get(name, 0))


def lie_about_sizes(draft: Draft, chance: random.Random) -> None:
    """Sizes and checksums that are wrong by one, by far, or said to be four gigabytes."""
    member = chance.choice(draft.members)
    places = chance.choice(([member.local], [member.central], [member.local, member.central]))
    for name in chance.choice((["size"], ["packed"], ["crc"], ["size", "packed"], ["size", "packed", "crc"])):
        value = _number(chance, 32, member.facts()[name])
        for place in places:
            place[name] = value
    if chance.random() < 0.2:
        # "It follows behind the content": the sizes here count for nothing.
        member.flags |= 0x8


def repeat_and_overlap(draft: Draft, chance: random.Random) -> None:
    """Entries that stand twice, share their bytes or point into each other: the trick of overlapping bombs."""
    member = chance.choice(draft.members)
    match chance.randrange(4):
        case 0:
            draft.members.insert(chance.randrange(4), member)
        case 1:
            draft.members += [member] * chance.choice((1, 20, 200))
        case 2:
            twin = Member(member.name, chance.choice(draft.members).content, member.method)
            twin.central["offset"] = 0
            draft.members.append(twin)
        case _:
            for other in draft.members:
                other.central["offset"] = chance.choice((0, chance.randrange(900), _number(chance, 32, 0)))


def move_the_directory(draft: Draft, chance: random.Random) -> None:
    """The end record points elsewhere or counts wrongly."""
    true_end = len(draft.laid_out()) - 22
    for name in chance.sample(["entries_here", "entries", "directory_size", "directory_offset"], chance.randint(1, 3)):
        draft.end[name] = _number(chance, _BITS[_END[name]], chance.choice((true_end, len(draft.members))))
    if chance.random() < 0.3:
        draft.gap = chance.randbytes(chance.randint(1, 300))


def claim_zip64(draft: Draft, chance: random.Random) -> None:
    """Sizes of 64 bits, in extra fields and end records: true ones, absurd ones, and none behind the announcement."""
    lie = chance.choice((0.0, 0.2, 1.0))

    def told(truth: int) -> int:
        return _number(chance, 64, truth) if chance.random() < lie else truth

    member = draft.members[0]
    names = chance.sample(("size", "packed", "offset"), chance.randint(1, 3))
    truth = {**member.facts(), "offset": 0}
    values = [told(truth[name]) for name in ("size", "packed", "offset") if name in names]
    length = told(8 * len(values)) & 0xFFFF
    member.central.update(dict.fromkeys(names, 0xFFFF_FFFF))
    member.extra = struct.pack(f"<HH{len(values)}Q", 1, length, *values)[: chance.choice((99, 99, 99, 4, 12))]
    if chance.random() < 0.5:
        member.local_extra = struct.pack("<HHQQ", 1, 16, told(truth["size"]), told(truth["packed"]))
        member.local.update(size=0xFFFF_FFFF, packed=0xFFFF_FFFF)
    if chance.random() < 0.5:
        count, end = len(draft.members), len(draft.laid_out()) - 22
        size = sum(46 + len(other.name) + len(other.extra) for other in draft.members)
        record = {
            "record_size": told(44),
            "entries_here": told(count),
            "entries": told(count),
            "directory_size": told(size),
            "directory_offset": told(end - size),
        }
        locator = _struct(_LOCATOR, b"PK\x06\x07", {"offset": told(end), "disks": told(1) & 0xFFFF})
        draft.end_64 = _struct(_END_64, b"PK\x06\x06", record) + locator
        draft.end.update(entries=0xFFFF, entries_here=0xFFFF, directory_size=0xFFFF_FFFF, directory_offset=0xFFFF_FFFF)


def name_badly(draft: Draft, chance: random.Random) -> None:
    """A name that leads out of the folder."""
    chance.choice(draft.members).name = chance.choice(HOSTILE_NAMES).encode()


def name_oddly(draft: Draft, chance: random.Random) -> None:
    """Names that no system likes, that are no text, or that are other names in disguise."""
    member = chance.choice(draft.members)
    member.name = chance.choice(_ODD_NAMES).encode()
    match chance.randrange(4):
        case 0:
            member.flags &= ~_FLAG_UTF8
        case 1:
            member.name = chance.randbytes(chance.randint(0, 40))
        case 2:
            # What the Info-ZIP extra field gives as the name in Unicode.
            other = chance.choice((*HOSTILE_NAMES, *_ODD_NAMES)).encode()
            unicode_path = struct.pack("<BL", 1, binascii.crc32(member.name)) + other
            member.extra = struct.pack("<HH", 0x7075, len(unicode_path)) + unicode_path
        case _:
            pass


def change_the_kind(draft: Draft, chance: random.Random) -> None:
    """Links, devices, pipes: what would be made by a program that believes the attributes."""
    member = chance.choice(draft.members)
    member.attributes = (chance.choice(_OTHER_KINDS) | chance.randrange(0o10000)) << 16
    member.content = chance.choice((b"/etc/passwd", b"../../../request.json", b"", member.content))


def encrypt(draft: Draft, chance: random.Random) -> None:
    """The flag for a password, alone or with those for stronger ciphers."""
    member = chance.choice(draft.members)
    member.flags |= _FLAG_ENCRYPTED | chance.choice((0, 0x8, 0x40, 0x2000, 0x2041))


def pack_otherwise(draft: Draft, chance: random.Random) -> None:
    """Methods that nobody unpacks, or that unfold without bounds."""
    chance.choice(draft.members).method = chance.choice(_OTHER_METHODS)


def put_an_archive_inside(draft: Draft, chance: random.Random) -> None:
    """Archives of any sort under any name but a caption's."""
    inner = (
        good_archive(1),
        b"7z\xbc\xaf\x27\x1c" + bytes(60),
        b"Rar!\x1a\x07\x01" + bytes(60),
        b"\x1f\x8b\x08" + bytes(9),
    )
    name = chance.choice((b"more.zip", b"more.jpg", b"d/more", b"a.jpg"))
    draft.members.insert(chance.randrange(4), Member(name, chance.choice((*inner, draft.laid_out()))))


def damage_a_picture(draft: Draft, chance: random.Random) -> None:
    """The archive is right and the picture in it is not."""
    member = chance.choice([member for member in draft.members if member.name != b"a.txt"])
    content = bytearray(member.content)
    match chance.randrange(6):
        case 0:
            del content[chance.randrange(len(content)) :]
        case 1:
            content[chance.randrange(40, len(content)) :] = chance.randbytes(chance.randrange(400))
        case 2:
            # The sizes stand early in all three formats.
            for _ in range(chance.randint(1, 3)):
                content[chance.randrange(min(60, len(content)))] = chance.choice((0, 1, 0x7F, 0xFF))
        case 3:
            content = bytearray(png_of_size(_number(chance, 32, 5000), _number(chance, 32, 5000), chance))
        case 4:
            content = bytearray(chance.choice(_other_files()))
        case _:
            for _ in range(chance.randint(1, 10)):
                content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    member.content = bytes(content)


def damage_a_caption(draft: Draft, chance: random.Random) -> None:
    """Texts in other codings, without end, without text."""
    texts = (
        *(b"", b" \n", b"\xff\xfe", b"caf\xe9", b"\xed\xa0\x80", b"\xc0\xaf", "größe".encode("utf-16"), bytes(9)),
        *(b"x" * 64_000, b"x" * 64_001, b"\xef\xbb\xbf", "\u202e\x1b[2J".encode(), chance.randbytes(50)),
        *(coded("JPEG"), good_archive(1), b"\xf4\x90\x80\x80", b"\r\n" * 100, bytes(100_000)),
    )
    draft.members[2].content = chance.choice(texts)


def wrap(draft: Draft, chance: random.Random) -> None:
    """Something before it, behind it, or between: self-extracting programs, second archives, endless comments."""
    other = good_draft(chance).laid_out()
    match chance.randrange(6):
        case 0:
            draft.before = chance.choice((b"#!/bin/sh\n", b"MZ" + bytes(500), coded("JPEG"), other))
        case 1:
            draft.comment = chance.choice((b"a comment", bytes(0xFFFF), b"PK\x05\x06" + bytes(18), other))
        case 2:
            draft.comment, draft.end["comment_length"] = other, chance.choice((0, 1, 0xFFFF))
        case 3:
            draft.spoilers.append(lambda content: content.extend(other))
        case 4:
            draft.spoilers.append(lambda content: content.__setitem__(slice(0, 0), other))
        case _:
            draft.gap = b"PK\x01\x02" * chance.choice((1, 100, 9000))


def do_several_of_these(draft: Draft, chance: random.Random) -> None:
    """What two checks stop may slip between them."""
    for change in chance.sample([*KINDS.values()][:-1], chance.randint(2, 4)):
        change(draft, chance)


KINDS: Final[dict[str, Callable[[Draft, random.Random], None]]] = {
    "bits flipped": flip_bits,
    "cut and pasted": cut_and_paste,
    "fields that lie": lie_in_a_field,
    "wrong sizes and checksums": lie_about_sizes,
    "repeated, overlapping": repeat_and_overlap,
    "a directory elsewhere": move_the_directory,
    "zip64": claim_zip64,
    "names that lead out": name_badly,
    "odd names": name_oddly,
    "links and devices": change_the_kind,
    "encrypted": encrypt,
    "other methods": pack_otherwise,
    "archives inside": put_an_archive_inside,
    "damaged pictures": damage_a_picture,
    "damaged captions": damage_a_caption,
    "wrapped": wrap,
    "several at once": do_several_of_these,
}
"""What can happen to an archive. The last is made of the others."""

NEVER_TAKEN: Final = frozenset(
    {"names that lead out", "links and devices", "encrypted", "other methods", "archives inside"}
)
"""Kinds of which each single case must be refused."""


def mutated(kind: str, number: int) -> bytes:
    """The same archive for the same kind and number, on every machine."""
    chance = random.Random(f"{kind} {number}")
    draft = good_draft(chance)
    KINDS[kind](draft, chance)
    return draft.laid_out()


def png_of_size(width: int, height: int, chance: random.Random) -> bytes:
    """A PNG that announces any size, with right checksums and some pixels."""
    header = struct.pack(">LLBBBBB", width, height, chance.choice((1, 8, 16)), chance.choice((0, 2, 3, 6)), 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(chance.randrange(10_000)))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data)) for name, data in chunks
    )


@cache
def _other_files() -> Sequence[bytes]:
    """What is no picture for training, and pictures that are more than one."""
    moving = BytesIO()
    frames = [picture(32, 24, seed) for seed in range(3)]
    frames[0].save(moving, "WEBP", save_all=True, append_images=frames[1:])
    grey = BytesIO()
    Image.new("I;16", (32, 24), 40_000).save(grey, "PNG")
    return (
        *(b"", b"\xff\xd8\xff", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b"GIF89a" + bytes(20)),
        *(b"RIFF\xff\xff\xff\xffWEBPVP8 ", coded("GIF"), coded("TIFF"), coded("BMP"), coded("JPEG") + good_archive(1)),
        *(moving.getvalue(), grey.getvalue(), b"\x00\x00\x00\x18ftypheic" + bytes(60), b"\x89PNG\r\n\x1a\n" * 3),
    )


def _somewhere(content: bytearray, chance: random.Random) -> int:
    """A place in the archive, in most cases within a header."""
    marks = (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06")
    headers = [place for mark in marks if (place := content.find(mark)) >= 0]
    if headers and chance.random() < 0.6:
        return min(chance.choice(headers) + chance.randrange(60), len(content) - 1)
    return chance.randrange(len(content))


def _number(chance: random.Random, bits: int, near: int) -> int:
    """A number of so many bits: the least, the most, one beside the truth, or any."""
    most = (1 << bits) - 1
    values = (0, 1, near + 1, near - 1, near * 2, most, most - 1, most >> 1, (most >> 1) + 1, chance.getrandbits(bits))
    return chance.choice(values) & most
