"""What must hold after a trial, whatever happened in it."""

import re
import shutil
import sqlite3
import stat
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.torture.provider import Provider, Start
from tests.torture.server import Call, Server

DENIES: Final = re.compile(r"\bnothing (more )?was (sent|started|uploaded|charged)|cannot have started", re.IGNORECASE)
"""Words that say that a call started nothing."""

DENIES_SENDING: Final = re.compile(r"\bnothing (more )?was (sent|uploaded)", re.IGNORECASE)

BLAMES_ANOTHER: Final = re.compile(r"another server process", re.IGNORECASE)

UNCLEAR: Final = re.compile(
    r"may (still )?be running|may have been started|is sending|being sent|unclear", re.IGNORECASE
)
"""Words that say that nobody knows yet."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the journal, as far as it is judged."""

    number: int
    label: str
    state: str
    finetune_id: str | None


@dataclass(frozen=True, slots=True)
class Journal:
    """The journal as a trial left it. `integrity` is SQLite's own verdict."""

    rows: tuple[Row, ...] = ()
    integrity: str = "ok"
    mode: int = 0o600


def read_journal(home: Path) -> Journal:
    """Read a copy, so that what a dead server left is found, and mended, by the next server and not by this."""
    path = home / "journal" / "starts.sqlite"
    if not path.exists():
        return Journal()
    with tempfile.TemporaryDirectory() as copied:
        for suffix in ("", "-wal"):
            source = path.with_name(path.name + suffix)
            if source.exists():
                shutil.copy(source, copied)
        try:
            with closing(sqlite3.connect(Path(copied) / path.name)) as database:
                [(integrity,), *_] = database.execute("PRAGMA integrity_check").fetchall()
                tables = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'starts'").fetchall()
                select = "SELECT number, substr(comment, 1, 1), state, finetune_id FROM starts ORDER BY number"
                rows = [Row(*row) for row in database.execute(select)] if tables else []
        except sqlite3.Error as error:
            return Journal(integrity=f"{type(error).__name__}: {error}")
    return Journal(tuple(rows), integrity, stat.S_IMODE(path.stat().st_mode))


def judge(provider: Provider, servers: Sequence[Server], home: Path, duplicates: Counter[str]) -> list[str]:
    """Every invariant that does not hold, as a sentence each. `duplicates` counts what was asked for on purpose."""
    calls = [call for server in servers for call in server.calls]
    starts = list(provider.starts)
    journal = read_journal(home)
    return [
        *_judge_doubles(starts, duplicates),
        *_judge_journal(starts, journal),
        *(violation for call in calls for violation in _judge_answer(call, starts, servers)),
        *(violation for start in starts for violation in _judge_denials(start, calls)),
        *(f"stdout: {server.name} wrote no JSON-RPC: {line}" for server in servers for line in server.faults),
        *(f"fake: {problem}" for problem in provider.problems),
    ]


def _judge_doubles(starts: list[Start], duplicates: Counter[str]) -> list[str]:
    """Labels stand for keys here: whatever has one label has the same pictures, captions and parameters."""
    violations = []
    counted = Counter(start.label for start in starts if start.counted)
    for label, count in counted.items():
        if count > 1 + duplicates[label]:
            violations.append(f"double: {count} starts of {label} reached the provider, {duplicates[label]} on purpose")
    keys = {label: {start.key for start in starts if start.label == label} for label in counted}
    changed = [label for label, found in keys.items() if len(found) > 1]
    return violations + [f"key: {label} was sent with different pictures or parameters" for label in changed]


def _judge_journal(starts: list[Start], journal: Journal) -> list[str]:
    violations = []
    if journal.integrity != "ok":
        violations.append(f"database: integrity_check says {journal.integrity}")
    if journal.mode != 0o600:
        violations.append(f"database: its mode is {journal.mode:o}")
    rows = {row.finetune_id: row for row in journal.rows if row.finetune_id}
    for start in starts:
        if start.counted and start.finetune_id not in rows:
            states = ", ".join(row.state for row in journal.rows if row.label == start.label) or "no row"
            violations.append(f"lost: {start.finetune_id} ({start.label}) is not in the journal ({states})")
        elif start.counted and rows[start.finetune_id].state != "started":
            violations.append(f"lost: {start.finetune_id} is in the journal as {rows[start.finetune_id].state}")
    known = {(start.finetune_id, start.label) for start in starts if start.counted}
    for row in journal.rows:
        if row.finetune_id and (row.finetune_id, row.label) not in known:
            violations.append(f"journal: it gives {row.finetune_id} to {row.label}, and no such start arrived")
        if row.state in ("sending", "unclear"):
            violations.append(f"journal: the row {row.number} of {row.label} is still {row.state}")
    return violations


def _judge_answer(call: Call, starts: list[Start], servers: Sequence[Server]) -> list[str]:
    if call.label == "":
        return []
    name = f"{call.server} call {call.number} ({call.label})"
    if (error := call.error) is not None:
        if BLAMES_ANOTHER.search(error) and not _others_lived(call, servers):
            return [f"claim: {name} blames another process, and there was none: {error}"]
        said = DENIES.search(error) or UNCLEAR.search(error)
        if said or call.given_up:
            return []
        return [f"silent: {name} failed and says neither that nothing was sent nor that it may be running: {error}"]
    content = call.structured
    if content is None:
        return []
    finetune_id, started = content.get("finetune_id"), content.get("started")
    if finetune_id is None:
        return [] if content.get("state") == "sending" else [f"claim: {name} succeeded without an id: {content}"]
    found = [start for start in starts if start.finetune_id == finetune_id]
    if not found or not found[0].counted or found[0].label != call.label:
        return [f"claim: {name} tells {finetune_id}, and no such start of {call.label} arrived"]
    if started and (reason := _why_not_started_by(call, found[0], servers)):
        return [f"claim: {name} says that it started {finetune_id}, but {reason}"]
    return []


def _others_lived(call: Call, servers: Sequence[Server]) -> bool:
    answered = call.answered or call.sent
    return any(
        server.name != call.server and server.began <= answered and (server.ended is None or server.ended >= call.sent)
        for server in servers
    )


def _why_not_started_by(call: Call, start: Start, servers: Sequence[Server]) -> str | None:
    """A call started what arrived after it was sent, or joined a call to the same process that did."""
    [server] = [server for server in servers if server.name == call.server]
    family = [other for other in server.calls if other.label == call.label and other.sent <= start.arrived]
    if not family:
        return "that arrived before anything was asked of this process"
    told = [
        other
        for each in servers
        for other in each.calls
        if (other.structured or {}).get("finetune_id") == start.finetune_id
        and other.answered is not None
        and other.answered < call.sent
    ]
    return f"{told[0].server} call {told[0].number} told it before" if told else None


def _judge_denials(start: Start, calls: list[Call]) -> list[str]:
    """A start needs a call that may have made it: not all that were under way when it arrived may deny it."""
    before = [call for call in calls if call.label == start.label and call.sent <= start.arrived]
    under_way = [c for c in before if c.answered is None or c.given_up or c.answered >= start.arrived]
    suspects = under_way or sorted(before, key=lambda call: call.sent)[-1:]
    denies = DENIES if start.counted else DENIES_SENDING
    words = [None if call.given_up else call.error for call in suspects]
    if words and all(text is not None and denies.search(text) for text in words):
        return [f"claim: the start {start.finetune_id} ({start.label}) arrived, and was denied: {words[0]}"]
    return []
