"""The pictures that were shown are kept as files, and only so many of them."""

import os
from pathlib import Path

from bfl_mcp.dataset.album import MAX_KEPT, keep_picture


def test_the_newest_twenty_are_kept(home: Path) -> None:
    """They must not fill the disk; what is looked at again counts as new."""
    paths = [keep_picture(home, b"picture %d" % number) for number in range(MAX_KEPT)]
    for place, path in enumerate(paths):
        os.utime(path, (1_000_000 + place, 1_000_000 + place))
    again = keep_picture(home, b"picture 0")

    newest = keep_picture(home, b"one more")

    assert again == paths[0]
    assert set(newest.parent.iterdir()) == {newest, *paths} - {paths[1]}


def test_what_a_killed_process_left_counts_too(home: Path) -> None:
    """And goes as the oldest; what is not ours stays."""
    folder = keep_picture(home, b"first").parent
    (folder / ".0123.tmp").write_bytes(b"half")
    (folder / "notes.md").write_text("somebody's")
    os.utime(folder / ".0123.tmp", (0, 0))
    for number in range(MAX_KEPT):
        keep_picture(home, b"picture %d" % number)

    names = {path.name for path in folder.iterdir()}
    assert ".0123.tmp" not in names
    assert "notes.md" in names
    assert len(names) == MAX_KEPT + 1


def test_a_link_in_place_of_a_kept_picture_is_replaced_and_not_followed(home: Path, tmp_path: Path) -> None:
    """Nothing outside is written, whoever put it there."""
    (tmp_path / "mine.txt").write_text("mine")
    path = keep_picture(home, b"picture")
    path.unlink()
    path.symlink_to(tmp_path / "mine.txt")

    keep_picture(home, b"picture")

    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert path.read_bytes() == b"picture"
    assert not path.is_symlink()
