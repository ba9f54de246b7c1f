"""Started once: repeats, lost answers, dead processes, and what the reader is told of each."""

import sqlite3
import threading
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from mcp import Client

from bfl_mcp.config import Settings
from bfl_mcp.finetunes.journal import Entry, Journal
from bfl_mcp.server import build_server
from tests.fakes.bfl import KEY, Answer, FakeBFL, Request
from tests.pictures import fill_folder
from tests.server.conftest import LOOPBACK
from tests.server.test_tools import facts_of, refused

REQUEST = {"finetune_comment": "cats", "mode": "style"}


@pytest.fixture
def bfl() -> FakeBFL:
    return FakeBFL()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fill_folder(tmp_path / "pictures")


@pytest.fixture
def asked(folder: Path) -> dict[str, Any]:
    return {**REQUEST, "folder": str(folder)}


def connect(
    home: Path, bfl: FakeBFL | None, url: str = LOOPBACK, settle: float = 120
) -> AbstractAsyncContextManager[Client]:
    """A server of its own over a shared home, before the fake or the trainer inside."""
    facts: dict[str, Any] = {"BFL_MCP_HOME": home, "BFL_MCP_SETTLE_SECONDS": settle}
    if bfl is None:
        return Client(build_server(Settings.model_validate({**facts, "BFL_TRAINER_PRACTICE_SECONDS": 0.2})))
    settings = Settings.model_validate({**facts, "BFL_API_KEY": KEY, "BFL_API_URL": url})
    return Client(build_server(settings, bfl.transport()))


def rows(home: Path) -> list[Entry]:
    return sorted(Journal(home)._select("1"), key=lambda entry: entry.number)


class Slow:
    """Holds the answer to a start back until it is let go; the start itself has been made by then."""

    def __init__(self, bfl: FakeBFL) -> None:
        self.arrived = threading.Event()
        self.let_go = anyio.Event()
        original = bfl.transport
        slow = self

        def transport() -> httpx.MockTransport:
            inner = original()

            async def handle(request: httpx.Request) -> httpx.Response:
                response = await inner.handle_async_request(request)
                if request.url.path == "/v1/finetune":
                    slow.arrived.set()
                    await slow.let_go.wait()
                return response

            return httpx.MockTransport(handle)

        bfl.transport = transport  # type: ignore[method-assign]

    async def wait_for_arrival(self) -> None:
        with anyio.fail_after(10):
            await anyio.to_thread.run_sync(self.arrived.wait)


# --- before the start -------------------------------------------------------------------------------------------------


async def test_the_row_is_written_before_the_start_is_sent(bfl: FakeBFL, home: Path, asked: dict[str, Any]) -> None:
    """A process that is killed in mid-send must leave its intent behind."""
    seen: list[str] = []
    start = bfl._start

    def look(request: Request) -> Answer:
        seen.extend(entry.state for entry in rows(home))
        return start(request)

    bfl._start = look  # type: ignore[method-assign]
    async with connect(home, bfl) as client:
        facts_of(await client.call_tool("create_finetune", asked))

    assert seen == ["sending"]
    assert [entry.state for entry in rows(home)] == ["started"]


async def test_a_list_that_cannot_be_read_stops_the_start(bfl: FakeBFL, home: Path, asked: dict[str, Any]) -> None:
    """Without it nobody could tell later what came of a lost answer."""
    bfl.fail_read("/v1/my_finetunes", Answer(503))
    async with connect(home, bfl) as client:
        words = await refused(client, "create_finetune", asked)

    assert "Nothing was sent" in words
    assert not bfl.starts()


async def test_a_journal_that_cannot_be_written_stops_the_start(
    bfl: FakeBFL, home: Path, asked: dict[str, Any]
) -> None:
    """What is not written down could be sent twice."""
    Journal(home)
    with sqlite3.connect(home / "journal" / "starts.sqlite") as database:
        database.execute("CREATE TRIGGER full BEFORE INSERT ON starts BEGIN SELECT raise(ABORT, 'disk is full'); END")
    database.close()
    async with connect(home, bfl) as client:
        words = await refused(client, "create_finetune", asked)

    assert "Nothing was sent" in words
    assert not bfl.starts()


# --- repeats ----------------------------------------------------------------------------------------------------------


async def test_a_repeat_is_not_sent_and_succeeds_with_what_exists(
    bfl: FakeBFL, home: Path, asked: dict[str, Any]
) -> None:
    """An agent that calls twice, with the name in other words, after a restart, gets the finetune it has."""
    async with connect(home, bfl) as client:
        first = facts_of(await client.call_tool("create_finetune", asked))
    bfl.results[first["finetune_id"]]["status"] = "Ready"
    async with connect(home, bfl) as client:
        second = facts_of(await client.call_tool("create_finetune", {**asked, "finetune_comment": "my cats"}))

    assert len(bfl.starts()) == 1
    assert (first["started"], first["state"]) == (True, "queued")
    assert (second["started"], second["state"]) == (False, "ready")
    assert second["finetune_id"] == first["finetune_id"]
    assert "Nothing was sent" in second["summary"]
    assert "allow_duplicate" in second["next_step"]


async def test_a_duplicate_that_is_wanted_is_started(bfl: FakeBFL, home: Path, asked: dict[str, Any]) -> None:
    """The person decides."""
    async with connect(home, bfl) as client:
        first = facts_of(await client.call_tool("create_finetune", asked))
        second = facts_of(await client.call_tool("create_finetune", {**asked, "allow_duplicate": True}))

    assert len(bfl.starts()) == 2
    assert second["started"] is True
    assert second["finetune_id"] != first["finetune_id"]


@pytest.mark.parametrize("end", ["failed", "deleted", "refused"])
async def test_what_came_to_nothing_does_not_block(bfl: FakeBFL, home: Path, asked: dict[str, Any], end: str) -> None:
    """Trying again after a failure is what anyone would do."""
    if end == "refused":
        bfl.say_next("POST", "/v1/finetune", Answer(402, {"detail": "Insufficient credits"}))
    async with connect(home, bfl, settle=0) as client:
        first = await client.call_tool("create_finetune", asked)
        if end == "failed":
            bfl.results[facts_of(first)["finetune_id"]]["status"] = "Error"
        elif end == "deleted":
            bfl.finetunes.clear()
            bfl.results.clear()
        second = facts_of(await client.call_tool("create_finetune", asked))

    assert second["started"] is True
    assert [entry.state for entry in rows(home)] == [end, "started"]


async def test_a_fresh_finetune_that_is_not_known_yet_is_not_taken_for_deleted(
    bfl: FakeBFL, home: Path, asked: dict[str, Any]
) -> None:
    """The provider's servers may lag behind each other for a moment; a second start would be paid."""
    async with connect(home, bfl) as client:
        first = facts_of(await client.call_tool("create_finetune", asked))
        for path in ("/v1/finetune_details", "/v1/get_result"):
            bfl.say_next("GET", path, Answer(404, {"detail": "Not Found"}))
        second = facts_of(await client.call_tool("create_finetune", asked))

    assert (second["started"], second["state"]) == (False, "unknown")
    assert second["finetune_id"] == first["finetune_id"]
    assert len(bfl.starts()) == 1


async def test_the_same_pictures_with_other_words_start_and_name_the_other(
    bfl: FakeBFL, home: Path, folder: Path, asked: dict[str, Any]
) -> None:
    """It may be meant, and it may be a mistake: the reader is told."""
    async with connect(home, bfl) as client:
        first = facts_of(await client.call_tool("create_finetune", asked))
        (folder / "a.txt").write_text("a quite different caption")
        second = facts_of(await client.call_tool("create_finetune", {**asked, "finetune_comment": "second"}))

    assert second["started"] is True
    assert first["finetune_id"] in second["summary"]
    assert "'cats'" in second["summary"]


async def test_two_calls_at_once_are_one_start(bfl: FakeBFL, home: Path, asked: dict[str, Any]) -> None:
    """The second joins the first and gets its outcome."""
    slow = Slow(bfl)
    answers: list[dict[str, Any]] = []
    async with connect(home, bfl) as client, anyio.create_task_group() as both:

        async def ask() -> None:
            answers.append(facts_of(await client.call_tool("create_finetune", asked)))

        both.start_soon(ask)
        await slow.wait_for_arrival()
        both.start_soon(ask)
        await anyio.sleep(0.1)
        slow.let_go.set()

    assert len(bfl.starts()) == 1
    assert answers[0]["finetune_id"] == answers[1]["finetune_id"]


async def test_the_same_start_in_other_words_waits_for_its_turn(
    bfl: FakeBFL, home: Path, asked: dict[str, Any]
) -> None:
    """The folder is spelled differently; the pictures are the same, so it is the same start."""
    slow = Slow(bfl)
    answers: list[dict[str, Any]] = []
    async with connect(home, bfl) as client, anyio.create_task_group() as both:

        async def ask(folder: str) -> None:
            answers.append(facts_of(await client.call_tool("create_finetune", {**asked, "folder": folder})))

        both.start_soon(ask, asked["folder"])
        await slow.wait_for_arrival()
        both.start_soon(ask, asked["folder"] + "/")
        await anyio.sleep(0.3)
        slow.let_go.set()

    assert len(bfl.starts()) == 1
    assert [answer["started"] for answer in answers] == [True, False]


async def test_another_living_process_is_named_and_nothing_is_sent(
    bfl: FakeBFL, home: Path, asked: dict[str, Any]
) -> None:
    """Two chat windows asked for the same at the same time."""
    slow = Slow(bfl)
    async with connect(home, bfl) as client, connect(home, bfl) as other, anyio.create_task_group() as tasks:
        tasks.start_soon(client.call_tool, "create_finetune", asked)
        await slow.wait_for_arrival()
        words = await refused(other, "create_finetune", asked)
        slow.let_go.set()

    assert "Another server process" in words
    assert "'cats'" in words
    assert len(bfl.starts()) == 1


# --- lost answers -----------------------------------------------------------------------------------------------------


class LosesAnswers(FakeBFL):
    """Makes every start, and answers the first ones with a failure."""

    def __init__(self, lost: int = 1) -> None:
        super().__init__()
        self.lost = lost

    def _start(self, request: Request) -> Answer:
        answer = super()._start(request)
        self.lost -= 1
        return Answer(502, b"bad gateway") if self.lost >= 0 else answer


async def test_a_lost_answer_is_settled_within_the_call(home: Path, asked: dict[str, Any]) -> None:
    """The provider's list shows one new finetune with the parameters that were sent: that is it."""
    bfl = LosesAnswers()
    async with connect(home, bfl) as client:
        facts = facts_of(await client.call_tool("create_finetune", asked))

    assert facts["started"] is True
    assert [facts["finetune_id"]] == list(bfl.finetunes)
    assert [entry.state for entry in rows(home)] == ["started"]


async def test_a_lost_answer_is_settled_by_the_next_call(home: Path, asked: dict[str, Any]) -> None:
    """The list may fail at first too; until it is read, a repeat is blocked."""
    bfl = LosesAnswers()
    async with connect(home, bfl) as client:
        bfl.say_next("GET", "/v1/my_finetunes", Answer(200, {"finetunes": []}))
        bfl.fail_read("/v1/my_finetunes", Answer(503), times=2)
        lost = await refused(client, "create_finetune", asked)
        blocked = await refused(client, "create_finetune", asked)
        settled = facts_of(await client.call_tool("create_finetune", asked))

    assert "may be running" in lost
    assert "Nothing was sent" in blocked
    assert (settled["started"], settled["finetune_id"]) == (False, next(iter(bfl.finetunes)))
    assert len(bfl.starts()) == 1


async def test_a_start_that_never_arrived_is_released_after_a_while(
    bfl: FakeBFL, home: Path, asked: dict[str, Any]
) -> None:
    """A failing gateway in between: no trace at the provider, so it may be sent again, but not at once."""
    bfl.say_next("POST", "/v1/finetune", Answer(503))
    async with connect(home, bfl) as client:
        lost = await refused(client, "create_finetune", asked)
        blocked = await refused(client, "create_finetune", asked)
    async with connect(home, bfl, settle=0) as client:
        facts = facts_of(await client.call_tool("create_finetune", asked))

    assert "may be running" in lost
    assert "Not sent again" in blocked
    assert facts["started"] is True
    assert [entry.state for entry in rows(home)] == ["released", "started"]


async def test_two_finetunes_that_fit_leave_it_unclear_and_are_named(home: Path, asked: dict[str, Any]) -> None:
    """Somebody else started the same at the same time: guessing could claim the wrong one."""
    bfl = LosesAnswers()
    start = bfl._start

    def start_two(request: Request) -> Answer:
        start(request)
        return start(request) if bfl.lost >= 0 else Answer(502)

    bfl._start = start_two  # type: ignore[method-assign]
    bfl.lost = 2
    async with connect(home, bfl) as client:
        await refused(client, "create_finetune", asked)
        words = await refused(client, "create_finetune", asked)

    assert len(bfl.finetunes) == 2
    assert all(finetune_id in words for finetune_id in bfl.finetunes)
    assert [entry.state for entry in rows(home)] == ["unclear"]


async def test_the_nearer_in_time_breaks_a_tie(home: Path, asked: dict[str, Any]) -> None:
    """An older finetune of the same parameters that only now shows in the list is not ours."""
    bfl = LosesAnswers()
    start = bfl._start

    def start_and_show_an_old_one(request: Request) -> Answer:
        answer = start(request)
        [new] = bfl.finetunes.values()
        new["timestamp"] = datetime.now(UTC).isoformat()
        bfl.add_finetune(**{**new, "timestamp": "2025-02-01T10:00:00+00:00"})
        return answer

    bfl._start = start_and_show_an_old_one  # type: ignore[method-assign]
    async with connect(home, bfl) as client:
        facts = facts_of(await client.call_tool("create_finetune", asked))

    assert facts["finetune_id"] == next(iter(bfl.finetunes))


async def test_a_row_left_by_a_dead_process_is_adopted(bfl: FakeBFL, home: Path, asked: dict[str, Any]) -> None:
    """kill -9 between the start and its answer: the row says sending, nobody holds its lock."""
    async with connect(home, bfl) as client:
        facts_of(await client.call_tool("create_finetune", asked))
    with sqlite3.connect(home / "journal" / "starts.sqlite") as database:
        database.execute("UPDATE starts SET state = 'sending', finetune_id = NULL")
    database.close()
    async with connect(home, bfl) as client:
        facts = facts_of(await client.call_tool("create_finetune", asked))

    assert (facts["started"], facts["finetune_id"]) == (False, next(iter(bfl.finetunes)))
    assert len(bfl.starts()) == 1


async def test_a_finetune_of_another_start_is_not_adopted(
    bfl: FakeBFL, home: Path, tmp_path: Path, asked: dict[str, Any]
) -> None:
    """Other pictures under the same name: that id belongs to its own start, as the journal knows."""
    others = fill_folder(tmp_path / "others", count=2)
    bfl.say_next("POST", "/v1/finetune", Answer(503))
    async with connect(home, bfl) as client:
        await refused(client, "create_finetune", asked)
        facts_of(await client.call_tool("create_finetune", {**asked, "folder": str(others)}))
        await refused(client, "create_finetune", asked)

    assert [entry.state for entry in rows(home)] == ["unclear", "started"]


async def test_a_stranger_s_finetune_is_not_adopted(bfl: FakeBFL, home: Path, asked: dict[str, Any]) -> None:
    """A colleague with the same key started something else meanwhile: its parameters are not ours."""
    bfl.say_next("POST", "/v1/finetune", Answer(503))
    async with connect(home, bfl) as client:
        bfl.say_next("GET", "/v1/my_finetunes", Answer(200, {"finetunes": []}))
        bfl.add_finetune(iterations=777)
        await refused(client, "create_finetune", asked)
        await refused(client, "create_finetune", asked)

    assert [entry.state for entry in rows(home)] == ["unclear"]


class Forgetful(LosesAnswers):
    """Loses answers, and repeats only some of what it was sent in the details it gives."""

    def __init__(self, *told: str) -> None:
        super().__init__()
        self.told = told

    def _start(self, request: Request) -> Answer:
        answer = super()._start(request)
        for details in self.finetunes.values():
            for name in details.keys() - set(self.told):
                del details[name]
        return answer


async def test_two_lost_starts_that_look_alike_claim_nothing(home: Path, tmp_path: Path, asked: dict[str, Any]) -> None:
    """A provider that does not repeat names: its one finetune may be either's, and guessing could claim the wrong."""
    bfl = Forgetful("mode", "iterations", "trigger_word")
    others = {**asked, "folder": str(fill_folder(tmp_path / "others", count=2)), "finetune_comment": "dogs"}
    bfl.say_next("POST", "/v1/finetune", Answer(503))
    async with connect(home, bfl, settle=0.2) as client:
        await refused(client, "create_finetune", asked)
        await refused(client, "create_finetune", others)
        await anyio.sleep(0.3)
        words = [await refused(client, "create_finetune", arguments) for arguments in (asked, others)]

    [finetune_id] = bfl.finetunes
    assert all(finetune_id in text for text in words)
    assert [entry.state for entry in rows(home)] == ["unclear", "unclear"]


@pytest.mark.parametrize("answer", [Answer(404, {"detail": "Not Found"}), Answer(500), None], ids=["404", "500", "{}"])
async def test_a_new_finetune_that_tells_nothing_yet_keeps_it_unclear(
    home: Path, asked: dict[str, Any], answer: Answer | None
) -> None:
    """It is listed and may be the one: releasing the start would pay twice. Once it tells, it is adopted."""
    bfl = Forgetful()
    known: dict[str, Any] = {}
    async with connect(home, bfl, settle=0) as client:
        if answer is not None:
            bfl.say_next("GET", "/v1/finetune_details", *[answer] * (8 if answer.status == 500 else 2))
        lost = await refused(client, "create_finetune", asked)
        blocked = await refused(client, "create_finetune", asked)
        [(finetune_id, details)] = bfl.finetunes.items()
        details.update(known or {"mode": "style"})
        settled = facts_of(await client.call_tool("create_finetune", asked))

    assert "may be running" in lost
    assert finetune_id in blocked
    assert (settled["started"], settled["finetune_id"]) == (False, finetune_id)
    assert len(bfl.starts()) == 1


async def test_the_details_of_a_stranger_stop_no_start(bfl: FakeBFL, home: Path, asked: dict[str, Any]) -> None:
    """Only the list is needed before a start; a colleague's fresh finetune answers 500 for a while."""
    bfl.say_next("POST", "/v1/finetune", Answer(503))
    async with connect(home, bfl) as client:
        await refused(client, "create_finetune", asked)
        bfl.add_finetune(iterations=777)
        bfl.fail_read("/v1/finetune_details", Answer(500))
        facts = facts_of(await client.call_tool("create_finetune", {**asked, "iterations": 200}))

    assert facts["started"] is True


async def test_an_older_finetune_of_the_same_parameters_is_not_adopted(
    bfl: FakeBFL, home: Path, asked: dict[str, Any]
) -> None:
    """It was there before the start, whatever its parameters."""
    sent: dict[str, Any] = {"finetune_comment": "cats", "mode": "style", "trigger_word": "TOK", "iterations": 300}
    bfl.add_finetune(**sent)
    bfl.say_next("POST", "/v1/finetune", Answer(503))
    async with connect(home, bfl) as client:
        await refused(client, "create_finetune", asked)
        await refused(client, "create_finetune", asked)

    assert [(entry.state, entry.finetune_id) for entry in rows(home)] == [("unclear", None)]


async def test_what_its_owner_settled_meanwhile_is_left_as_it_is(
    bfl: FakeBFL, home: Path, tmp_path: Path, asked: dict[str, Any]
) -> None:
    """Looking takes time; a start that got its id in the meantime must not be released."""
    others = {**asked, "folder": str(fill_folder(tmp_path / "others", count=2))}
    bfl.say_next("POST", "/v1/finetune", Answer(503), Answer(503))
    async with connect(home, bfl) as client:
        await refused(client, "create_finetune", asked)
        await refused(client, "create_finetune", others)
    bfl.add_finetune(iterations=777)
    original, reading, go_on = bfl.transport, anyio.Event(), anyio.Event()

    def transport() -> httpx.MockTransport:
        inner = original()

        async def handle(request: httpx.Request) -> httpx.Response:
            if request.url.path == "/v1/finetune_details":
                # The newer start is looked at first.
                reading.set()
                await go_on.wait()
            return await inner.handle_async_request(request)

        return httpx.MockTransport(handle)

    bfl.transport = transport  # type: ignore[method-assign]
    async with connect(home, bfl, settle=0) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.call_tool, "get_finetune_details", {})
        await reading.wait()
        Journal(home).end(1, "started", finetune_id="mine")
        go_on.set()

    assert [entry.state for entry in rows(home)] == ["started", "released"]


async def test_a_wanted_second_start_that_got_lost_is_looked_for_and_not_made_again(
    home: Path, asked: dict[str, Any]
) -> None:
    """allow_duplicate says that two are wanted, not three: the same call again is about the lost one."""
    bfl = LosesAnswers(lost=0)
    async with connect(home, bfl) as client:
        facts_of(await client.call_tool("create_finetune", asked))
        bfl.lost = 1
        bfl.say_next("GET", "/v1/my_finetunes", Answer(200, {"finetunes": list(bfl.finetunes)}))
        bfl.fail_read("/v1/my_finetunes", Answer(503))
        lost = await refused(client, "create_finetune", {**asked, "allow_duplicate": True})
        found = facts_of(await client.call_tool("create_finetune", {**asked, "allow_duplicate": True}))

    assert "may be running" in lost
    assert len(bfl.starts()) == 2
    assert (found["started"], found["finetune_id"]) == (False, list(bfl.finetunes)[1])


async def test_a_start_of_a_dead_process_is_told_as_such_though_nobody_can_be_asked(
    bfl: FakeBFL, home: Path, asked: dict[str, Any]
) -> None:
    """The network is down, and whoever was sending it is gone: it is not being sent."""
    async with connect(home, bfl) as client:
        facts_of(await client.call_tool("create_finetune", asked))
    _leave_as_if_killed(home)
    bfl.fail_read("/v1/my_finetunes", Answer(503))
    async with connect(home, bfl) as client:
        facts = facts_of(await client.call_tool("get_finetune_details", {}))

    assert facts["state"] == "unknown"
    assert "may be running" in facts["summary"]


@pytest.mark.parametrize("other", ["provider", "key"])
async def test_a_lost_start_of_another_configuration_names_what_to_set(
    bfl: FakeBFL, home: Path, asked: dict[str, Any], other: str
) -> None:
    """As it is configured now it cannot be looked for, so nobody should be told to wait for that."""
    async with connect(home, bfl) as client:
        facts_of(await client.call_tool("create_finetune", asked))
    _leave_as_if_killed(home)
    facts: dict[str, Any] = {"BFL_MCP_HOME": home, "BFL_API_KEY": KEY, "BFL_API_URL": LOOPBACK}
    changed = {"BFL_API_URL": "http://127.0.0.1:8"} if other == "provider" else {"BFL_API_KEY": f"{KEY}-2"}
    server = build_server(Settings.model_validate({**facts, **changed}), bfl.transport())
    async with Client(server) as client:
        told = facts_of(await client.call_tool("get_finetune_details", {}))

    assert told["state"] == "unknown"
    assert (LOOPBACK if other == "provider" else "BFL_API_KEY") in told["next_step"]
    assert [entry.state for entry in rows(home)] == ["unclear"]


async def test_a_killed_start_of_a_key_that_is_gone_can_be_started_again_on_purpose(
    bfl: FakeBFL, home: Path, asked: dict[str, Any]
) -> None:
    """The key was renewed after the crash: allow_duplicate must be a way out, as the answer says."""
    async with connect(home, bfl) as client:
        facts_of(await client.call_tool("create_finetune", asked))
    _leave_as_if_killed(home)
    async with with_key(home, bfl, f"{KEY}-2") as client:
        words = await refused(client, "create_finetune", asked)
        again = facts_of(await client.call_tool("create_finetune", {**asked, "allow_duplicate": True}))

    assert "allow_duplicate=true" in words
    assert again["started"] is True


async def test_a_start_that_never_arrived_is_told_as_such(bfl: FakeBFL, home: Path, asked: dict[str, Any]) -> None:
    """The call that gives it up must not say that it may be running."""
    bfl.say_next("POST", "/v1/finetune", Answer(503))
    async with connect(home, bfl) as client:
        await refused(client, "create_finetune", asked)
    async with connect(home, bfl, settle=0) as client:
        facts = facts_of(await client.call_tool("get_finetune_details", {}))

    assert facts["state"] == "failed"
    assert "never arrived" in facts["summary"]
    assert "Start it again" in facts["next_step"]


def _leave_as_if_killed(home: Path) -> None:
    with sqlite3.connect(home / "journal" / "starts.sqlite") as database:
        database.execute("UPDATE starts SET state = 'sending', finetune_id = NULL")
    database.close()


# --- another API key --------------------------------------------------------------------------------------------------


def with_key(home: Path, bfl: FakeBFL, key: str, settle: float = 0) -> AbstractAsyncContextManager[Client]:
    """A server of the account that has this key; the fake then knows that account alone."""
    bfl.key = key
    facts: dict[str, Any] = {"BFL_MCP_HOME": home, "BFL_MCP_SETTLE_SECONDS": settle}
    settings = Settings.model_validate({**facts, "BFL_API_KEY": key, "BFL_API_URL": LOOPBACK})
    return Client(build_server(settings, bfl.transport()))


async def test_another_account_does_not_see_it_and_takes_it_for_neither_gone_nor_free(
    bfl: FakeBFL, home: Path, asked: dict[str, Any]
) -> None:
    """What one account started is in no list of another: that says nothing of whether it runs."""
    async with with_key(home, bfl, KEY) as client:
        first = facts_of(await client.call_tool("create_finetune", asked))
    elsewhere = FakeBFL()
    async with with_key(home, elsewhere, f"{KEY}-2") as client:
        second = facts_of(await client.call_tool("create_finetune", asked))

    assert (second["started"], second["state"]) == (False, "unknown")
    assert second["finetune_id"] == first["finetune_id"]
    assert not elsewhere.starts()
    assert [entry.state for entry in rows(home)] == ["started"]


async def test_a_lost_start_of_another_account_is_neither_released_nor_adopted(
    bfl: FakeBFL, home: Path, asked: dict[str, Any]
) -> None:
    """A colleague's account has a finetune that looks the same; only the key that sent it can tell."""
    bfl.say_next("POST", "/v1/finetune", Answer(503))
    async with with_key(home, bfl, KEY, settle=120) as client:
        await refused(client, "create_finetune", asked)
    elsewhere = FakeBFL()
    elsewhere.add_finetune(mode="style")
    async with with_key(home, elsewhere, f"{KEY}-2") as client:
        words = await refused(client, "create_finetune", asked)

    assert "another API key" in words
    assert "BFL_API_KEY" in words
    assert not elsewhere.starts()
    assert [entry.state for entry in rows(home)] == ["unclear"]


async def test_a_renewed_key_of_the_same_account_still_knows_its_finetune(
    bfl: FakeBFL, home: Path, asked: dict[str, Any]
) -> None:
    """Renewing a key must not open the door to a second start."""
    async with with_key(home, bfl, KEY) as client:
        first = facts_of(await client.call_tool("create_finetune", asked))
    async with with_key(home, bfl, f"{KEY}-2") as client:
        second = facts_of(await client.call_tool("create_finetune", asked))

    assert (second["started"], second["finetune_id"]) == (False, first["finetune_id"])
    assert second["state"] == "training"
    assert len(bfl.starts()) == 1


async def test_the_key_is_not_in_the_journal(bfl: FakeBFL, home: Path, asked: dict[str, Any]) -> None:
    """Eight digits of a hash tell accounts apart and are no way back to the key."""
    async with with_key(home, bfl, KEY) as client:
        facts_of(await client.call_tool("create_finetune", asked))
    stored = b"".join(path.read_bytes() for path in (home / "journal").iterdir())

    assert KEY.encode() not in stored
    assert len(rows(home)[0].account) == 8


async def test_a_refused_start_leaves_the_others_alone(bfl: FakeBFL, home: Path, asked: dict[str, Any]) -> None:
    """A repeat of an unclear start is blocked while others go their way."""
    bfl.say_next("POST", "/v1/finetune", Answer(503))
    async with connect(home, bfl) as client:
        await refused(client, "create_finetune", asked)
        facts_of(await client.call_tool("create_finetune", {**asked, "iterations": 200}))
        await refused(client, "create_finetune", asked)

    assert [entry.state for entry in rows(home)] == ["unclear", "started"]


# --- what outlives a call ---------------------------------------------------------------------------------------------


async def test_a_cancelled_call_loses_nothing(bfl: FakeBFL, home: Path, asked: dict[str, Any]) -> None:
    """The person pressed stop while the answer was on its way: it is in the journal all the same."""
    slow = Slow(bfl)
    async with connect(home, bfl) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, "create_finetune", asked)
            await slow.wait_for_arrival()
            tasks.cancel_scope.cancel()
        slow.let_go.set()
        with anyio.fail_after(5):
            while rows(home)[0].state == "sending":  # noqa: ASYNC110 - the journal is a file
                await anyio.sleep(0.01)
        facts = facts_of(await client.call_tool("get_finetune_details", {"wait_seconds": 1}))

    assert facts["finetune_id"] in bfl.finetunes
    assert len(bfl.starts()) == 1


async def test_what_takes_long_goes_on_and_is_picked_up(
    bfl: FakeBFL, home: Path, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hosts give up after a minute; the same call, or the details without an id, returns the outcome."""
    monkeypatch.setattr("bfl_mcp.server.tools.ANSWER_SECONDS", 0.3)
    slow = Slow(bfl)
    async with connect(home, bfl) as client:
        first = facts_of(await client.call_tool("create_finetune", asked))
        details = facts_of(await client.call_tool("get_finetune_details", {}))
        slow.let_go.set()
        outcome = facts_of(await client.call_tool("create_finetune", asked))

    assert (first["state"], first["started"], details["state"]) == ("sending", False, "sending")
    assert "finetune_id" not in first
    assert outcome["finetune_id"] in bfl.finetunes
    assert outcome["started"] is True
    assert len(bfl.starts()) == 1


async def test_packing_that_takes_long_goes_on(
    bfl: FakeBFL, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is sent yet, and the answer says so with how far it is."""
    folder = fill_folder(tmp_path / "many", count=16, size=(3000, 2000))
    asked = {**REQUEST, "folder": str(folder)}
    async with connect(home, bfl) as client:
        with monkeypatch.context() as clock:
            clock.setattr("bfl_mcp.server.tools.ANSWER_SECONDS", 0.05)
            first = facts_of(await client.call_tool("create_finetune", asked))
        outcome = facts_of(await client.call_tool("create_finetune", asked))

    assert (first["state"], first["started"]) == ("sending", False)
    assert "Nothing was sent yet" in first["summary"]
    assert (outcome["started"], outcome["images"]) == (True, 16)


async def test_a_wanted_second_start_is_made_once_though_its_outcome_was_never_told(
    bfl: FakeBFL, home: Path, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call took long, and the agent came back for the outcome much later: it is told, not started once more."""
    monkeypatch.setattr("bfl_mcp.finetunes.start._OUTCOME_KEPT_SECONDS", 0.2)
    again = {**asked, "allow_duplicate": True}
    async with connect(home, bfl) as client:
        facts_of(await client.call_tool("create_finetune", asked))
        slow = Slow(bfl)
    async with connect(home, bfl) as client:
        with monkeypatch.context() as clock:
            clock.setattr("bfl_mcp.server.tools.ANSWER_SECONDS", 0.3)
            sending = facts_of(await client.call_tool("create_finetune", again))
        slow.let_go.set()
        await anyio.sleep(0.5)
        late = facts_of(await client.call_tool("create_finetune", again))
        third = facts_of(await client.call_tool("create_finetune", again))

    assert sending["state"] == "sending"
    assert late["started"] is False
    assert late["finetune_id"] == list(bfl.finetunes)[1]
    assert third["started"] is True
    assert len(bfl.starts()) == 3


async def test_an_outcome_of_an_earlier_folder_says_so(
    bfl: FakeBFL, home: Path, folder: Path, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures were added while nobody waited: they are not in what was started."""
    slow = Slow(bfl)
    async with connect(home, bfl) as client:
        with monkeypatch.context() as clock:
            clock.setattr("bfl_mcp.server.tools.ANSWER_SECONDS", 0.3)
            facts_of(await client.call_tool("create_finetune", asked))
        slow.let_go.set()
        fill_folder(folder, count=5)
        outcome = facts_of(await client.call_tool("create_finetune", asked))
        again = facts_of(await client.call_tool("create_finetune", asked))

    assert (outcome["started"], outcome["images"]) == (True, 3)
    assert "has changed since" in outcome["summary"]
    assert (again["started"], again["images"]) == (True, 5)


async def test_waiting_for_a_start_and_for_its_state_share_one_clock(
    bfl: FakeBFL, home: Path, asked: dict[str, Any]
) -> None:
    """wait_seconds is what the host will wait, not what each part may take."""
    slow = Slow(bfl)
    told: list[float] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        told.append(progress)

    async with connect(home, bfl) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.call_tool, "create_finetune", asked)
        await slow.wait_for_arrival()
        tasks.start_soon(_after, 2.0, slow.let_go)
        began = anyio.current_time()
        facts = facts_of(await client.call_tool("get_finetune_details", {"wait_seconds": 3}, progress_callback=hear))
        took = anyio.current_time() - began

    assert facts["finetune_id"] in bfl.finetunes
    assert took < 4.5
    assert told == sorted(set(told))


async def _after(seconds: float, event: anyio.Event) -> None:
    await anyio.sleep(seconds)
    event.set()


def test_the_times_that_are_promised() -> None:
    """The README and the answers name them."""
    from bfl_mcp import cli, client
    from bfl_mcp.finetunes import lookup, sending, spend
    from bfl_mcp.server import tools

    assert tools.ANSWER_SECONDS == 45
    assert lookup._CALL_SECONDS == 50
    assert spend.CONSENT_SECONDS == 600
    assert client._START_SECONDS == 15 * 60
    assert sending._WIRE_SECONDS_ON_CLOSE == 30
    assert cli._WIRE_SECONDS_ON_SIGNAL == 2
    assert Settings.model_fields["settle_seconds"].default == 120


async def test_an_older_outcome_that_nobody_fetched_is_not_the_newest(
    bfl: FakeBFL, home: Path, asked: dict[str, Any]
) -> None:
    """The first call was cancelled, the second one told: the second is what a person means by the newest."""
    slow = Slow(bfl)
    async with connect(home, bfl) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, "create_finetune", asked)
            await slow.wait_for_arrival()
            tasks.cancel_scope.cancel()
        slow.let_go.set()
        second = facts_of(await client.call_tool("create_finetune", {**asked, "iterations": 200}))
        newest = facts_of(await client.call_tool("get_finetune_details", {}))

    assert newest["finetune_id"] == second["finetune_id"]


async def test_asking_how_it_goes_does_not_stop_a_start_of_the_same(
    bfl: FakeBFL, home: Path, asked: dict[str, Any]
) -> None:
    """Looking for a lost start takes its key for a moment; the start waits, and finds what was found."""
    original = bfl.transport
    reading, go_on = anyio.Event(), anyio.Event()

    def transport() -> httpx.MockTransport:
        inner = original()

        async def handle(request: httpx.Request) -> httpx.Response:
            if request.url.path == "/v1/finetune_details" and not reading.is_set():
                reading.set()
                await go_on.wait()
            return await inner.handle_async_request(request)

        return httpx.MockTransport(handle)

    async with connect(home, bfl) as client:
        first = facts_of(await client.call_tool("create_finetune", asked))
    with sqlite3.connect(home / "journal" / "starts.sqlite") as database:
        database.execute("UPDATE starts SET state = 'unclear', finetune_id = NULL")
    database.close()
    bfl.transport = transport  # type: ignore[method-assign]
    answers: list[dict[str, Any]] = []
    async with connect(home, bfl) as client, anyio.create_task_group() as both:
        both.start_soon(client.call_tool, "get_finetune_details", {})
        await reading.wait()

        async def ask() -> None:
            answers.append(facts_of(await client.call_tool("create_finetune", asked)))

        both.start_soon(ask)
        await anyio.sleep(0.3)
        go_on.set()

    assert (answers[0]["started"], answers[0]["finetune_id"]) == (False, first["finetune_id"])
    assert len(bfl.starts()) == 1


# --- details without an id, and of other hosts ------------------------------------------------------------------------


async def test_without_an_id_the_newest_start_is_told(bfl: FakeBFL, home: Path, asked: dict[str, Any]) -> None:
    """After a restart nobody remembers the id; the journal does."""
    async with connect(home, bfl) as client:
        nothing = await refused(client, "get_finetune_details", {})
        facts_of(await client.call_tool("create_finetune", {**asked, "iterations": 100}))
        newest = facts_of(await client.call_tool("create_finetune", asked))
    async with connect(home, bfl) as client:
        facts = facts_of(await client.call_tool("get_finetune_details", {}))

    assert "Nothing was started" in nothing
    assert facts["finetune_id"] == newest["finetune_id"]


async def test_an_unclear_newest_start_is_told_as_such(bfl: FakeBFL, home: Path, asked: dict[str, Any]) -> None:
    """It may be running; the answer must not sound as if nothing had happened."""
    bfl.say_next("POST", "/v1/finetune", Answer(503))
    async with connect(home, bfl) as client:
        await refused(client, "create_finetune", asked)
        facts = facts_of(await client.call_tool("get_finetune_details", {}))

    assert facts["state"] == "unknown"
    assert "may be running" in facts["summary"]
    assert "Do not start it again" in facts["next_step"]


async def test_a_reading_that_fails_in_the_end_says_what_the_journal_still_knows(
    bfl: FakeBFL, home: Path, asked: dict[str, Any]
) -> None:
    """The provider is down; that it was started, and as what, is on this disk."""
    async with connect(home, bfl) as client:
        started = facts_of(await client.call_tool("create_finetune", asked))
        for path in ("/v1/finetune_details", "/v1/get_result"):
            bfl.fail_read(path, Answer(503))
        words = await refused(client, "get_finetune_details", {"finetune_id": started["finetune_id"]})

    assert "503" in words
    assert "The journal knows that it was started" in words
    assert "'cats'" in words


async def test_a_fresh_finetune_that_answers_500_is_not_known_yet(
    bfl: FakeBFL, home: Path, asked: dict[str, Any]
) -> None:
    """Observed in January 2025: for a while after the start the task answers 500 and the details 404."""
    async with connect(home, bfl) as client:
        started = facts_of(await client.call_tool("create_finetune", asked))
        bfl.fail_read("/v1/get_result", Answer(500, b"Internal Server Error"))
        bfl.say_next("GET", "/v1/finetune_details", Answer(404, {"detail": "Not Found"}))
        words = await refused(client, "get_finetune_details", {"finetune_id": started["finetune_id"]})

    assert "does not know" in words
    assert "yet" in words
    assert "ask again in a minute" in words


async def test_the_trainer_inside_is_asked_for_its_own(bfl: FakeBFL, home: Path, asked: dict[str, Any]) -> None:
    """Practised yesterday without a key, connected to a provider today: the old one is still found."""
    async with connect(home, None) as client:
        practised = facts_of(await client.call_tool("create_finetune", asked))
    settings = Settings.model_validate({"BFL_MCP_HOME": home, "BFL_API_KEY": KEY, "BFL_API_URL": LOOPBACK})
    async with Client(build_server(settings)) as client:
        facts = facts_of(await client.call_tool("get_finetune_details", {"finetune_id": practised["finetune_id"]}))

    assert facts["practice"] is True


async def test_a_host_of_bfl_is_asked_with_the_key_of_bfl(bfl: FakeBFL, home: Path, asked: dict[str, Any]) -> None:
    """A finetune is known only where it was trained, and BFL has several hosts."""
    paid = {**asked, "confirm_cost_usd": 4}
    async with connect(home, bfl, "https://api.us.bfl.ai") as client:
        await refused(client, "create_finetune", asked)
        started = facts_of(await client.call_tool("create_finetune", paid))
    bfl.requests.clear()
    async with connect(home, bfl, "https://api.bfl.ai") as client:
        await client.call_tool("get_finetune_details", {"finetune_id": started["finetune_id"]})

    assert {request.headers["host"] for request in bfl.requests} == {"api.us.bfl.ai"}


async def test_the_key_does_not_go_to_a_recorded_host(bfl: FakeBFL, home: Path, asked: dict[str, Any]) -> None:
    """It belongs to the configured provider; the journal answers, and names the address to set."""
    async with connect(home, bfl, "http://127.0.0.1:8") as client:
        started = facts_of(await client.call_tool("create_finetune", asked))
    bfl.requests.clear()
    async with connect(home, bfl, "http://127.0.0.1:9") as client:
        facts = facts_of(await client.call_tool("get_finetune_details", {"finetune_id": started["finetune_id"]}))

    assert bfl.requests == []
    assert facts["state"] == "unknown"
    assert "http://127.0.0.1:8" in facts["next_step"]
