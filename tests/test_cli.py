"""The command line: what a person types, and what they read."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bfl_mcp import __version__
from tests.pictures import fill_folder


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "bfl_mcp", *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_version_and_help_answer_at_once() -> None:
    """The first two things anyone tries."""
    assert run("--version").stdout == f"bfl-mcp {__version__}\n"
    assert "demo" in run("--help").stdout


def test_an_unknown_command_is_refused() -> None:
    """A typo must not start a server that waits for ever."""
    done = run("dmeo")

    assert done.returncode == 2
    assert "dmeo" in done.stderr


def test_a_bad_setting_ends_the_start_with_a_sentence() -> None:
    """Hosts show standard error; a traceback would help nobody."""
    done = run(BFL_API_URL="http://gpu.example", BFL_MCP_MAX_MEGAPIXELS="-1")

    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "The configuration cannot be used:"
    assert len(done.stderr.splitlines()) == 3
    assert done.stdout == ""


def test_a_closed_input_ends_the_server_quietly(home: Path) -> None:
    """A host that goes away closes the pipe."""
    done = run(BFL_MCP_HOME=str(home))

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_demo_ends_ready(tmp_path: Path) -> None:
    """The command of the README: a whole conversation, with nothing inherited from the person's settings."""
    folder = fill_folder(tmp_path / "pictures")

    done = run("demo", str(folder), BFL_API_KEY="test-key", BFL_API_URL="http://127.0.0.1:1")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "is ready" in done.stdout
    assert "practice" in done.stdout
    assert done.stdout.count("▶ ") == 3


def test_the_demo_fails_where_the_conversation_does(tmp_path: Path) -> None:
    """Exit status 0 is for a finetune that became ready."""
    done = run("demo", str(tmp_path))

    assert done.returncode == 1
    assert "holds no image" in done.stdout


@pytest.mark.parametrize("module", ["bfl_mcp.cli", "bfl_mcp.server", "bfl_mcp.trainer.worker"])
def test_heavy_modules_are_loaded_where_they_are_first_used(module: str) -> None:
    """The tool list must appear as fast as the SDK alone could show it."""
    heavy = {"PIL", "fastapi", "httpx", "torch", "ray"}

    assert not heavy & loaded_by(module)


@pytest.mark.parametrize("module", ["bfl_mcp.cli", "bfl_mcp.server"])
def test_of_the_dataset_desk_only_the_words_are_loaded_at_first(module: str) -> None:
    """What decodes, packs and judges waits for the first folder: it would cost each start of a host 12 ms."""
    assert {name for name in loaded_by(module) if name.startswith("bfl_mcp.dataset.")} <= {
        "bfl_mcp.dataset.captioned",
        "bfl_mcp.dataset.findings",
        "bfl_mcp.dataset.undo",
    }


def loaded_by(module: str) -> set[str]:
    """The modules that an interpreter has after importing this one."""
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    return set(done.stdout.split())


def test_the_demo_runs_no_code_of_the_current_folder(tmp_path: Path) -> None:
    """People try a demo in their downloads folder."""
    folder = fill_folder(tmp_path / "pictures")
    for name in ("anyio.py", "bfl_mcp.py", "json.py"):
        (tmp_path / name).write_text("open('PWNED', 'w')")
    script = Path(sys.executable).with_name("bfl-mcp")

    done = subprocess.run([script, "demo", folder], cwd=tmp_path, capture_output=True, timeout=50, check=False)

    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "PWNED").exists()


def test_a_reader_of_the_demo_may_stop_reading(tmp_path: Path) -> None:
    """`bfl-mcp demo | head` ends without a traceback."""
    folder = fill_folder(tmp_path / "pictures")
    command = [sys.executable, "-m", "bfl_mcp", "demo", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as demo:
        assert demo.stdout is not None
        demo.stdout.readline()
        demo.stdout.close()
        assert demo.stderr is not None
        errors = demo.stderr.read()
        status = demo.wait(timeout=30)

    assert (status, errors) == (1, b"")


def test_ctrl_c_ends_the_demo_with_a_word(tmp_path: Path) -> None:
    """A person who has seen enough gets the prompt back, not a page of Python."""
    folder = fill_folder(tmp_path / "pictures")
    # A shell that runs the tests in the background lets its children ignore Ctrl-C.
    listening = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from bfl_mcp.cli import main; sys.exit(main(['demo', sys.argv[1]]))"
    )
    command = [sys.executable, "-c", listening, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        while "get_finetune_details\n" not in (line := demo.stdout.readline()):
            assert line
        demo.send_signal(signal.SIGINT)
        out, errors = demo.communicate(timeout=30)

    assert demo.returncode == 130
    assert out.endswith("Stopped.\n")
    assert errors == ""
