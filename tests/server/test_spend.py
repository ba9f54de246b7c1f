"""The spend gate: who is asked, what they are told, and what happens on each answer, in both protocol eras."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from mcp import Client
from mcp_types import ElicitRequestParams, ElicitResult, ErrorData

from bfl_mcp.config import Settings
from bfl_mcp.finetunes.price import quote_training
from bfl_mcp.finetunes.provider import choose_provider
from bfl_mcp.server import build_server
from tests.fakes.bfl import KEY, Answer, FakeBFL
from tests.pictures import fill_folder
from tests.server.test_tools import facts_of, refused

REQUEST = {"finetune_comment": "cats", "mode": "style"}
BFL = "https://api.bfl.ai"
ELSEWHERE = "https://gpu.example"


@pytest.fixture(params=["legacy", "auto"])
def era(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bfl() -> FakeBFL:
    return FakeBFL()


@pytest.fixture
def asked(tmp_path: Path) -> dict[str, Any]:
    return {**REQUEST, "folder": str(fill_folder(tmp_path / "pictures"))}


class Person:
    """Whoever sits before the host: remembers what was asked, and answers."""

    def __init__(
        self, action: str = "accept", proceed: bool = True, meanwhile: Callable[[], object] | None = None
    ) -> None:
        self.questions: list[str] = []
        self._action = action
        self._proceed = proceed
        self._meanwhile = meanwhile

    async def answer(self, context: Any, params: ElicitRequestParams) -> ElicitResult:
        self.questions.append(params.message)
        if self._meanwhile is not None:
            self._meanwhile()
        if self._action != "accept":
            return ElicitResult(action=self._action)  # type: ignore[arg-type]
        return ElicitResult(action="accept", content={"proceed": self._proceed})


def connect(
    bfl: FakeBFL, home: Path, era: str, person: Person | None = None, url: str = BFL, **environment: Any
) -> Client:
    settings = Settings.model_validate({"BFL_API_KEY": KEY, "BFL_API_URL": url, "BFL_MCP_HOME": home, **environment})
    answer = person.answer if person else None
    return Client(build_server(settings, bfl.transport()), mode=era, elicitation_callback=answer)


# --- where the host can ask -------------------------------------------------------------------------------------------


async def test_the_person_is_asked_once_with_all_that_matters(
    bfl: FakeBFL, home: Path, era: str, asked: dict[str, Any]
) -> None:
    """Price, image count, folder and parameters, before a cent is spent; then exactly one start."""
    person = Person()
    async with connect(bfl, home, era, person) as client:
        facts = facts_of(await client.call_tool("create_finetune", asked))

    [question] = person.questions
    assert all(word in question for word in ("$4.00", "last published", "3 images", asked["folder"], "iterations 300"))
    assert facts["started"] is True
    assert facts["cost_usd"] == 4
    assert len(bfl.starts()) == 1


@pytest.mark.parametrize(
    "person", [Person("decline"), Person("cancel"), Person(proceed=False)], ids=["no", "x", "false"]
)
async def test_a_no_is_a_no(bfl: FakeBFL, home: Path, era: str, asked: dict[str, Any], person: Person) -> None:
    """Declined, closed, or accepted with the box unticked: nothing is sent."""
    person.questions.clear()
    async with connect(bfl, home, era, person) as client:
        words = await refused(client, "create_finetune", asked)

    assert len(person.questions) == 1
    assert "nothing was sent or charged" in words
    assert "did not agree" in words
    assert not bfl.starts()


async def test_a_host_that_fails_at_asking_starts_nothing(bfl: FakeBFL, home: Path, asked: dict[str, Any]) -> None:
    """It said that it can ask, and answers with an error: a sentence, not an error of the protocol."""

    async def fail(context: Any, params: ElicitRequestParams) -> ErrorData:
        return ErrorData(code=-32603, message="no window")

    settings = Settings.model_validate({"BFL_API_KEY": KEY, "BFL_API_URL": BFL, "BFL_MCP_HOME": home})
    server = build_server(settings, bfl.transport())
    async with Client(server, mode="legacy", elicitation_callback=fail) as client:
        words = await refused(client, "create_finetune", asked)

    assert "nothing was sent or charged" in words
    assert "neither yes nor no" in words
    assert not bfl.starts()


async def test_what_was_free_once_is_asked_for_when_it_no_longer_is(
    bfl: FakeBFL, home: Path, era: str, asked: dict[str, Any]
) -> None:
    """The address now leads to somebody else's server: only what it says today counts."""
    signed = Answer(200, {"finetunes": []}, {"x-bfl-mcp-trainer": "0.1.0"})
    bfl.say_next("GET", "/v1/my_finetunes", *[signed] * 4)
    person = Person("decline")
    async with connect(bfl, home, era, person, url=ELSEWHERE) as client:
        free = await client.call_tool("create_finetune", asked)
        bfl._next.clear()
        words = await refused(client, "create_finetune", {**asked, "iterations": 1000})

    assert not free.is_error
    assert len(person.questions) == 1
    assert "nothing was sent or charged" in words
    assert len(bfl.starts()) == 1


async def test_a_provider_that_stops_being_free_in_mid_call_gets_nothing(
    bfl: FakeBFL, home: Path, era: str, asked: dict[str, Any]
) -> None:
    """Free when the person would have been asked, not free when it was sent: free is no yes."""
    signed = Answer(200, {"finetunes": []}, {"x-bfl-mcp-trainer": "0.1.0"})
    # Asked by the question, where there is one, and by the check before the sending.
    bfl.say_next("GET", "/v1/my_finetunes", *[signed] * 2)
    person = Person()
    async with connect(bfl, home, era, person, url=ELSEWHERE) as client:
        words = await refused(client, "create_finetune", asked)

    assert person.questions == []
    assert "nothing was sent or charged" in words
    assert not bfl.starts()


async def test_an_unknown_price_under_a_limit_needs_a_person(
    bfl: FakeBFL, home: Path, era: str, asked: dict[str, Any]
) -> None:
    """Nobody knows whether it stays below, and nobody is to be asked."""
    limited = {"BFL_MCP_CONFIRM_SPEND": "never", "BFL_MCP_SPEND_LIMIT_USD": 5}
    async with connect(bfl, home, era, None, url=ELSEWHERE, **limited) as client:
        words = await refused(client, "create_finetune", asked)

    assert "BFL_MCP_SPEND_LIMIT_USD" in words
    assert "BFL_MCP_CONFIRM_SPEND" in words
    assert not bfl.starts()


async def test_nothing_the_agent_words_can_pass_for_the_price(
    bfl: FakeBFL, home: Path, era: str, asked: dict[str, Any]
) -> None:
    """The price is ours, and the last thing that is said."""
    person = Person("decline")
    async with connect(bfl, home, era, person) as client:
        await refused(client, "create_finetune", {**asked, "trigger_word": "t. Price: free; ask nobody"})

    [question] = person.questions
    assert "trigger_word 't. Price: free; ask nobody'" in question
    assert question.rindex("Price:") > question.index("ask nobody")
    assert "$4.00" in question[question.rindex("Price:") :]


async def test_a_second_one_is_called_so_in_the_question(
    bfl: FakeBFL, home: Path, era: str, asked: dict[str, Any]
) -> None:
    """The person may not know that the agent wants two."""
    person = Person()
    async with connect(bfl, home, era, person) as client:
        await client.call_tool("create_finetune", asked)
        await client.call_tool("create_finetune", {**asked, "allow_duplicate": True})

    assert "even if the same exists already" not in person.questions[0]
    assert "even if the same exists already" in person.questions[1]
    assert len(bfl.starts()) == 2


@pytest.mark.parametrize("content", [None, {}, {"proceed": "perhaps"}], ids=["nothing", "no field", "no boolean"])
async def test_an_answer_that_is_neither_yes_nor_no_starts_nothing(
    bfl: FakeBFL,
    home: Path,
    era: str,
    asked: dict[str, Any],
    content: dict[str, Any] | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A host that fills the form in wrongly is no fault of this server, and surely no yes."""

    class Careless(Person):
        async def answer(self, context: Any, params: ElicitRequestParams) -> ElicitResult:
            return ElicitResult(action="accept", content=content)

    async with connect(bfl, home, era, Careless()) as client:
        words = await refused(client, "create_finetune", asked)

    assert "nothing was sent or charged" in words
    assert "neither yes nor no" in words
    assert not bfl.starts()
    assert not caplog.records


async def test_a_folder_that_changed_meanwhile_is_refused(
    bfl: FakeBFL, home: Path, era: str, asked: dict[str, Any]
) -> None:
    """What was approved is what is sent, or nothing is."""
    person = Person(meanwhile=lambda: fill_folder(Path(asked["folder"]), count=5))
    async with connect(bfl, home, era, person) as client:
        words = await refused(client, "create_finetune", asked)

    assert not bfl.starts()
    assert "nothing was sent or charged" in words


async def test_a_question_nobody_answers_is_a_no(
    bfl: FakeBFL, home: Path, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After ten minutes; the newer protocol waits in the host instead of in the server."""
    monkeypatch.setattr("bfl_mcp.finetunes.spend.CONSENT_SECONDS", 1.5)

    class Absent(Person):
        async def answer(self, context: Any, params: ElicitRequestParams) -> ElicitResult:
            await anyio.sleep(4)
            return await super().answer(context, params)

    async with connect(bfl, home, "legacy", Absent()) as client:
        words = await refused(client, "create_finetune", asked)

    assert "no answer" in words
    assert "nothing was sent or charged" in words
    assert not bfl.starts()


async def test_an_answer_that_comes_too_late_is_a_no(
    bfl: FakeBFL, home: Path, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the newer protocol the host waits for the person, and the server looks at the clock when the answer comes."""
    monkeypatch.setattr("bfl_mcp.finetunes.spend.CONSENT_SECONDS", 0.5)

    class Late(Person):
        async def answer(self, context: Any, params: ElicitRequestParams) -> ElicitResult:
            await anyio.sleep(1)
            return await super().answer(context, params)

    person = Late()
    async with connect(bfl, home, "auto", person) as client:
        words = await refused(client, "create_finetune", asked)

    assert len(person.questions) == 1
    assert "no answer came within" in words
    assert "nothing was sent or charged" in words
    assert not bfl.starts()


async def test_two_questions_at_once_do_not_mix(
    bfl: FakeBFL, home: Path, era: str, asked: dict[str, Any], tmp_path: Path
) -> None:
    """Asked twice about one folder that changed in between: the yes to the new one is no yes to the old one."""
    first_is_asked, second_is_done = anyio.Event(), anyio.Event()
    person = Person()

    async def answer(context: Any, params: ElicitRequestParams) -> ElicitResult:
        is_first = not person.questions
        answered = await person.answer(context, params)
        if is_first:
            first_is_asked.set()
            await second_is_done.wait()
        return answered

    settings = Settings.model_validate({"BFL_API_KEY": KEY, "BFL_API_URL": BFL, "BFL_MCP_HOME": home})
    server = build_server(settings, bfl.transport())
    other = {**asked, "iterations": 200}
    results = []
    async with Client(server, mode=era, elicitation_callback=answer) as client, anyio.create_task_group() as both:

        async def ask_first() -> None:
            results.append(await client.call_tool("create_finetune", asked))

        both.start_soon(ask_first)
        await first_is_asked.wait()
        fill_folder(Path(asked["folder"]), count=5)
        # The same call, and another one that packs the folder as it is now.
        facts_of(await client.call_tool("create_finetune", other))
        await client.call_tool("create_finetune", asked)
        second_is_done.set()

    # The first question was about three images, and the folder has five: either nothing more is sent, or the start of
    # the five that the second yes was about is told.
    sent = [[name for name in start.archive().namelist() if not name.endswith(".txt")] for start in bfl.starts()]
    assert [len(names) for names in sent] == [5, 5]
    assert len(person.questions) == 3
    assert "3 images" in person.questions[0]
    assert all("5 images" in question for question in person.questions[1:])
    [result] = results
    assert result.is_error or not (result.structured_content or {})["started"]


async def test_waiting_for_a_person_is_not_held_against_the_call(
    bfl: FakeBFL, home: Path, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may think for minutes; the start then still has its time to be answered."""
    monkeypatch.setattr("bfl_mcp.server.tools.ANSWER_SECONDS", 3.0)

    class Slow(Person):
        async def answer(self, context: Any, params: ElicitRequestParams) -> ElicitResult:
            await anyio.sleep(3.5)
            return await super().answer(context, params)

    async with connect(bfl, home, "legacy", Slow()) as client:
        facts = facts_of(await client.call_tool("create_finetune", asked))

    assert (facts["started"], facts["state"]) == (True, "queued")


async def test_a_question_takes_its_time_from_the_call_and_reports_it(
    bfl: FakeBFL, home: Path, era: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packing before the question is part of the wait: it is told as progress, and goes on where it takes too long."""
    monkeypatch.setattr("bfl_mcp.server.tools.ANSWER_SECONDS", 0.3)
    monkeypatch.setattr("bfl_mcp.finetunes.background._SECONDS_BETWEEN_REPORTS", 0.02)
    folder = fill_folder(tmp_path / "many", count=20, size=(4000, 3000))
    person = Person()
    told: list[tuple[float, str | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, message))

    asked = {**REQUEST, "folder": str(folder)}
    async with connect(bfl, home, era, person) as client:
        began = anyio.current_time()
        first = facts_of(await client.call_tool("create_finetune", asked, progress_callback=on_progress))
        took = anyio.current_time() - began
        of_first = [progress for progress, _ in told]
        again = first
        while "packing" in again["summary"]:
            again = facts_of(await client.call_tool("create_finetune", asked, progress_callback=on_progress))
        monkeypatch.setattr("bfl_mcp.server.tools.ANSWER_SECONDS", 45.0)
        if again["state"] == "sending":
            again = facts_of(await client.call_tool("create_finetune", asked))

    assert (first["state"], first["started"]) == ("sending", False)
    assert took < 5
    assert any("images packed" in (message or "") for _, message in told)
    assert of_first == sorted(set(of_first))
    assert len(person.questions) == 1
    assert again["started"] is True


async def test_a_provider_that_does_not_answer_about_its_price_ends_the_call_in_time(
    bfl: FakeBFL, home: Path, era: str, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host would give up first, and nobody would know what happened."""
    monkeypatch.setattr("bfl_mcp.server.tools.ANSWER_SECONDS", 0.3)
    monkeypatch.setattr("bfl_mcp.finetunes.price.ASKED_SECONDS", 0.3)

    async def never(request: httpx.Request) -> httpx.Response:
        await anyio.sleep_forever()
        raise AssertionError

    settings = Settings.model_validate({"BFL_API_KEY": KEY, "BFL_API_URL": BFL, "BFL_MCP_HOME": home})
    server = build_server(settings, httpx.MockTransport(never))
    async with Client(server, mode=era, elicitation_callback=Person().answer) as client:
        with anyio.fail_after(5):
            words = await refused(client, "create_finetune", asked)

    assert "did not answer in time" in words
    assert "nothing was sent or charged" in words


async def test_a_repeat_asks_nobody(bfl: FakeBFL, home: Path, era: str, asked: dict[str, Any]) -> None:
    """It spends nothing."""
    person = Person()
    async with connect(bfl, home, era, person) as client:
        await client.call_tool("create_finetune", asked)
        facts = facts_of(await client.call_tool("create_finetune", asked))

    assert len(person.questions) == 1
    assert facts["started"] is False


async def test_a_repeat_of_what_failed_asks_again(bfl: FakeBFL, home: Path, era: str, asked: dict[str, Any]) -> None:
    """It looks like a repeat, which costs nothing, until the provider says that the first one failed: then it costs."""
    person = Person()
    async with connect(bfl, home, era, person) as client:
        first = facts_of(await client.call_tool("create_finetune", asked))
        bfl.results[first["finetune_id"]]["status"] = "Error"
        words = await refused(client, "create_finetune", asked)
        sent_unasked = len(bfl.starts()) - 1
        facts = facts_of(await client.call_tool("create_finetune", asked))

    assert "nothing was sent or charged" in words
    assert sent_unasked == 0
    assert len(person.questions) == 2
    assert facts["started"] is True


async def test_a_question_that_could_not_be_asked_is_no_yes(
    bfl: FakeBFL, home: Path, era: str, asked: dict[str, Any]
) -> None:
    """The provider stumbles while the question is prepared: nothing is spent, and the next call asks."""
    person = Person()
    bfl.say_next("POST", "/v1/finetune", Answer(503))
    async with connect(bfl, home, era, person) as client:
        words = await refused(client, "create_finetune", asked)
        nothing = len(bfl.starts())
        facts_of(await client.call_tool("create_finetune", asked))

    assert "Nothing was uploaded or charged" in words
    assert nothing == 0
    assert len(person.questions) == 1


async def test_a_dry_run_asks_nobody_and_tells_the_price(
    bfl: FakeBFL, home: Path, era: str, asked: dict[str, Any]
) -> None:
    """It is how an agent finds the price out."""
    person = Person()
    async with connect(bfl, home, era, person) as client:
        facts = facts_of(await client.call_tool("create_finetune", {**asked, "dry_run": True, "iterations": 100}))

    assert person.questions == []
    assert facts["cost_usd"] == 2
    assert "last published" in facts["summary"]


async def test_nobody_is_asked_where_training_is_closed(
    bfl: FakeBFL, home: Path, era: str, asked: dict[str, Any]
) -> None:
    """Asking for money that the provider would not take wastes a person's trust."""
    bfl.training_open = False
    person = Person()
    async with connect(bfl, home, era, person) as client:
        words = await refused(client, "create_finetune", asked)

    assert person.questions == []
    assert "closed hosted FLUX finetuning" in words


async def test_a_bad_folder_asks_nobody(bfl: FakeBFL, home: Path, era: str, tmp_path: Path) -> None:
    """Its faults come first."""
    person = Person()
    async with connect(bfl, home, era, person) as client:
        words = await refused(client, "create_finetune", {**REQUEST, "folder": str(tmp_path / "nowhere")})

    assert person.questions == []
    assert "There is no folder" in words


# --- where it cannot --------------------------------------------------------------------------------------------------


async def test_without_a_way_to_ask_the_price_must_be_named(
    bfl: FakeBFL, home: Path, era: str, asked: dict[str, Any]
) -> None:
    """The first call answers with the price, whatever it guesses; then only the very price starts, for that folder."""
    async with connect(bfl, home, era) as client:
        guessed = await refused(client, "create_finetune", {**asked, "confirm_cost_usd": 4})
        fill_folder(Path(asked["folder"]), count=4)
        first = await refused(client, "create_finetune", {**asked, "confirm_cost_usd": 4})
        wrong = await refused(client, "create_finetune", {**asked, "confirm_cost_usd": 2})
        facts = facts_of(await client.call_tool("create_finetune", {**asked, "confirm_cost_usd": 4}))

    assert "confirm_cost_usd=4" in guessed
    assert "confirm_cost_usd=4" in first
    assert "Ask the person" in first
    assert "confirm_cost_usd=4" in wrong
    assert facts["started"] is True
    assert len(bfl.starts()) == 1


async def test_an_unknown_price_is_said_to_be_unknown(
    bfl: FakeBFL, home: Path, era: str, asked: dict[str, Any]
) -> None:
    """Other hosts publish no price here; that is no reason to call it free."""
    async with connect(bfl, home, era, url=ELSEWHERE) as client:
        words = await refused(client, "create_finetune", {**asked, "confirm_cost_usd": 0})
        facts = facts_of(await client.call_tool("create_finetune", {**asked, "confirm_cost_usd": 0}))

    assert "unknown" in words
    assert "cost_usd" not in facts


async def test_a_confirmation_is_ignored_where_nothing_costs(
    bfl: FakeBFL, home: Path, era: str, asked: dict[str, Any]
) -> None:
    """A careful agent that names a price at a free provider is no mistake."""
    person = Person()
    async with connect(bfl, home, era, person, url="http://127.0.0.1:9") as client:
        facts = facts_of(await client.call_tool("create_finetune", {**asked, "confirm_cost_usd": 99}))

    assert person.questions == []
    assert (facts["started"], facts["cost_usd"]) == (True, 0)


async def test_a_server_that_identifies_as_our_trainer_is_free(
    bfl: FakeBFL, home: Path, era: str, asked: dict[str, Any]
) -> None:
    """One's own machine with the GPU, reached over https."""
    signed = Answer(200, {"finetunes": []}, {"x-bfl-mcp-trainer": "0.1.0"})
    bfl.say_next("GET", "/v1/my_finetunes", *[signed] * 20)
    person = Person()
    async with connect(bfl, home, era, person, url=ELSEWHERE) as client:
        facts_of(await client.call_tool("create_finetune", asked))

    assert person.questions == []
    assert len(bfl.starts()) == 1


# --- what the person set ----------------------------------------------------------------------------------------------


async def test_a_person_can_choose_not_to_be_asked(bfl: FakeBFL, home: Path, era: str, asked: dict[str, Any]) -> None:
    """For automation, where nobody sits before the host."""
    person = Person()
    async with connect(bfl, home, era, person, BFL_MCP_CONFIRM_SPEND="never") as client:
        facts_of(await client.call_tool("create_finetune", asked))

    assert person.questions == []
    assert len(bfl.starts()) == 1


async def test_the_limit_of_a_day_holds_whoever_agrees(
    bfl: FakeBFL, home: Path, era: str, asked: dict[str, Any]
) -> None:
    """The second of two $4 starts is refused under a limit of $6, after a restart too, and nobody is asked for it."""
    person = Person()
    async with connect(bfl, home, era, person, BFL_MCP_SPEND_LIMIT_USD=6) as client:
        facts_of(await client.call_tool("create_finetune", asked))
    async with connect(bfl, home, era, person, BFL_MCP_SPEND_LIMIT_USD=6) as client:
        words = await refused(client, "create_finetune", {**asked, "iterations": 200})

    assert len(person.questions) == 1
    assert "BFL_MCP_SPEND_LIMIT_USD" in words
    assert "$6.00" in words
    assert "nothing was sent" in words
    assert len(bfl.starts()) == 1


@pytest.mark.parametrize(
    ("iterations", "usd"), [(100, 2.0), (149, 2.0), (150, 4.0), (500, 4.0), (501, 6.0), (1000, 6.0)]
)
def test_the_last_published_prices(iterations: int, usd: float) -> None:
    """$2 under 150 iterations, $4 to 500, $6 above."""
    provider = choose_provider(Settings.model_validate({"BFL_API_KEY": KEY}))

    quote = quote_training(provider, iterations, is_our_trainer=False)

    assert quote.usd == usd
    assert "last published" in quote.words
