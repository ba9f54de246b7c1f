"""`bfl-mcp check`: a folder judged for the person who typed it, in a terminal, as JSON, as a page."""

import json
import os
import signal
import sys
import traceback
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Final, get_args

from bfl_mcp.config import Settings, read_settings
from bfl_mcp.contract import MAX_ITERATIONS, MAX_TRIGGER_WORD_CHARACTERS, MIN_ITERATIONS, Mode
from bfl_mcp.dataset.access import ANYWHERE
from bfl_mcp.dataset.folder import Dataset, read_dataset
from bfl_mcp.errors import BFLError, ConfigError, quoted
from bfl_mcp.finetunes.checked import Verdict
from bfl_mcp.report.judged import Judged, Wanted, judge_folder
from bfl_mcp.report.target import find_target, write_report
from bfl_mcp.report.terminal import Bar, Terminal, tell

_STATUS: Final[dict[Verdict, int]] = {"ready": 0, "ready with warnings": 1, "not ready": 2}
_FAILED: Final = 2
_STOPPED: Final = 130


@dataclass(frozen=True, slots=True)
class Asked:
    """What was typed. `html` is where a page is to be written."""

    folder: str
    wanted: Wanted
    html: str | None = None
    as_json: bool = False


def run_check(asked: Asked) -> int:
    """Check a folder and print what was found. Returns the exit status.

    0, 1 and 2 are ready, ready with warnings and not ready. What cannot be read, written or understood is 2 as well,
    with a sentence on standard error.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A console may lack the signs used here; JSON is UTF-8 everywhere.
            stream.reconfigure(encoding="utf-8" if asked.as_json else None, errors="replace")
    # What is half written is removed then too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _check(asked)
    except BFLError as error:
        _say(str(error))
        return _FAILED
    except OSError as error:
        # Python would meet it once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # A reader that is gone has seen enough: `bfl-mcp check … | head`.
        if not isinstance(error, BrokenPipeError):
            _say(f"The report could not be written: {error.strerror or error}.")
        return _FAILED
    except Exception:  # noqa: BLE001 - whatever it is, it must not pass for a verdict
        traceback.print_exc()
        _say("This is a fault of bfl-mcp itself; the folder was not judged.")
        return _FAILED
    except KeyboardInterrupt:
        _say("Stopped.")
        return _STOPPED


def _check(asked: Asked) -> int:
    settings = read_settings()
    _check_wanted(asked.wanted)
    target = find_target(asked.html) if asked.html is not None else None
    with read_dataset(_whole(asked.folder), ANYWHERE) as dataset:
        judged = _judge(dataset, asked.wanted, settings)
        _print(judged, as_json=asked.as_json)
        if target is not None:
            size = _write_page(judged, target)
            if not asked.as_json:
                _print_line(f"The page is in {quoted(target)} ({size / 1e6:.1f} MB).")
    return _STATUS[judged.checked.verdict]


def _check_wanted(wanted: Wanted) -> None:
    modes = get_args(Mode)
    if wanted.mode is not None and wanted.mode not in modes:
        raise ConfigError(f"--mode {quoted(wanted.mode, 60)} is none of {', '.join(modes)}.")
    if wanted.trigger_word is not None and not 0 < len(wanted.trigger_word.strip()) <= MAX_TRIGGER_WORD_CHARACTERS:
        raise ConfigError(f"--trigger-word takes a word of 1 to {MAX_TRIGGER_WORD_CHARACTERS} characters.")
    if wanted.iterations is not None and not MIN_ITERATIONS <= wanted.iterations <= MAX_ITERATIONS:
        raise ConfigError(f"--iterations takes {MIN_ITERATIONS} to {MAX_ITERATIONS}, not {wanted.iterations}.")


def _whole(named: str) -> str:
    """The folder's whole path, from where the person is. What is no name at all stays as it is, and is refused."""
    return str(Path.cwd() / os.path.expanduser(named)) if named.strip() else named  # noqa: PTH111 - it never raises


def _judge(dataset: Dataset, wanted: Wanted, settings: Settings) -> Judged:
    with Bar(sys.stderr, "Looking", len(dataset.images)) as bar:
        return judge_folder(dataset, wanted, settings, bar.show)


def _write_page(judged: Judged, target: Path) -> int:
    from bfl_mcp.report.page import build_page
    from bfl_mcp.report.tiles import draw_tiles

    with Bar(sys.stderr, "Drawing", len(judged.dataset.images)) as bar:
        return write_report(target, build_page(judged, draw_tiles(judged.dataset, judged.seen), bar.show))


def _print(judged: Judged, *, as_json: bool) -> None:
    if as_json:
        facts = judged.checked.model_dump(mode="json", exclude_none=True)
        _print_line(json.dumps(facts, ensure_ascii=False, indent=2))
    else:
        _print_line("\n".join(tell(judged, Terminal.of(sys.stdout))))


def _print_line(text: str) -> None:
    sys.stdout.write(text + "\n")
    # A reader that is gone is met here, and not while Python exits.
    sys.stdout.flush()


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
