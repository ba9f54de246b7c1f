"""The journal: every start is written down before it is sent, and what came of it afterwards.

One SQLite file under `BFL_MCP_HOME`, shared by any number of server processes. A start is owned by a lock on a file
named after its key. The lock dies with its process: a row that says `sending` while its lock is free was left by a
process that is gone, and nobody knows what came of it. All calls block; run them in a thread.
"""

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from bfl_mcp.errors import APIError, ConfigError, quoted
from bfl_mcp.finetunes.spend import check_spend_limit

EntryState = Literal["sending", "started", "refused", "unclear", "released", "failed", "deleted"]
"""sending: on its way · started: has an id · refused: the provider said no · unclear: it may be running · released: it
was unclear, and never arrived · failed, deleted: it was started, and no longer stands in the way of another."""

_REPEAT_SECONDS: Final = 24 * 3600
"""A repeat within this time is taken for a mistake."""

_DAY_SECONDS: Final = 24 * 3600
_BUSY_SECONDS: Final = 10.0

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS starts (
    number INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    state TEXT NOT NULL,
    created REAL NOT NULL,
    changed REAL NOT NULL,
    provider TEXT NOT NULL,
    account TEXT NOT NULL,
    engine TEXT,
    folder TEXT NOT NULL,
    comment TEXT NOT NULL,
    images INTEGER NOT NULL,
    archive_sha256 TEXT NOT NULL,
    pictures_sha256 TEXT NOT NULL,
    parameters TEXT NOT NULL,
    price_usd REAL,
    known_before TEXT NOT NULL,
    finetune_id TEXT,
    practice INTEGER,
    problem TEXT
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS one_open_start ON starts (key) WHERE state = 'sending';
CREATE INDEX IF NOT EXISTS starts_by_time ON starts (created);
"""


class JournalError(ConfigError):
    """The journal cannot be read or written just now: the disk is full, or the file damaged."""

    def __init__(self, path: Path, reason: object) -> None:
        if "locked" in str(reason):
            advice = "It is being written to for unusually long: try again in a minute."
        elif "database" in str(reason):
            advice = (
                "The file is damaged. Look at the provider's dashboard for what runs; then move the file away, and "
                "what was started before is no longer known here."
            )
        else:
            advice = "Make room on the disk, or set BFL_MCP_HOME to a folder that this user may write."
        super().__init__(
            f"The journal {quoted(path)} cannot be used ({reason}). Nothing was sent or charged by this call: without "
            f"it a start could be sent twice. {advice}"
        )


class StartInFlightError(APIError):
    """Another living process is sending the same start."""


@dataclass(frozen=True, slots=True)
class Intent:
    """What is about to be sent. `provider` is its address, empty for the trainer inside this process.

    `account` stands for the API key (see `account_of`): only with the same one a lost answer can be looked for.
    """

    provider: str
    account: str
    engine: str | None
    folder: str
    comment: str
    images: int
    archive_sha256: str
    pictures_sha256: str
    parameters: Mapping[str, Any]
    price_usd: float | None

    @property
    def key(self) -> str:
        """What makes two starts the same: pictures, captions, provider, engine and parameters.

        `finetune_comment` is left out, because models reword it, and so is the account, because keys are renewed.
        """
        parameters = {name: value for name, value in self.parameters.items() if name != "finetune_comment"}
        identity = [self.archive_sha256, self.provider, self.engine, parameters]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Entry(Intent):
    """A start as the journal knows it. `created` and `changed`, when its state last did, are Unix times in seconds."""

    number: int
    state: EntryState
    created: float
    changed: float
    known_before: tuple[str, ...]
    finetune_id: str | None
    practice: bool | None
    problem: str | None


class Journal:
    """The journal of one `BFL_MCP_HOME`.

    Raises:
        JournalError: The folder cannot be written, the disk is full, or the file is no journal. Each method may.
    """

    def __init__(self, home: Path) -> None:
        self._folder = home / "journal"
        self._path = self._folder / "starts.sqlite"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # SQLite would make it readable for others.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
            self._make_ready()
        except OSError as error:
            raise JournalError(self._path, error.strerror or error) from None

    def _make_ready(self) -> None:
        """Make the tables, and the write-ahead log, for good.

        SQLite does not wait by itself where two switch to that log at the same time.
        """
        until = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                with closing(sqlite3.connect(self._path, timeout=_BUSY_SECONDS)) as database:
                    database.execute("PRAGMA journal_mode = WAL")
                    database.executescript(_SCHEMA)
                    return
            except sqlite3.Error as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise JournalError(self._path, error) from None
                time.sleep(0.02)

    @contextmanager
    def own(self, key: str, wait_seconds: float = 0.0) -> Iterator[None]:
        """Own all starts of a key for the block: no other process sends or settles one meanwhile.

        Raises:
            StartInFlightError: Another process owns it, and still does after `wait_seconds`.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self._folder / f"{key}.lock", mode=0o600, thread_local=False)
        try:
            lock.acquire(timeout=wait_seconds)
        except Timeout:
            raise StartInFlightError(self._in_flight(key)) from None
        except OSError as error:
            raise JournalError(self._path, error.strerror or error) from None
        try:
            yield
        finally:
            lock.release()

    def begin(self, intent: Intent, known_before: list[str], limit_usd: float | None = None) -> int:
        """Write down a start that is about to be sent. On disk for good when this returns.

        Raises:
            SpendRefusedError: It would bring the last 24 hours above the limit. Two processes cannot both slip below.
            StartInFlightError: The same is on its way already.
        """
        try:
            return self._insert(intent, known_before, limit_usd)
        except sqlite3.IntegrityError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_UNIQUE:
                raise JournalError(self._path, error) from None
            raise StartInFlightError(self._in_flight(intent.key)) from None

    def _insert(self, intent: Intent, known_before: list[str], limit_usd: float | None) -> int:
        now = time.time()
        with self._connect() as database, database:
            database.execute("BEGIN IMMEDIATE")
            check_spend_limit(intent.price_usd, _spent_usd(database), limit_usd)
            cursor = database.execute(
                "INSERT INTO starts (key, state, created, changed, provider, account, engine, folder, comment, images, "
                "archive_sha256, pictures_sha256, parameters, price_usd, known_before) "
                "VALUES (?, 'sending', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    intent.key,
                    now,
                    now,
                    intent.provider,
                    intent.account,
                    intent.engine,
                    intent.folder,
                    intent.comment,
                    intent.images,
                    intent.archive_sha256,
                    intent.pictures_sha256,
                    json.dumps(dict(intent.parameters), sort_keys=True),
                    intent.price_usd,
                    json.dumps(known_before),
                ),
            )
            return cursor.lastrowid or 0

    def end(
        self,
        number: int,
        state: EntryState,
        *,
        finetune_id: str | None = None,
        practice: bool | None = None,
        problem: str | None = None,
    ) -> None:
        """Write down what came of a start."""
        with self._connect() as database, database:
            database.execute(
                "UPDATE starts SET state = ?, changed = ?, finetune_id = coalesce(?, finetune_id), "
                "practice = coalesce(?, practice), problem = ? WHERE number = ?",
                (state, time.time(), finetune_id, practice, problem, number),
            )

    def adopt(self, entry: Entry, finetune_id: str, *, practice: bool | None) -> None:
        """Give an open start the finetune that was found for it, unless another start has got it meanwhile."""
        with self._connect() as database, database:
            database.execute(
                "UPDATE starts SET state = 'started', changed = ?, finetune_id = ?, practice = ?, problem = NULL "
                "WHERE number = ? AND NOT EXISTS (SELECT 1 FROM starts WHERE provider = ? AND finetune_id = ?)",
                (time.time(), finetune_id, practice, entry.number, entry.provider, finetune_id),
            )

    def repeats(self, key: str) -> list[Entry]:
        """The starts that stand in the way of another with this key, newest first."""
        since = time.time() - _REPEAT_SECONDS
        return self._select(
            "key = ? AND (state IN ('sending', 'unclear') OR (state = 'started' AND created > ?))", key, since
        )

    def others_of(self, intent: Intent) -> list[Entry]:
        """Earlier starts with the same pictures at the same provider, but other captions or parameters."""
        return self._select(
            "pictures_sha256 = ? AND provider = ? AND key != ? AND state IN ('started', 'unclear')",
            intent.pictures_sha256,
            intent.provider,
            intent.key,
        )

    def open_at(self, provider: str) -> list[Entry]:
        """The starts at a provider of which nobody knows yet what came."""
        return self._select("provider = ? AND state IN ('sending', 'unclear')", provider)

    def finetune_ids(self, provider: str) -> set[str]:
        """The finetunes at a provider that belong to a start."""
        found = self._select("provider = ? AND finetune_id IS NOT NULL", provider)
        return {entry.finetune_id for entry in found if entry.finetune_id is not None}

    def newest(self) -> Entry | None:
        """The newest start that was not refused."""
        found = self._select("state NOT IN ('refused', 'released')", limit=1)
        return found[0] if found else None

    def find(self, finetune_id: str) -> Entry | None:
        """The start that made a finetune."""
        found = self._select("finetune_id = ?", finetune_id, limit=1)
        return found[0] if found else None

    def entry(self, number: int) -> Entry:
        return self._select("number = ?", number)[0]

    def spent_usd(self) -> float:
        """What was spent in the last 24 hours, as far as prices are known. What is unclear counts: it may be billed."""
        with self._connect() as database:
            return _spent_usd(database)

    def _in_flight(self, key: str) -> str:
        rows = [entry for entry in self.repeats(key) if entry.state == "sending"]
        doing = f"is sending {quoted(rows[0].comment, 80)}" if rows else "is busy with the same"
        return (
            f"Another server process on this machine {doing} right now: the same images with the same parameters. "
            "Nothing more was sent. Ask again in a minute; it will be known then what came of it."
        )

    def _select(self, where: str, *values: Any, limit: int = -1) -> list[Entry]:
        with self._connect() as database:
            database.row_factory = sqlite3.Row
            rows = database.execute(
                f"SELECT * FROM starts WHERE {where} ORDER BY number DESC LIMIT ?",  # noqa: S608 - no value is in it
                (*values, limit),
            ).fetchall()
        return [_entry(row) for row in rows]

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path, timeout=_BUSY_SECONDS)) as database:
                database.execute("PRAGMA synchronous = FULL")
                yield database
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise JournalError(self._path, error) from None


def account_of(api_key: str | None) -> str:
    """What stands for an API key in the journal: enough to tell accounts apart, too little to guess a key by."""
    return "" if api_key is None else hashlib.sha256(api_key.encode()).hexdigest()[:8]


def _spent_usd(database: sqlite3.Connection) -> float:
    row = database.execute(
        "SELECT coalesce(sum(price_usd), 0) FROM starts "
        "WHERE created > ? AND state IN ('sending', 'unclear', 'started', 'failed', 'deleted')",
        (time.time() - _DAY_SECONDS,),
    ).fetchone()
    return float(row[0])


def _entry(row: sqlite3.Row) -> Entry:
    facts = {name: value for name, value in dict(row).items() if name != "key"}
    facts["parameters"] = json.loads(facts["parameters"])
    facts["known_before"] = tuple(json.loads(facts["known_before"]))
    facts["practice"] = None if facts["practice"] is None else bool(facts["practice"])
    return Entry(**facts)
