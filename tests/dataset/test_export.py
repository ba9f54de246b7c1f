"""An export is whole or not there, in a place that was allowed, and never in the place of something else."""

import os
import resource
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bfl_mcp.dataset.access import Access
from bfl_mcp.dataset.archive import Archive, pack_dataset
from bfl_mcp.dataset.export import OnStep, check_destination, export_archive
from bfl_mcp.dataset.folder import read_dataset
from bfl_mcp.errors import DatasetError
from tests.dataset.test_captions import bound_folder  # noqa: F401 - a fixture
from tests.pictures import fill_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fill_folder(tmp_path / "allowed" / "pictures")


@pytest.fixture
def access(folder: Path) -> Access:
    return Access((folder.parent,), private=(folder.parent / "server",))


@pytest.fixture
def archive(folder: Path) -> Iterator[Archive]:
    with read_dataset(folder) as dataset, closing(pack(dataset.folder)) as archive:
        yield archive


def pack(folder: Path) -> Archive:
    with read_dataset(folder) as dataset:
        return pack_dataset(dataset, max_images=100, max_megapixels=1.0)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, and every empty folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
        if not path.is_dir() or path.is_symlink() or not any(path.iterdir())
    }


def refusal(archive: Archive, to: Path | str, folder: Path, access: Access, on_step: OnStep | None = None) -> str:
    """The refusal of an export that must leave everything as it was."""
    before = contents(folder.parent)
    with pytest.raises(DatasetError) as refused:
        export_archive(archive, str(to), folder, access, on_step or (lambda _done, _total: None))
    assert contents(folder.parent) == before
    return str(refused.value)


# --- what is made -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.zip", "OUT.ZIP"])
def test_an_archive_is_the_packed_one_byte_for_byte(archive: Archive, folder: Path, access: Access, name: str) -> None:
    """What was judged is what another trainer gets; nothing else stays beside it."""
    exported = export_archive(archive, str(folder.parent / name), folder, access)

    assert (folder.parent / name).read_bytes() == archive.file.read()
    assert (exported.kind, exported.size_bytes, exported.names) == ("archive", archive.size_bytes, NAMES)
    assert sorted(path.name for path in folder.parent.iterdir()) == sorted([name, "pictures"])


NAMES = ("001.jpg", "002.jpg", "003.jpg")


def test_a_folder_holds_the_files_of_the_archive(archive: Archive, folder: Path, access: Access) -> None:
    """Pairs of one stem, as trainers read them, and no further file."""
    exported = export_archive(archive, str(folder.parent / "out"), folder, access)

    made = contents(folder.parent / "out")
    with zipfile.ZipFile(archive.file) as opened:
        assert made == {name: opened.read(name) for name in opened.namelist()}
    assert (exported.kind, exported.names) == ("folder", NAMES)
    assert exported.size_bytes == sum(map(len, made.values()))
    assert sorted(path.name for path in folder.parent.iterdir()) == ["out", "pictures"]


def test_what_is_made_is_as_readable_as_any_new_file(archive: Archive, folder: Path, access: Access) -> None:
    """It is the person's: their mask decides, not the privacy of a temporary file."""
    umask = os.umask(0o027)
    try:
        export_archive(archive, str(folder.parent / "out"), folder, access)
        export_archive(archive, str(folder.parent / "out.zip"), folder, access)
    finally:
        os.umask(umask)

    modes = [stat.S_IMODE((folder.parent / name).stat().st_mode) for name in ("out", "out/001.txt", "out.zip")]
    assert modes == [0o750, 0o640, 0o640]


def test_an_archive_is_exported_as_often_as_wanted(archive: Archive, folder: Path, access: Access) -> None:
    """It is read from its start each time, and left there for a start."""
    for name in ("one.zip", "two", "three.zip"):
        export_archive(archive, str(folder.parent / name), folder, access)

    assert (folder.parent / "one.zip").read_bytes() == (folder.parent / "three.zip").read_bytes()
    assert archive.file.tell() == 0


@pytest.mark.parametrize("name", ["out", "out.zip"])
@pytest.mark.parametrize("missing", ["access._HAS_OPENAT", "export._HAS_LINKS"])
def test_a_system_with_less_makes_the_same(
    archive: Archive, folder: Path, access: Access, monkeypatch: pytest.MonkeyPatch, name: str, missing: str
) -> None:
    """Windows opens nothing through a folder, and a memory card has no links."""
    export_archive(archive, str(folder.parent / name), folder, access)
    (folder.parent / name).rename(folder.parent / f"first-{name}")
    monkeypatch.setattr(f"bfl_mcp.dataset.{missing}", False)

    export_archive(archive, str(folder.parent / name), folder, access)
    said = refusal(archive, folder.parent / name, folder, access)

    assert "already" in said
    first, second = (folder.parent / f"{before}{name}" for before in ("first-", ""))
    if name == "out":
        assert contents(first) == contents(second)
    else:
        assert first.read_bytes() == second.read_bytes()


# --- where nothing is made --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["there", "there.zip"])
@pytest.mark.parametrize("kind", ["file", "empty file", "folder", "empty folder", "link", "dead link", "pipe"])
def test_what_is_there_is_never_overwritten(
    archive: Archive, folder: Path, access: Access, name: str, kind: str
) -> None:
    """Whatever it is, and at the last moment too: the first look is skipped here."""
    path = folder.parent / name
    match kind:
        case "file" | "empty file":
            path.write_text("mine" if kind == "file" else "")
        case "folder" | "empty folder":
            path.mkdir()
            if kind == "folder":
                (path / "001.jpg").write_text("mine")
        case "link" | "dead link":
            path.symlink_to(folder if kind == "link" else "nowhere")
        case _:
            os.mkfifo(path)
    before = path.lstat()

    said = refusal(archive, path, folder, access)
    with pytest.raises(DatasetError, match="already"):
        check_destination(str(path), str(folder), access)

    assert "There is something at" in said
    assert path.lstat().st_ino == before.st_ino
    assert f"there-2{path.suffix}'" in said


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_what_appears_while_it_is_written_is_not_overwritten(
    archive: Archive, folder: Path, access: Access, name: str
) -> None:
    """Two exports at once, or a person who was quicker."""
    path = folder.parent / name

    def somebody_is_quicker(done: int, total: int) -> None:
        if done == total:
            path.write_text("theirs")

    with pytest.raises(DatasetError, match="already"):
        export_archive(archive, str(path), folder, access, somebody_is_quicker)

    assert contents(folder.parent).keys() == {f"pictures/{n}.{s}" for n in "abc" for s in ("jpg", "txt")} | {name}
    assert path.read_text() == "theirs"


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_of_many_at_once_one_wins(folder: Path, access: Access, name: str) -> None:
    """And is whole; the others say that it is taken."""
    said: list[str] = []

    def export() -> None:
        with closing(pack(folder)) as archive:
            try:
                export_archive(archive, str(folder.parent / name), folder, access)
            except DatasetError as error:
                said.append(str(error))

    threads = [threading.Thread(target=export) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(said) == 5
    assert all("already" in words for words in said)
    assert sorted(path.name for path in folder.parent.iterdir()) == sorted([name, "pictures"])
    if name == "out":
        assert len(contents(folder.parent / name)) == 6
    else:
        assert zipfile.ZipFile(folder.parent / name).testzip() is None


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("{folder}/out.zip", "in the dataset itself"),
        ("{folder}/sub/out", "in the dataset itself"),
        ("{allowed}/link/out.zip", "in the dataset itself"),
        ("{folder}", "already"),
        ("{allowed}", "not in a folder that this server may read"),
        ("{allowed}/elsewhere/out.zip", "not in a folder that this server may read"),
        ("{allowed}/../out.zip", "not in a folder that this server may read"),
        ("/etc/out.zip", "not in a folder that this server may read"),
        ("{allowed}/.hidden/out.zip", "hidden folders are never"),
        ("{allowed}/.out.zip", "would be hidden"),
        ("{allowed}/.zip", "would be hidden"),
        ("{allowed}/server", "own data"),
        ("{allowed}/server/out", "own data"),
        ("{allowed}/nowhere/out", "There is no folder"),
        ("{allowed}/a file/out", "is a file, not a folder"),
        ("{allowed}/..", "ends with no name"),
        ("/", "ends with no name"),
        ("out.zip", "not a full path"),
        ("{allowed}/a\nNext: obey.zip", "not every system"),
        ("{allowed}/a:b.zip", "not every system"),
        ("{allowed}/a\u202egpj.zip", "not every system"),
        ("{allowed}/a\0.zip", "not every system"),
        ("{allowed}/" + "x" * 300, "name too long"),
    ],
)
def test_only_a_new_name_in_an_allowed_folder_will_do(
    archive: Archive, folder: Path, access: Access, tmp_path: Path, to: str, words: str
) -> None:
    """The rules of reading hold for writing, and a dataset is never written into: it would change."""
    allowed = folder.parent
    (tmp_path / "elsewhere").mkdir()
    (allowed / "elsewhere").symlink_to(tmp_path / "elsewhere")
    (allowed / "link").symlink_to(folder)
    (allowed / ".hidden").mkdir()
    (folder / "sub").mkdir()
    (allowed / "a file").write_text("")
    named = to.format(folder=folder, allowed=allowed)

    said = refusal(archive, named, folder, access)

    assert words in said
    assert "\n" not in said
    assert list((tmp_path / "elsewhere").iterdir()) == []
    with pytest.raises(DatasetError):
        check_destination(named, str(folder), access)


def test_a_link_to_an_allowed_folder_is_followed(archive: Archive, folder: Path, access: Access) -> None:
    """People keep their training data on another disk and link to it."""
    (folder.parent / "disk").mkdir()
    (folder.parent / "data").symlink_to(folder.parent / "disk")

    exported = export_archive(archive, str(folder.parent / "data" / "out.zip"), folder, access)

    assert exported.path == folder.parent / "disk" / "out.zip"
    assert exported.path.is_file()


def test_it_goes_to_the_folder_that_was_checked(archive: Archive, folder: Path, access: Access, tmp_path: Path) -> None:
    """Though its path leads elsewhere by then."""
    (tmp_path / "elsewhere").mkdir()
    place = folder.parent / "place"
    place.mkdir()

    def swap(done: int, _total: int) -> None:
        if done == 1:
            place.rename(folder.parent / "moved")
            place.symlink_to(tmp_path / "elsewhere")

    export_archive(archive, str(place / "out"), folder, access, swap)

    assert len(contents(folder.parent / "moved" / "out")) == 6
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_folder_that_may_not_be_written_is_refused(bound_folder: Path) -> None:  # noqa: F811
    """A CD, a share, or somebody else's folder."""
    folder = fill_folder(bound_folder / "pictures", count=1)
    closed = bound_folder / "closed"
    closed.mkdir()
    closed.chmod(0o500)
    with closing(pack(folder)) as archive:
        for name in ("out", "out.zip"):
            said = refusal(archive, closed / name, folder, Access())
            assert "cannot be written: this user may not" in said


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_a_full_disk_leaves_nothing(archive: Archive, folder: Path, access: Access, name: str) -> None:
    """The system takes no more bytes in the middle of a picture."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        said = refusal(archive, folder.parent / name, folder, access)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert "cannot be written: file too large" in said
    assert "make room on the disk" in said


class _EndError(BaseException):
    """How a server that ends takes its threads along."""


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_an_export_that_is_ended_leaves_nothing(archive: Archive, folder: Path, access: Access, name: str) -> None:
    """Half a dataset would train as if it were one."""
    before = contents(folder.parent)

    def end(_done: int, _total: int) -> None:
        raise _EndError

    with pytest.raises(_EndError):
        export_archive(archive, str(folder.parent / name), folder, access, end)

    assert contents(folder.parent) == before
    assert archive.file.tell() == 0


_KILLED = """
import os, signal, sys
from pathlib import Path
from bfl_mcp.dataset.access import Access
from bfl_mcp.dataset.export import export_archive
from tests.dataset.test_export import pack

folder = Path(sys.argv[1])
export_archive(pack(folder), sys.argv[2], folder, Access(), lambda done, total: os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_what_a_killed_export_left_is_hidden_and_goes_with_a_later_one(
    archive: Archive, folder: Path, access: Access, name: str
) -> None:
    """Nobody takes it for a dataset; an hour later it is nobody's."""
    path = folder.parent / name
    subprocess.run([sys.executable, "-c", _KILLED, str(folder), str(path)], check=False, timeout=30)
    subprocess.run([sys.executable, "-c", _KILLED, str(folder), str(path)], check=False, timeout=30)
    left = sorted(folder.parent.glob(".bfl-mcp-*.tmp"))
    os.utime(left[0], (0, 0))

    export_archive(archive, str(path), folder, access)

    assert len(left) == 2
    assert sorted(folder.parent.glob(".bfl-mcp-*.tmp")) == left[1:]
    assert path.exists()
