"""`bfl-mcp check` as a person uses it: what it prints where, and what its exit status says."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from bfl_mcp.config import Settings
from bfl_mcp.report.target import MARK
from bfl_mcp.report.terminal import columns, wrap
from bfl_mcp.server import build_server
from tests.dataset.test_judge import fill, photo
from tests.report.folders import EXAMPLES, attack, plant
from tests.server.test_tools import facts_of

COLOUR = re.compile(r"\x1b\[[\d;]*m")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "bfl_mcp", "check", *map(str, arguments)]


def check(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(*arguments),
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=50,
        check=False,
    )


def unwrapped(text: str) -> str:
    """Without blanks: where a line breaks depends on how long the path of a folder is."""
    return "".join(text.split())


def check_in_terminal(width: int, *arguments: object, stdout: int | None = None, **environment: str) -> tuple[int, str]:
    """Run it in a terminal of its own; its exit status and what the terminal got. `stdout` may lead elsewhere."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    with subprocess.Popen(
        command(*arguments),
        stdin=theirs,
        stdout=theirs if stdout is None else stdout,
        stderr=theirs,
        env={**inherited, "TERM": "xterm-256color", **environment},
    ) as process:
        os.close(theirs)
        got = b""
        try:
            while block := os.read(ours, 65_536):
                got += block
        except OSError:
            # What Linux says once nobody holds the other end any more.
            pass
        finally:
            os.close(ours)
        status = process.wait(timeout=50)
    return status, got.decode()


def test_a_good_folder_is_ready() -> None:
    """The examples: nothing to note, what would be sent, and status 0 for a script."""
    done = check(EXAMPLES, "--trigger-word", "TOKBOT", "--iterations", "300")

    assert (done.returncode, done.stderr) == (0, "")
    assert "✓ ready\n" in done.stdout
    assert unwrapped("8 images, 8 with a caption; nothing to note") in unwrapped(done.stdout)
    assert "'TOKBOT' in 8" in done.stdout
    assert re.search(r"SHA-256 +[0-9a-f]{64}\n", done.stdout)
    assert re.search(r"price +free\n", done.stdout)
    assert "\x1b" not in done.stdout


def test_the_status_tells_the_verdict(tmp_path: Path) -> None:
    """A script that stages a folder asks no more than that."""
    folder = fill(tmp_path / "pictures")
    photo(9, 500, 400).save(folder / "p9.jpg")
    (folder / "p9.txt").write_text("a TOKBOT")
    warned = check(folder)
    (folder / "p1.jpg").write_bytes(b"\xff\xd8\xff nothing")
    faulty = check(folder)

    assert (warned.returncode, faulty.returncode) == (1, 2)
    assert "! ready with warnings\n" in warned.stdout
    assert "✗ not ready\n" in faulty.stdout
    assert unwrapped("p1.jpg: it is") in unwrapped(faulty.stdout)


def test_what_cannot_be_done_is_a_sentence_and_status_2(tmp_path: Path) -> None:
    """Nothing on standard output that a script could take for a report."""
    folder = fill(tmp_path / "pictures")
    for arguments, words in (
        ([tmp_path / "nowhere"], "There is no folder"),
        ([""], "is not a full path"),
        ([folder / "p1.jpg"], "is a file, not a folder"),
        ([folder, "--mode", "portrait"], "--mode 'portrait' is none of general, character, style, product."),
        ([folder, "--iterations", "99"], "--iterations takes 100 to 1000, not 99."),
        ([folder, "--trigger-word", " "], "--trigger-word takes a word of 1 to 100 characters."),
        ([folder, "--html", tmp_path / "nowhere" / "x.html"], "There is no folder"),
        ([folder, "--html", tmp_path], "is a folder. Give the report a name in it"),
    ):
        done = check(*arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert words in done.stderr
        assert done.stderr.count("\n") == 1

    done = check(folder, BFL_API_URL="http://gpu.example")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("The configuration cannot be used:")


def test_a_folder_is_named_from_where_the_person_is(tmp_path: Path) -> None:
    """People type `check pictures`, not a path from the root."""
    fill(tmp_path / "pictures")
    done = subprocess.run(command("pictures"), cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False)

    assert done.returncode == 0, done.stderr
    assert unwrapped(str(tmp_path / "pictures")) in unwrapped(done.stdout)


async def test_json_is_what_the_tool_answers(tmp_path: Path, settings: Settings) -> None:
    """One judgement, whoever asks; and no word beside it."""
    folder = plant(tmp_path / "pictures")
    done = check(folder, "--json", "--trigger-word", "TOKBOT", "--iterations", "150", LC_ALL="C", PYTHONUTF8="0")
    asked: dict[str, Any] = {"folder": str(folder), "trigger_word": "TOKBOT", "iterations": 150, "detail": "full"}
    async with Client(build_server(settings)) as client:
        facts = facts_of(await client.call_tool("check_dataset", asked))

    assert (done.returncode, done.stderr) == (2, "")
    assert json.loads(done.stdout) == facts


def test_every_finding_is_told_with_its_remedy(tmp_path: Path) -> None:
    """The words are those of the table of checks."""
    done = check(plant(tmp_path / "pictures"), "--trigger-word", "TOKBOT", COLUMNS="100")
    plain = " ".join(done.stdout.split())

    for words in (
        "Faults (1) ✗ damaged-image cut.jpg: it is cut short",
        "→ Export or copy it again.",
        "orphan.txt: a caption without an image of that name. → Give it the stem of an image.",
        "p1.jpg: its caption lacks the trigger word 'TOKBOT'",
        "p10.jpg, p2.jpg: they look almost the same.",
        "notes.md: not an image",
    ):
        assert words in plain
    assert "Changed in the copy that is sent" in plain


def test_a_terminal_shows_colours_and_is_kept_to_its_width(tmp_path: Path) -> None:
    """And leaves no escape of a file's name in between."""
    folder = attack(tmp_path / "pictures")
    status, got = check_in_terminal(50, folder, "--trigger-word", "TOKBOT")

    assert status == 2
    assert "\x1b[1;31m✗ not ready\x1b[0m" in got
    lines = COLOUR.sub("", got).split("\r\n")
    assert max(columns(line.rsplit("\r", 1)[-1]) for line in lines) <= 50
    assert "\x1b" not in "".join(lines)
    assert "\\x1b[31mred\\x07.jpg" in "".join(line.strip() for line in lines)


def test_colours_can_be_declined() -> None:
    """NO_COLOR is what people set who cannot read them."""
    _, got = check_in_terminal(80, EXAMPLES, NO_COLOR="1")
    _, dumb = check_in_terminal(80, EXAMPLES, TERM="dumb")

    assert "ready" in got
    assert "\x1b" not in got + dumb


def test_many_files_show_a_bar_on_a_terminal_alone(tmp_path: Path) -> None:
    """It belongs to the person who waits, not to the file that standard output leads to."""
    folder = fill(tmp_path / "pictures", count=14)
    page, text = tmp_path / "report.html", tmp_path / "report.txt"
    with text.open("wb") as file:
        status, got = check_in_terminal(70, folder, "--html", page, stdout=file.fileno())
    few = check_in_terminal(70, EXAMPLES)[1]
    piped = check(folder)

    assert status == 0
    assert re.search(r"Looking █+ 100%, 14 of 14 images", got)
    assert re.search(r"Drawing █+ 100%, 14 of 14 images", got)
    # The line is left as it was.
    assert got.endswith("\r")
    assert got.split("\r")[-2].strip() == ""
    assert max(map(len, got.split("\r"))) < 70
    assert "█" not in text.read_text(encoding="utf-8") + few + piped.stdout + piped.stderr
    assert "\x1b" not in text.read_text(encoding="utf-8")


def test_a_page_is_written_where_it_may_be(tmp_path: Path) -> None:
    """Over an earlier report, over nothing else, and through a link to where it leads."""
    folder = fill(tmp_path / "pictures")
    page, other, link = tmp_path / "report.html", tmp_path / "thesis.html", tmp_path / "link.html"
    other.write_text("<!doctype html>\n<p>mine</p>")
    link.symlink_to(page)

    first = check(folder, "--html", page)
    page.write_text(MARK + "-->older")
    again = check(folder, "--html", link)
    refused = check(folder, "--html", other)

    assert (first.returncode, again.returncode, refused.returncode) == (0, 0, 2)
    assert unwrapped(f"The page is in '{page}'") in unwrapped(first.stdout)
    assert page.read_text(encoding="utf-8").startswith(MARK + "-->\n<html")
    assert page.read_text(encoding="utf-8").endswith("</html>\n")
    assert link.is_symlink()
    assert refused.stdout == ""
    assert "is no report of bfl-mcp, so it is not written over" in refused.stderr
    assert other.read_text() == "<!doctype html>\n<p>mine</p>"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.html", "pictures", "report.html", "thesis.html"]


def test_a_page_may_lie_among_the_pictures(tmp_path: Path) -> None:
    """It is no image, so the dataset stays the same."""
    folder = fill(tmp_path / "pictures")
    first = json.loads(check(folder, "--json", "--html", folder / "report.html").stdout)
    second = json.loads(check(folder, "--json", "--html", folder / "report.html").stdout)

    assert first["archive_sha256"] == second["archive_sha256"]
    assert [(found["code"], found["files"]) for found in second["findings"]] == [("left-out", ["report.html"])]
    assert not list(folder.glob(".*"))


def test_ctrl_c_leaves_no_half_page(tmp_path: Path) -> None:
    """A person who has seen enough gets the prompt back, and the report of before is still there."""
    folder = fill(tmp_path / "pictures", count=60)
    page = tmp_path / "report.html"
    page.write_text(MARK + "-->older")
    ours, theirs = pty.openpty()
    # A shell that runs the tests in the background lets its children ignore Ctrl-C.
    listening = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from bfl_mcp.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", listening, "check", folder, "--html", page],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
    ) as process:
        os.close(theirs)
        got = b""
        while b"Drawing" not in got:
            got += os.read(ours, 65_536)
        process.send_signal(signal.SIGINT)
        try:
            while block := os.read(ours, 65_536):
                got += block
        except OSError:
            pass
        finally:
            os.close(ours)
        status = process.wait(timeout=30)

    assert status == 130
    assert got.decode().endswith("Stopped.\r\n")
    assert page.read_text() == MARK + "-->older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "report.html"]


def test_a_reader_may_stop_reading(tmp_path: Path) -> None:
    """`bfl-mcp check … | head` ends without a traceback."""
    folder = plant(tmp_path / "pictures")
    with subprocess.Popen(command(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        errors = process.stderr.read()
        process.wait(timeout=30)

    assert errors == b""


def test_help_tells_what_the_status_means() -> None:
    """Nobody should have to guess it for a script."""
    words = " ".join(check("--help").stdout.split())

    assert "Exit status: 0 ready, 1 ready with warnings, 2 not ready. A folder that cannot be read" in words


@pytest.mark.parametrize("width", [5, 12, 80])
def test_lines_are_as_wide_as_a_terminal_counts_them(width: int) -> None:
    """Chinese letters take two columns, accents none; a word that is too wide is broken, and nothing is lost."""
    text = "a picture of 機器人在桌子上面 with cafe\u0301s and averyveryverylongword in it"
    lines = wrap(text, width)

    assert max(map(columns, lines)) <= width
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
def test_a_report_that_cannot_be_printed_is_no_verdict(tmp_path: Path) -> None:
    """Whoever lets warnings pass must not take a crash for one."""
    folder = fill(tmp_path / "pictures")

    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "bfl_mcp", "check", str(folder)],
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )

    assert done.returncode == 2
    assert done.stderr == "The report could not be written: No space left on device.\n"


def test_a_page_needs_the_name_of_a_page(tmp_path: Path) -> None:
    """Beside the pictures any other name could pass for one, or for a caption."""
    folder = fill(tmp_path / "pictures")

    done = subprocess.run(
        [sys.executable, "-m", "bfl_mcp", "check", str(folder), "--html", str(folder / "p9.jpg")],
        check=False, capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 2
    assert "does not end with .html" in done.stderr
    assert not (folder / "p9.jpg").exists()
