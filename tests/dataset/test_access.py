"""Which folders may be read, and that nothing can be swapped between the check and the reading."""

import errno
import os
import shutil
import socket
import threading
from pathlib import Path

import pytest

from bfl_mcp.dataset.access import Access, why
from bfl_mcp.dataset.archive import pack_dataset
from bfl_mcp.dataset.folder import read_dataset
from bfl_mcp.errors import DatasetError
from tests.pictures import fill_folder


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    path = tmp_path / "allowed"
    path.mkdir()
    return path


@pytest.fixture
def access(allowed: Path, tmp_path: Path) -> Access:
    return Access((allowed,), private=(tmp_path / "allowed" / "server",))


def refusal(access: Access, folder: Path | str) -> str:
    with pytest.raises(DatasetError) as refused:
        access.open(folder)
    said = str(refused.value)
    assert "Nothing was sent or charged" in said
    return said


def test_a_folder_below_an_allowed_one_is_read(access: Access, allowed: Path) -> None:
    """And the allowed one itself."""
    fill_folder(allowed / "cats" / "red", count=2)
    fill_folder(allowed, count=1)

    with read_dataset(allowed / "cats" / "red", access) as red, read_dataset(str(allowed), access) as all_of_it:
        assert (len(red.images), len(all_of_it.images)) == (2, 1)


@pytest.mark.parametrize(
    "named", ["/etc", "/", "/proc/self", "{allowed}/../elsewhere", "{allowed}x", "/nowhere/at/all"]
)
def test_a_folder_elsewhere_is_refused_and_the_allowed_ones_are_named(
    access: Access, allowed: Path, tmp_path: Path, named: str
) -> None:
    """Said in the same words whether it exists or not: what lies elsewhere is nobody's business."""
    fill_folder(tmp_path / "elsewhere")
    fill_folder(tmp_path / "allowedx")

    said = refusal(access, named.format(allowed=allowed))

    assert "not in a folder that this server may read" in said
    assert f"'{allowed}'" in said
    assert "BFL_MCP_ALLOWED_DIRS" in said


@pytest.mark.parametrize("hidden", [".ssh", ".config/pictures", "cats/.git/hooks", "..."])
def test_a_hidden_folder_is_never_read(access: Access, allowed: Path, hidden: str) -> None:
    """Keys and settings live there; no picture folder does."""
    fill_folder(allowed / hidden)

    said = refusal(access, allowed / hidden)

    assert "hidden folders are never read" in said
    assert "copy the pictures" in said


def test_a_hidden_folder_can_be_allowed_by_its_own_name(allowed: Path) -> None:
    """The person says so in so many words; an agent cannot."""
    fill_folder(allowed / ".photos" / "cats")
    access = Access((allowed, allowed / ".photos"))

    with read_dataset(allowed / ".photos" / "cats", access) as found:
        assert len(found.images) == 3


def test_the_server_s_own_data_is_never_read(access: Access, allowed: Path) -> None:
    """Uploads of other people's pictures lie there, and the journal."""
    fill_folder(allowed / "server" / "trainer" / "uploads")

    assert "this server's own data" in refusal(access, allowed / "server" / "trainer" / "uploads")
    assert "this server's own data" in refusal(access, allowed / "server")


def test_the_server_s_own_data_is_known_by_any_name(access: Access, allowed: Path) -> None:
    """A Mac ignores case, and one folder can be mounted twice: what counts is which folder it is."""
    fill_folder(allowed / "server" / "uploads")
    other_spelling = Access((allowed,), private=(allowed / "x" / ".." / "server",))
    (allowed / "x").mkdir()
    (allowed / "alias").symlink_to(allowed / "server")
    by_alias = Access((allowed,), private=(allowed / "alias",))

    for each in (other_spelling, by_alias):
        assert "this server's own data" in refusal(each, allowed / "server" / "uploads")


def test_a_link_out_of_the_allowed_folders_leads_nowhere(access: Access, allowed: Path, tmp_path: Path) -> None:
    """As a whole, and in the middle of a path."""
    fill_folder(tmp_path / "elsewhere" / "cats")
    (allowed / "out").symlink_to(tmp_path / "elsewhere" / "cats")
    (allowed / "middle").symlink_to(tmp_path / "elsewhere")

    assert "not in a folder that this server may read" in refusal(access, allowed / "out")
    assert "not in a folder that this server may read" in refusal(access, allowed / "middle" / "cats")


def test_a_link_within_the_allowed_folders_is_followed(access: Access, allowed: Path) -> None:
    """People keep their pictures on another disk and link to them."""
    fill_folder(allowed / "disk" / "cats")
    (allowed / "cats").symlink_to(allowed / "disk" / "cats")

    with read_dataset(allowed / "cats", access) as found:
        assert len(found.images) == 3


def test_a_link_to_a_hidden_folder_is_refused(access: Access, allowed: Path) -> None:
    """The check is about where it leads."""
    fill_folder(allowed / ".ssh")
    (allowed / "keys").symlink_to(allowed / ".ssh")

    assert "hidden" in refusal(access, allowed / "keys")


def test_an_allowed_folder_may_itself_be_a_link(allowed: Path, tmp_path: Path) -> None:
    """`/tmp` on a Mac is one, and so is many a home."""
    fill_folder(allowed / "cats")
    (tmp_path / "link").symlink_to(allowed)

    with read_dataset(tmp_path / "link" / "cats", Access((tmp_path / "link",))) as found:
        assert len(found.images) == 3


def test_links_in_a_circle_are_refused_in_words(access: Access, allowed: Path) -> None:
    """Each points to the other."""
    (allowed / "a").symlink_to(allowed / "b")
    (allowed / "b").symlink_to(allowed / "a")

    assert "cannot be read" in refusal(access, allowed / "a")


def test_a_pipe_a_socket_and_a_device_are_no_folders(access: Access, allowed: Path) -> None:
    """And none of them is waited for."""
    os.mkfifo(allowed / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(allowed / "socket"))

        assert "not a directory" in refusal(access, allowed / "pipe")
        assert "not a directory" in refusal(access, allowed / "socket")
    assert "not a directory" in refusal(Access((Path("/dev"),)), "/dev/null")


def test_a_folder_this_user_may_not_read_is_refused_in_words(access: Access, allowed: Path) -> None:
    """The system says no. Root may read everything, so root becomes nobody for the moment."""
    folder = fill_folder(allowed / "cats", count=1)
    folder.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        said = refusal(access, folder)
    finally:
        os.seteuid(user)
        folder.chmod(0o700)

    assert "cannot be read: this user may not read it" in said


def test_no_allowed_folder_at_all_is_said(tmp_path: Path) -> None:
    """Somebody locked it down by hand."""
    assert "It may read: none at all" in refusal(Access(()), tmp_path)


# --- between the check and the reading --------------------------------------------------------------------------------


def test_what_was_checked_is_what_is_read_though_the_path_was_swapped(
    access: Access, allowed: Path, tmp_path: Path
) -> None:
    """After the check the folder becomes a link to somewhere else; the files still come from the checked one."""
    fill_folder(allowed / "cats", count=3)
    fill_folder(tmp_path / "secret", count=5)
    with read_dataset(allowed / "cats", access) as found:
        before = pack_dataset(found, max_images=20, max_megapixels=1.0)
        (allowed / "cats").rename(allowed / "moved")
        (allowed / "cats").symlink_to(tmp_path / "secret")
        after = pack_dataset(found, max_images=20, max_megapixels=1.0)

    assert after.sha256 == before.sha256
    before.close()
    after.close()


def test_a_path_that_is_swapped_all_the_time_never_leads_out(access: Access, allowed: Path, tmp_path: Path) -> None:
    """A thousand attempts while another thread turns the folder into a link out and back."""
    fill_folder(allowed / "cats", count=1, captions=False)
    fill_folder(tmp_path / "secret", count=4, captions=False)
    link = allowed / "link"
    link.symlink_to(tmp_path / "secret")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            (allowed / "cats").rename(allowed / "kept")
            link.rename(allowed / "cats")
            (allowed / "cats").rename(link)
            (allowed / "kept").rename(allowed / "cats")

    swapper = threading.Thread(target=swap)
    swapper.start()
    counts = []
    try:
        for _ in range(1000):
            try:
                with read_dataset(allowed / "cats", access) as found:
                    counts.append(len(found.images))
            except DatasetError:
                counts.append(0)
    finally:
        stop.set()
        swapper.join()

    assert set(counts) <= {0, 1}
    assert 1 in counts


@pytest.mark.parametrize("becomes", ["link", "pipe", "folder", "nothing"])
def test_a_file_that_became_something_else_is_named(
    access: Access, allowed: Path, tmp_path: Path, becomes: str
) -> None:
    """Between the look through the folder and the reading of the picture."""
    fill_folder(allowed / "cats", count=2)
    fill_folder(tmp_path / "secret", count=1)
    with read_dataset(allowed / "cats", access) as found:
        path = allowed / "cats" / "a.jpg"
        path.unlink()
        if becomes == "link":
            path.symlink_to(tmp_path / "secret" / "a.jpg")
        elif becomes == "pipe":
            os.mkfifo(path)
        elif becomes == "folder":
            path.mkdir()
        with pytest.raises(DatasetError, match=r"a\.jpg: it cannot be read"):
            pack_dataset(found, max_images=20, max_megapixels=1.0)


def test_a_folder_that_vanishes_while_it_is_read_is_no_crash(access: Access, allowed: Path) -> None:
    """An external disk was pulled out."""
    fill_folder(allowed / "cats", count=2)
    with read_dataset(allowed / "cats", access) as found:
        shutil.rmtree(allowed / "cats")
        with pytest.raises(DatasetError, match=r"a\.jpg: it cannot be read: there is no such file"):
            pack_dataset(found, max_images=20, max_megapixels=1.0)


# --- where a system has no openat -------------------------------------------------------------------------------------


def test_without_openat_the_same_holds_as_far_as_paths_can_tell(
    access: Access, allowed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows opens by path: what was opened is compared with what lies there."""
    monkeypatch.setattr("bfl_mcp.dataset.access._HAS_OPENAT", False)
    fill_folder(allowed / "cats", count=2)
    fill_folder(tmp_path / "secret", count=1)
    with read_dataset(allowed / "cats", access) as found:
        pack_dataset(found, max_images=20, max_megapixels=1.0).close()
        shutil.rmtree(allowed / "cats")
        (allowed / "cats").symlink_to(tmp_path / "secret")
        with pytest.raises(DatasetError, match=r"a\.jpg: it cannot be read"):
            pack_dataset(found, max_images=20, max_megapixels=1.0)
    (allowed / "file").write_text("x")

    assert "is a file, not a folder" in refusal(access, allowed / "file")
    assert "not in a folder" in refusal(access, allowed / "cats")


def test_a_refusal_of_macos_points_to_its_privacy_settings() -> None:
    """The person sees a folder that is theirs, and a Mac that says no."""
    assert "Privacy & Security" in why(PermissionError(errno.EPERM, os.strerror(errno.EPERM)))
    assert why(PermissionError(errno.EACCES, os.strerror(errno.EACCES))) == "this user may not read it"
