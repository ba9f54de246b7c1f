"""The journal: what is written before a start, and what is told of it afterwards."""

import multiprocessing
import os
import sqlite3
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bfl_mcp.errors import ConfigError
from bfl_mcp.finetunes.journal import Intent, Journal, JournalError, StartInFlightError
from bfl_mcp.finetunes.spend import SpendRefusedError


def intent(**changes: Any) -> Intent:
    facts: dict[str, Any] = {
        "provider": "http://127.0.0.1:9",
        "account": "",
        "engine": None,
        "folder": "/pictures",
        "comment": "cats",
        "images": 3,
        "archive_sha256": "a" * 64,
        "pictures_sha256": "b" * 64,
        "parameters": {"finetune_comment": "cats", "mode": "style", "iterations": 300},
        "price_usd": 4.0,
    }
    return Intent(**{**facts, **changes})


@pytest.fixture
def journal(home: Path) -> Journal:
    return Journal(home)


def test_a_comment_in_other_words_is_the_same_start() -> None:
    """Models reword names between two calls."""
    reworded = {"finetune_comment": "my cats", "iterations": 300, "mode": "style"}

    assert intent(parameters=reworded, comment="my cats", folder="/elsewhere").key == intent().key


@pytest.mark.parametrize(
    "change",
    [
        {"archive_sha256": "c" * 64},
        {"provider": "https://api.bfl.ai"},
        {"engine": "practice"},
        {"parameters": {"finetune_comment": "cats", "mode": "style", "iterations": 301}},
    ],
)
def test_other_pictures_providers_or_parameters_are_another_start(change: dict[str, Any]) -> None:
    """Only what is really the same is held back."""
    assert intent(**change).key != intent().key


def test_a_row_is_on_disk_before_anything_is_sent(journal: Journal, home: Path) -> None:
    """Another process reads it at once, with all that is needed to find the finetune again."""
    number = journal.begin(intent(), ["old-id"])

    entry = Journal(home).entry(number)

    assert (entry.state, entry.known_before, entry.price_usd) == ("sending", ("old-id",), 4.0)
    assert (entry.key, entry.folder, entry.comment, entry.images) == (intent().key, "/pictures", "cats", 3)
    assert time.time() - 5 < entry.created <= time.time()


def test_the_database_survives_power_cuts_and_strangers(journal: Journal, home: Path) -> None:
    """WAL with full synchronisation, readable for its owner only."""
    journal.begin(intent(), [])
    folder = home / "journal"

    with journal._connect() as database:
        modes = [database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]

    assert modes == ["wal", 2]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with journal.own("k"):
        assert [stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()] == [0o600] * len(list(folder.iterdir()))


@pytest.mark.parametrize(
    ("state", "blocks"),
    [
        ("sending", True), ("unclear", True), ("started", True),
        ("refused", False), ("released", False), ("failed", False), ("deleted", False),
    ],
)  # fmt: skip
def test_what_blocks_a_repeat(journal: Journal, state: Any, blocks: bool) -> None:
    """What runs, or may run, blocks; what was refused, failed, deleted or never arrived does not."""
    number = journal.begin(intent(), [])
    journal.end(number, state, finetune_id="x" if state == "started" else None)

    assert bool(journal.repeats(intent().key)) is blocks


def test_a_start_of_yesterday_does_not_block(journal: Journal, home: Path) -> None:
    """After 24 hours a repeat is meant. What is still unclear blocks for ever."""
    for state in ("started", "unclear"):
        journal.end(journal.begin(intent(archive_sha256=state), []), state)
    with sqlite3.connect(home / "journal" / "starts.sqlite") as database:
        database.execute("UPDATE starts SET created = created - 86401")
    database.close()

    assert not journal.repeats(intent(archive_sha256="started").key)
    assert journal.repeats(intent(archive_sha256="unclear").key)


def test_two_rows_of_one_key_cannot_be_on_their_way(journal: Journal) -> None:
    """The last line of defence is the database itself."""
    journal.begin(intent(), [])

    with pytest.raises(StartInFlightError, match="is sending 'cats' right now"):
        journal.begin(intent(), [])


def _own_and_die(home: Path, key: str, ready: Any) -> None:
    with Journal(home).own(key):
        ready.set()
        time.sleep(60)


def test_a_lock_dies_with_its_process(journal: Journal, home: Path) -> None:
    """Another living process is respected, a dead one is not waited for."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_own_and_die, args=(home, "k", ready))
    process.start()
    assert ready.wait(20)

    with pytest.raises(StartInFlightError, match="Another server process"), journal.own("k"):
        pass
    process.kill()
    process.join()

    with journal.own("k"):
        pass


def test_the_limit_holds_in_the_moment_of_writing(journal: Journal) -> None:
    """Two processes that both looked before either wrote must not both slip below it."""
    journal.begin(intent(), [], 6.0)

    with pytest.raises(SpendRefusedError, match="BFL_MCP_SPEND_LIMIT_USD"):
        journal.begin(intent(archive_sha256="another"), [], 6.0)

    assert journal.spent_usd() == 4.0


def test_what_was_spent_counts_for_a_day(journal: Journal, home: Path) -> None:
    """What is unclear may be billed, so it counts; what was refused or never arrived does not."""
    states = ("sending", "unclear", "started", "failed", "deleted", "refused", "released")
    for state in states:
        number = journal.begin(intent(archive_sha256=state), [])
        journal.end(number, state)  # type: ignore[arg-type]
    journal.begin(intent(archive_sha256="unknown price", price_usd=None), [])

    assert journal.spent_usd() == 5 * 4.0
    with sqlite3.connect(home / "journal" / "starts.sqlite") as database:
        database.execute("UPDATE starts SET created = created - 86401 WHERE number = 1")
    database.close()
    assert journal.spent_usd() == 4 * 4.0


def test_the_newest_start_is_one_that_was_not_refused(journal: Journal) -> None:
    """A person who asks how it goes means what runs."""
    first = journal.begin(intent(), [])
    journal.end(first, "started", finetune_id="x")
    journal.end(journal.begin(intent(archive_sha256="other"), []), "refused")

    newest = journal.newest()

    assert newest is not None
    assert newest.finetune_id == "x"


def test_one_finetune_belongs_to_one_start(journal: Journal) -> None:
    """Another start got the answer in the moment between looking and adopting."""
    lost, answered = (journal.begin(intent(archive_sha256=name), []) for name in ("lost", "answered"))
    journal.end(lost, "unclear")
    journal.end(answered, "started", finetune_id="x")

    journal.adopt(journal.entry(lost), "x", practice=None)
    blocked = journal.entry(lost).state
    journal.adopt(journal.entry(lost), "y", practice=None)

    assert blocked == "unclear"
    assert (journal.entry(lost).state, journal.entry(lost).finetune_id) == ("started", "y")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A start that is not written down could be sent twice, so none is sent."""
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(ConfigError, match=r"Nothing was sent.*BFL_MCP_HOME"):
        Journal(tmp_path / "file")


def test_a_damaged_file_is_not_overwritten(home: Path) -> None:
    """It may be the only trace of what was paid for."""
    path = home / "journal" / "starts.sqlite"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"this is no database" * 100)

    with pytest.raises(ConfigError, match=r"damaged.*provider's dashboard.*move the file away"):
        Journal(home)

    assert path.read_bytes().startswith(b"this is no database")


def test_a_journal_that_is_busy_is_not_called_damaged(
    journal: Journal, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moving it away, as for a damaged one, would open the door to second starts."""
    monkeypatch.setattr("bfl_mcp.finetunes.journal._BUSY_SECONDS", 0.1)
    with sqlite3.connect(home / "journal" / "starts.sqlite", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(JournalError, match="try again in a minute"):
            journal.begin(intent(), [])
        other.execute("ROLLBACK")
    other.close()


def test_a_journal_waits_for_another_that_is_made_ready(home: Path) -> None:
    """Two calls are the first of their server, and SQLite does not wait where both switch to the write-ahead log."""
    (home / "journal").mkdir(parents=True)
    path = home / "journal" / "starts.sqlite"
    taken, let_go = threading.Event(), threading.Event()

    def write_for_a_while() -> None:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("CREATE TABLE other (x)")
        other.execute("BEGIN IMMEDIATE")
        other.execute("INSERT INTO other VALUES (1)")
        taken.set()
        let_go.wait(10)
        other.execute("COMMIT")
        other.close()

    writer = threading.Thread(target=write_for_a_while)
    writer.start()
    assert taken.wait(10)
    threading.Timer(0.3, let_go.set).start()
    journal = Journal(home)
    writer.join()

    assert journal.newest() is None


def test_many_processes_can_write_at_once(home: Path) -> None:
    """Each chat window has a server of its own."""
    Journal(home)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write_ten, args=(home, str(number))) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)

    assert [worker.exitcode for worker in workers] == [os.EX_OK] * 3
    assert len(Journal(home).finetune_ids("http://127.0.0.1:9")) == 30


def _write_ten(home: Path, name: str) -> None:
    journal = Journal(home)
    for turn in range(10):
        number = journal.begin(intent(archive_sha256=f"{name}-{turn}"), [])
        journal.end(number, "started", finetune_id=f"{name}-{turn}")
