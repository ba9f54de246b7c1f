"""The trainer against its own description: requests drawn from it, right ones and wrong ones, answers held to it."""

import base64
import itertools
import sys
from collections import Counter
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from schemathesis import Case, CheckContext, GenerationMode, Response
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from bfl_mcp.contract import TRAINER_HEADER
from bfl_mcp.trainer.jobs import Jobs
from tests.trainer.archives import good_archive, start
from tests.trainer.conftest import make_app

_CASES_EACH = 200
_Case: TypeAlias = "Case[Any]"
_KEY = {"x-key": "test-key"}
# BFL's description, which ours repeats, names 200 and 422 alone. These come besides: no key, no such thing, too large.
_BESIDES = frozenset({403, 404, 413})
_GOOD = base64.b64encode(good_archive(1)).decode()
_UPLOADS = (None, "AAAA", _GOOD, _GOOD)


def keeps_its_promises(ctx: CheckContext, response: Response, case: _Case) -> None:
    """What the description does not say: JSON always, the trainer's signature, a reason beside every refusal."""
    answer = response.json()
    assert response.status_code in {200, 422} | _BESIDES
    assert response.headers[TRAINER_HEADER]
    if response.status_code == 422:
        assert all(set(fault) == {"type", "loc", "msg"} for fault in answer["detail"])
    elif case.path == "/v1/get_result" and response.status_code == 404:
        assert answer["status"] == "Task not found"
    elif response.status_code != 200:
        assert isinstance(answer["detail"], str)


def is_about_the_address_alone(response: Response) -> bool:
    """JSON Schema calls more things an address than a web address."""
    return response.status_code == 422 and all(
        fault["loc"] == ["body", "webhook_url"] for fault in response.json()["detail"]
    )


def fill(case: _Case, upload: str | None, finetune_id: str | None) -> bool:
    """Put a real archive and a real id where any text would do. Whether it is a good upload now."""
    for place in (case.body, case.query):
        if isinstance(place, dict) and finetune_id:
            place.update({name: finetune_id for name in ("finetune_id", "id") if isinstance(place.get(name), str)})
    if isinstance(case.body, dict) and upload and isinstance(case.body.get("file_data"), str):
        case.body["file_data"] = upload
        return upload == _GOOD
    return False


def keep_only(finetune_id: str, jobs: Jobs) -> None:
    """Hundreds of finetunes would make the list of them slow."""
    for job in jobs.all():
        assert job.finetune_id == finetune_id or jobs.delete(job.finetune_id)


@pytest.mark.timeout(180)
def test_answers_are_what_the_description_says_whatever_is_asked(
    data: Path, no_worker: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Clients are made from descriptions. What it promises must come, and nothing that is asked may fail the server."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", make_app(data, api_key=SecretStr("test-key")))
    jobs = Jobs(data)
    counts: dict[str, Counter[int]] = {}

    def create() -> str:
        started: dict[str, Any] = schema["/v1/finetune"]["POST"].Case(body=start()).call(headers=_KEY).json()
        return str(started["finetune_id"])

    def ask(operation: Any, mode: GenerationMode) -> None:
        statuses = counts.setdefault(f"{operation.label}, {mode.value}", Counter())
        standing = create()

        @settings(
            max_examples=_CASES_EACH,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        )
        @given(operation.as_strategy(generation_mode=mode), st.sampled_from(_UPLOADS), st.booleans(), st.booleans())
        def check(case: _Case, upload: str | None, known: bool, stranger: bool) -> None:
            nonlocal standing
            if jobs.find(standing) is None:
                standing = create()
            if not stranger:
                case.headers.pop("x-key", None)
            good = fill(case, upload, standing if known else None)
            response = case.call_and_validate(
                headers=_KEY,
                checks=[not_a_server_error, content_type_conformance, response_schema_conformance],
                additional_checks=[keeps_its_promises],
            )
            statuses[response.status_code] += 1
            keep_only(standing, jobs)
            if good and mode is GenerationMode.POSITIVE:
                assert response.status_code == 200 or is_about_the_address_alone(response), response.text

        check()

    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    for operation, mode in itertools.product(operations, GenerationMode):
        # Of what asks for nothing, not even a key, there is no wrong way.
        if not (operation.path == "/healthz" and mode is GenerationMode.NEGATIVE):
            ask(operation, mode)

    assert len(operations) == 8
    total = sum(counts.values(), Counter[int]())
    with capsys.disabled():
        sys.stdout.write(f"\n{total.total()} requests: {dict(sorted(total.items()))}\n")
        for name, statuses in counts.items():
            sys.stdout.write(f"  {name}: {dict(sorted(statuses.items()))}\n")
