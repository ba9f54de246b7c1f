"""The tools and the prompt that the suite answers in rounds, without `Resolve`: 2026-07-28 as it is on the wire.

A call that needs something ends with its questions; the client calls again with the answers and the state that came
with the questions. The server class seals that state. The names and keys are the suite's.
"""

from collections.abc import Callable
from typing import Any, Final

from mcp.server.mcpserver import Context
from mcp_types import (
    CreateMessageRequest,
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    InputRequest,
    InputRequiredResult,
    InputResponse,
    ListRootsRequest,
    ListRootsResult,
    SamplingMessage,
    TextContent,
)


def form(message: str, field: str, kind: str = "string") -> ElicitRequest:
    """A question to the person with one field."""
    schema = {"type": "object", "properties": {field: {"type": kind}}, "required": [field]}
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=schema))


def prompt(text: str, max_tokens: int = 100) -> CreateMessageRequest:
    """A question to the client's model."""
    message = SamplingMessage(role="user", content=TextContent(type="text", text=text))
    return CreateMessageRequest(params=CreateMessageRequestParams(messages=[message], max_tokens=max_tokens))


def need(state: str | None = None, /, **questions: InputRequest) -> InputRequiredResult:
    return InputRequiredResult(input_requests=questions, request_state=state)


def answered(ctx: Context, key: str) -> InputResponse | None:
    return (ctx.input_responses or {}).get(key)


def filled_in(ctx: Context, key: str, field: str) -> Any:
    """What the person filled in, if they did."""
    answer = answered(ctx, key)
    return (answer.content or {}).get(field) if isinstance(answer, ElicitResult) and answer.action == "accept" else None


def text_of(answer: CreateMessageResult) -> str:
    return answer.content.text if isinstance(answer.content, TextContent) else answer.content.type


def test_input_required_result_elicitation(ctx: Context) -> str | InputRequiredResult:
    """Ask the person for a name, until there is one."""
    name = filled_in(ctx, "user_name", "name")
    if not isinstance(name, str):
        return need(user_name=form("What is your name?", "name"))
    return f"Hello, {name}!"


def test_input_required_result_sampling(ctx: Context) -> str | InputRequiredResult:
    """Ask the client's model."""
    answer = answered(ctx, "capital_question")
    if not isinstance(answer, CreateMessageResult):
        return need(capital_question=prompt("What is the capital of France?"))
    return text_of(answer)


def test_input_required_result_list_roots(ctx: Context) -> str | InputRequiredResult:
    """Ask for the client's folders."""
    answer = answered(ctx, "client_roots")
    if not isinstance(answer, ListRootsResult):
        return need(client_roots=ListRootsRequest())
    return f"Roots: {', '.join(str(root.uri) for root in answer.roots)}"


def test_input_required_result_request_state(ctx: Context) -> str | InputRequiredResult:
    """Ask, and know the call again by its state."""
    if ctx.request_state != "asked" or filled_in(ctx, "confirm", "ok") is None:
        return need("asked", confirm=form("Please confirm", "ok", "boolean"))
    return "state-ok"


def test_input_required_result_tampered_state(ctx: Context) -> str | InputRequiredResult:
    """Ask; a state that is not the one given must not come as far as here again."""
    if ctx.request_state is None:
        return need("asked", confirm=form("Please confirm", "ok", "boolean"))
    return f"Went on with {ctx.request_state}."


def test_input_required_result_multiple_inputs(ctx: Context) -> str | InputRequiredResult:
    """Ask the person, the client's model and for its folders at once."""
    name, greeting, roots = (answered(ctx, key) for key in ("user_name", "greeting", "client_roots"))
    if name is None or not isinstance(greeting, CreateMessageResult) or not isinstance(roots, ListRootsResult):
        return need(
            "asked",
            user_name=form("What is your name?", "name"),
            greeting=prompt("Generate a greeting", 50),
            client_roots=ListRootsRequest(),
        )
    return f"{text_of(greeting)} {filled_in(ctx, 'user_name', 'name')}, {len(roots.roots)} roots."


def test_input_required_result_multi_round(ctx: Context) -> str | InputRequiredResult:
    """Ask twice, the second time with the first answer in the state."""
    if ctx.request_state is None:
        return need("1", step1=form("Step 1: What is your name?", "name"))
    if ctx.request_state == "1":
        name = filled_in(ctx, "step1", "name")
        return need(f"2 {name}", step2=form("Step 2: What is your favorite color?", "color"))
    return f"{ctx.request_state.removeprefix('2 ')} likes {filled_in(ctx, 'step2', 'color')}."


def test_input_required_result_capabilities(ctx: Context) -> str | InputRequiredResult:
    """Ask only what the client said it can answer."""
    can = ctx.client_capabilities
    questions: dict[str, InputRequest] = {}
    if can is not None and can.sampling is not None:
        questions["capital_question"] = prompt("What is the capital of France?")
    if can is not None and can.elicitation is not None:
        questions["user_name"] = form("What is your name?", "name")
    return need(**questions) if questions else "Nobody to ask."


def test_input_required_result_prompt(ctx: Context) -> str | InputRequiredResult:
    """A prompt that needs an answer first."""
    context = filled_in(ctx, "user_context", "context")
    if context is None:
        return need(user_context=form("What context should the prompt use?", "context"))
    return f"Use this context: {context}"


TOOLS: Final[list[Callable[..., Any]]] = [
    test_input_required_result_elicitation,
    test_input_required_result_sampling,
    test_input_required_result_list_roots,
    test_input_required_result_request_state,
    test_input_required_result_tampered_state,
    test_input_required_result_multiple_inputs,
    test_input_required_result_multi_round,
    test_input_required_result_capabilities,
]
