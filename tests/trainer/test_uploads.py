"""Archives, hostile until checked: what is taken, what is refused in which words, and what neither may cost."""

import bz2
import json
import os
import random
import stat
import struct
import sys
import threading
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from PIL import Image

from bfl_mcp.trainer.uploads import unpack
from tests.trainer.archives import Entry, good_archive, jpeg, start, zipped
from tests.trainer.processes import Server, paths, serving

# --- archives that are refused ----------------------------------------------------------------------------------------


def with_attributes(name: str, mode: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    return entry


def patched(archive: bytes, local: int, central: int, value: bytes) -> bytes:
    """The archive with a field of its first entry overwritten, in both places where it stands."""
    changed = bytearray(archive)
    directory = archive.index(b"PK\x01\x02")
    changed[local : local + len(value)] = value
    changed[directory + central : directory + central + len(value)] = value
    return bytes(changed)


def encrypted() -> bytes:
    return patched(zipped([("a.jpg", jpeg())]), 6, 8, b"\x01\x00")


def wrong_checksum() -> bytes:
    return patched(zipped([("a.jpg", jpeg())]), 14, 16, b"\x00\x00\x00\x00")


def lying_size(change: int, method: int = zipfile.ZIP_STORED) -> bytes:
    size = struct.pack("<L", len(jpeg()) + change)
    return patched(zipped([("a.jpg", jpeg())], method), 22, 24, size)


def bzip2_bomb(zeros: int) -> bytes:
    """Zeros in a few hundred bytes, said to be a thousand."""
    archive = zipped([("a.jpg", bz2.compress(bytes(zeros)))])
    return patched(patched(archive, 8, 10, b"\x0c\x00"), 22, 24, struct.pack("<L", 1000))


def endless_directory() -> bytes:
    """A directory of 100 000 entries: each would be an object in memory before anything is checked."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", *[20, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0])
    directory = b"".join(entry + b"%04x" % (number & 0xFFFF) for number in range(100_000))
    return directory + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0, 0, len(directory), 0, 0)


PAIR: list[Entry] = [("a.jpg", jpeg()), ("a.txt", b"one")]
BAD: dict[str, tuple[bytes | list[Entry], str]] = {
    "no-zip": (b"\xff\xd8\xff of a picture", "file_data is not a ZIP that can be read"),
    "nothing": (b"", "file_data is not a ZIP that can be read"),
    "cut": (good_archive()[:-40], "file_data is not a ZIP that can be read"),
    "empty": ([], "the archive holds no image"),
    "only-captions": ([("a.txt", b"x")], "the archive holds no image"),
    "parent": ([("../evil.jpg", jpeg())], "../evil.jpg is not a plain name inside the archive"),
    "deep-parent": ([("a/../../evil.jpg", jpeg())], "a/../../evil.jpg is not a plain name inside the archive"),
    "parent-caption": ([("a.jpg", jpeg()), ("../a.txt", b"x")], "../a.txt is not a plain name inside the archive"),
    "absolute": ([("/abs.jpg", jpeg())], "/abs.jpg is not a plain name inside the archive"),
    "drive": ([("C:evil.jpg", jpeg())], "'C:evil.jpg' is not a plain name inside the archive"),
    "stream": ([("a.jpg:evil", jpeg())], "'a.jpg:evil' is not a plain name inside the archive"),
    "backslash": ([("a\\b.jpg", jpeg())], "a\\b.jpg is not a plain name inside the archive"),
    "dot-backslash": ([*PAIR, (".\\b.jpg", jpeg())], ".\\b.jpg is not a plain name inside the archive"),
    "link": (
        [(with_attributes("link.jpg", stat.S_IFLNK | 0o777), b"/etc/passwd")],
        "Suspicious file attributes detected: link.jpg",
    ),
    "device": ([(with_attributes("tty.jpg", stat.S_IFCHR), b"")], "Suspicious file attributes detected: tty.jpg"),
    "encrypted": (encrypted(), "a.jpg is encrypted"),
    "zip-inside": ([("a.jpg", jpeg()), ("more.zip", good_archive())], "more.zip is an archive inside the archive"),
    "heic": ([("a.heic", b"\0\0\0\x18ftypheic" + bytes(60))], "a.heic is neither a JPEG, PNG or WebP image nor"),
    "text-as-jpeg": ([("note.jpg", b"not a picture at all")], "note.jpg is neither a JPEG, PNG or WebP image nor"),
    "truncated": ([("half.jpg", jpeg(1, 320, 240)[:-2000])], "half.jpg: it is cut short"),
    "garbled": ([("bad.png", b"\x89PNG\r\n\x1a\n" + bytes(100))], "bad.png: it is damaged"),
    "checksum": (wrong_checksum(), "a.jpg is damaged"),
    "too-long": (lying_size(+9), "a.jpg is shorter than it says"),
    "too-short": (lying_size(-9), "a.jpg is damaged"),
    "too-long-deflated": (lying_size(+9, zipfile.ZIP_DEFLATED), "a.jpg is shorter than it says"),
    "too-short-deflated": (lying_size(-9, zipfile.ZIP_DEFLATED), "a.jpg is damaged"),
    "bomb": (zipped([("bomb.png", bytes(5_000_000))], zipfile.ZIP_DEFLATED), "bomb.png unfolds to more than 100 times"),
    "bzip2-bomb": (bzip2_bomb(10_000), "a.jpg is packed with method 12"),
    "lzma": (zipped([("a.jpg", jpeg())], zipfile.ZIP_LZMA), "a.jpg is packed with method 14"),
    "many-images": (
        [(f"{number}.jpg", jpeg()) for number in range(1001)],
        "the archive holds 1001 images; at most 1000 are taken",
    ),
    "many-files": ([(f"{number}.txt", b"") for number in range(4001)], "the archive holds 4001 files; at most 4000"),
    "endless-directory": (endless_directory(), "the archive holds 100000 entries; at most 4000 files are taken"),
    "caption-latin-1": ([("a.jpg", jpeg()), ("a.txt", "größe".encode("latin-1"))], "a.txt is not UTF-8 text"),
    "caption-long": ([("a.jpg", jpeg()), ("a.txt", b"x" * 64_001)], "a.txt is longer than 64 kB"),
    "control": ([("a\x1b[31m\u202e.jpg", b"x")], r"a\x1b[31m\u202e.jpg is neither a JPEG"),
    "invisible": ([("\x01\u202e", b"x")], r"\x01\u202e is neither a JPEG, PNG or WebP image nor a caption"),
    "no-name": ([(".", jpeg())], ". is not a plain name inside the archive"),
    "only-parent": ([("a/..", jpeg())], "a/.. is not a plain name inside the archive"),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_archive_is_refused_by_the_name_of_its_entry(
    api: httpx.AsyncClient, tmp_path: Path, name: str
) -> None:
    """Who packed it must learn which file to mend; and nothing of it may stay anywhere."""
    content, words = BAD[name]
    before = paths(tmp_path)

    answer = await api.post("/v1/finetune", json=start(content if isinstance(content, bytes) else zipped(content)))

    assert answer.status_code == 422
    [fault] = answer.json()["detail"]
    assert (fault["type"], fault["loc"]) == ("value_error", ["body", "file_data"])
    assert fault["msg"].startswith(f"Value error, {words}")
    assert paths(tmp_path) == before


@pytest.mark.parametrize("text", ["not base64!", "AAA", "A\nAA", "AA==AA==", "Ä", "data:application/zip;base64,AAAA"])
async def test_what_is_not_base64_is_refused(api: httpx.AsyncClient, text: str) -> None:
    """A forgiving decoder would make some other archive of it."""
    answer = await api.post("/v1/finetune", json=start(file_data=text))

    fault = {"type": "value_error", "loc": ["body", "file_data"], "msg": "Value error, file_data is not base64"}
    assert (answer.status_code, answer.json()) == (422, {"detail": [fault]})


async def test_an_archive_that_unfolds_too_far_is_refused(api: httpx.AsyncClient) -> None:
    """Many modest entries add up: the sum is bounded by four times the largest upload."""
    noise = os.urandom(500) * 100
    archive = zipped([(f"{number}.jpg", noise) for number in range(900)], zipfile.ZIP_DEFLATED)

    answer = await api.post("/v1/finetune", json=start(archive))

    assert answer.status_code == 422
    assert "the archive unfolds to 45 MB; at most 40 MB are taken" in answer.json()["detail"][0]["msg"]


def test_what_the_trainer_lacks_is_not_blamed_on_the_archive(tmp_path: Path) -> None:
    """A folder or a disk that fails is no fault of the request, so it must not become a 422."""
    with pytest.raises(FileNotFoundError):
        unpack(BytesIO(good_archive()), tmp_path / "gone", 1_000_000)


# --- archives that are taken ------------------------------------------------------------------------------------------

GOOD: dict[str, tuple[list[Entry], list[str]]] = {
    "flat": (PAIR, ["001.jpg", "001.txt"]),
    "one-folder": (
        [("cats/", b""), ("cats/a.jpg", jpeg()), ("cats/a.txt", b"one"), ("cats/b.jpg", jpeg(1))],
        ["001.jpg", "001.txt", "002.jpg"],
    ),
    "left-by-systems": (
        [
            *PAIR,
            ("__MACOSX/._a.jpg", b"junk"),
            (".DS_Store", b"junk"),
            ("Thumbs.db", b"junk"),
            ("desktop.ini", b"junk"),
            (".hidden/b.jpg", b"junk"),
        ],
        ["001.jpg", "001.txt"],
    ),
    "folders": ([("a/", b""), ("a/b/", b""), ("a/b/c.jpg", jpeg())], ["001.jpg"]),
    "caption-without-image": ([*PAIR, ("b.txt", b"\xff")], ["001.jpg", "001.txt"]),
    "caption-elsewhere": ([("a.jpg", jpeg()), ("other/a.txt", b"one")], ["001.jpg"]),
    "empty-caption": ([("a.jpg", jpeg()), ("a.txt", b" \n")], ["001.jpg"]),
    "byte-order-mark": ([("a.jpg", jpeg()), ("a.txt", b"\xef\xbb\xbfone")], ["001.jpg", "001.txt"]),
    "misnamed": ([("a.png", jpeg()), ("b", jpeg())], ["001.jpg", "002.jpg"]),
    "capitals": ([("A.JPG", jpeg()), ("A.TXT", b"one")], ["001.jpg", "001.txt"]),
    "names": ([("größe 猫.jpg", jpeg()), ("größe 猫.txt", b"one"), ("a" * 300 + ".jpg", jpeg())], ["001.jpg"]),
    "a-thousand": ([(f"{number}.jpg", jpeg()) for number in range(1000)], [f"{n:03}.jpg" for n in range(1, 1000)]),
}


@pytest.mark.parametrize("name", GOOD)
async def test_a_good_archive_becomes_a_flat_numbered_dataset(api: httpx.AsyncClient, data: Path, name: str) -> None:
    """People pack folders by hand on any system; what their system adds is none of their doing."""
    entries, expected = GOOD[name]

    answer = await api.post("/v1/finetune", json=start(zipped(entries)))

    assert answer.status_code == 200, answer.text
    dataset = data / "finetunes" / answer.json()["finetune_id"] / "dataset"
    names = sorted(path.name for path in dataset.iterdir())
    assert set(expected) <= set(names)
    assert len([path for path in names if path.endswith(".jpg")]) == sum(
        content.startswith(b"\xff\xd8") for _, content in entries
    )
    assert all(path.is_file() and not path.is_symlink() for path in dataset.iterdir())
    assert len([path for path in names if path.endswith(".txt")]) == len(
        [n for n in expected if n.endswith(".txt")]
    ) or (name == "names")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["a.jpg", "a.txt"])
async def test_names_that_stand_twice_overwrite_nothing(api: httpx.AsyncClient, data: Path, name: str) -> None:
    """The dataset's names are its own, so each picture has one; of two captions the last counts."""
    second: Entry = (name, jpeg(1) if name == "a.jpg" else b"two")

    answer = await api.post("/v1/finetune", json=start(zipped([*PAIR, second])))

    dataset = data / "finetunes" / answer.json()["finetune_id"] / "dataset"
    content = {path.name: path.read_bytes() for path in dataset.iterdir()}
    if name == "a.jpg":
        assert content == {"001.jpg": jpeg(), "001.txt": b"one", "002.jpg": jpeg(1), "002.txt": b"one"}
    else:
        assert content == {"001.jpg": jpeg(), "001.txt": b"two"}


# --- memory -----------------------------------------------------------------------------------------------------------


def noise(form: str, megabytes: int) -> bytes:
    """A picture of noise: nothing compresses it."""
    side = int((megabytes * 1_000_000 / 3) ** 0.5)
    file = BytesIO()
    Image.frombytes("RGB", (side, side), random.Random(1).randbytes(side * side * 3)).save(
        file, form, **({"compress_level": 0} if form == "PNG" else {"quality": 100, "subsampling": 0})
    )
    return file.getvalue()


@pytest.fixture(scope="module")
def large_body() -> bytes:
    """60 MB of JSON: JPEG and PNG noise, stored."""
    png, photo = noise("PNG", 3), noise("JPEG", 3)
    entries = [entry for number in range(6) for entry in ((f"{number}.png", png), (f"{number}j.jpg", photo))]
    body = json.dumps(start(zipped(entries))).encode()
    assert 50_000_000 < len(body) < 65_000_000
    return body


@pytest.fixture
def roomy(data: Path) -> Iterator[Server]:
    if not sys.platform.startswith("linux"):
        pytest.skip("memory is read from /proc")
    with serving(data, max_upload_mb=100) as server, server.client() as client:
        # What is imported and kept is no part of an upload.
        assert client.post("/v1/finetune", json=start()).status_code == 200
        yield server


def hostile_json(kind: str) -> bytes:
    """Small in bytes and large as objects or characters."""
    opening = b'{"finetune_comment": "a", "mode": "style", '
    match kind:
        case "objects":
            return opening + b'"raw": [' + b'{"":1},' * 4_000_000 + b'1], "file_data": "AAAA"}'
        case "lists":
            return (
                opening + b'"file_data": "AAAA", "raw": ' + b"[" * 100 + b"[]," * 9_000_000 + b"1" + b"]" * 100 + b"}"
            )
        case _:
            return opening + b'"file_data": "\\ud83d\\ude00' + b"A" * 30_000_000 + b'"}'


def post_at_once(server: Server, bodies: list[bytes]) -> list[int]:
    statuses: list[int] = []

    def post(body: bytes) -> None:
        with server.client() as client:
            statuses.append(client.post("/v1/finetune", content=body).status_code)

    threads = [threading.Thread(target=post, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    return statuses


@pytest.mark.parametrize("at_once", [1, 3])
def test_an_upload_needs_at_most_four_times_its_size_in_memory(roomy: Server, large_body: bytes, at_once: int) -> None:
    """Uploads are read one at a time, those that wait lie on disk: three at once cost what one costs."""
    idle = roomy.memory_mb("VmRSS")

    statuses = post_at_once(roomy, [large_body] * at_once)

    ratio = (roomy.memory_mb("VmHWM") - idle) / (len(large_body) / 1e6)
    print(f"memory: {ratio:.2f} times the body")  # noqa: T201 - shown with -s
    assert statuses == [200] * at_once
    assert ratio < 4


@pytest.mark.parametrize("kind", ["objects", "lists", "characters"])
def test_a_hostile_body_needs_no_more_memory_than_an_honest_one(roomy: Server, kind: str) -> None:
    """JSON unfolds to twenty times its size as objects, and one emoji makes four bytes of every character."""
    body = hostile_json(kind)
    idle = roomy.memory_mb("VmRSS")

    statuses = post_at_once(roomy, [body])

    ratio = (roomy.memory_mb("VmHWM") - idle) / (len(body) / 1e6)
    print(f"memory: {ratio:.2f} times the body")  # noqa: T201 - shown with -s
    assert statuses == [422]
    assert ratio < 4


def test_a_small_bomb_stays_small(roomy: Server) -> None:
    """722 bytes of bzip2 once filled two gigabytes before anything could be checked."""
    idle = roomy.memory_mb("VmRSS")
    bombs = [bzip2_bomb(100_000_000), zipped([("b.png", bytes(100_000_000))], zipfile.ZIP_DEFLATED)]

    statuses = post_at_once(roomy, [json.dumps(start(bomb)).encode() for bomb in bombs])

    assert statuses == [422, 422]
    assert roomy.memory_mb("VmHWM") - idle < 50
