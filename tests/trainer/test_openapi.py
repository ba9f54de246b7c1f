"""The app's description of itself against BFL's, as reconstructed in 2026."""

from typing import Any

import httpx
import pytest

OPTIONAL_TEXT = {"anyOf": [{"type": "string"}, {"type": "null"}]}
OPTIONAL_OBJECT = {"anyOf": [{"type": "object"}, {"type": "null"}]}
STATUS = {
    "type": "string",
    "enum": [
        "Task not found",
        "Pending",
        "Request Moderated",
        "Content Moderated",
        "Ready",
        "Error",
        # Since September 2026.
        "Reasoning",
        "Generating",
    ],
}
FAULT = {
    "type": "object",
    "required": ["loc", "msg", "type"],
    "properties": {
        "loc": {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}},
        "msg": {"type": "string"},
        "type": {"type": "string"},
    },
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "FinetuneInputs": {
        "type": "object",
        "required": ["file_data", "finetune_comment", "mode"],
        "properties": {
            "file_data": {"type": "string"},
            "finetune_comment": {"type": "string"},
            "trigger_word": {"type": "string", "default": "TOK"},
            "mode": {"type": "string", "enum": ["general", "character", "style", "product"]},
            "iterations": {"type": "integer", "minimum": 100, "maximum": 1000, "default": 300},
            "learning_rate": {"anyOf": [{"type": "number", "minimum": 1e-6, "maximum": 0.005}, {"type": "null"}]},
            "captioning": {"type": "boolean", "default": True},
            "priority": {"type": "string", "enum": ["speed", "quality", "high_res_only"], "default": "quality"},
            "finetune_type": {"type": "string", "enum": ["lora", "full"], "default": "full"},
            "lora_rank": {"type": "integer", "enum": [16, 32], "default": 32},
            "webhook_url": {
                "anyOf": [{"type": "string", "format": "uri", "minLength": 1, "maxLength": 2083}, {"type": "null"}]
            },
            "webhook_secret": OPTIONAL_TEXT,
        },
    },
    "FinetuneDetailResponse": {
        "type": "object",
        "required": ["finetune_details"],
        "properties": {"finetune_details": {"type": "object"}},
    },
    "MyFinetunesResponse": {
        "type": "object",
        "required": ["finetunes"],
        "properties": {"finetunes": {"type": "array", "items": {}}},
    },
    "DeleteFinetuneInputs": {
        "type": "object",
        "required": ["finetune_id"],
        "properties": {"finetune_id": {"type": "string"}},
    },
    "DeleteFinetuneResponse": {
        "type": "object",
        "required": ["status", "message", "deleted_finetune_id", "timestamp"],
        "properties": {
            "status": {"type": "string"},
            "message": {"type": "string"},
            "deleted_finetune_id": {"type": "string"},
            "timestamp": {"type": "string"},
        },
    },
    "ResultResponse": {
        "type": "object",
        "required": ["id", "status"],
        "properties": {
            "id": {"type": "string"},
            "status": STATUS,
            "result": {},
            "progress": {"anyOf": [{"type": "number"}, {"type": "null"}]},
            "details": OPTIONAL_OBJECT,
            "preview": OPTIONAL_OBJECT,
        },
    },
    "ValidationError": FAULT,
    "HTTPValidationError": {
        "type": "object",
        "properties": {"detail": {"type": "array", "items": FAULT}},
    },
}

# Path, method, what comes in, what goes out, whether a 422 is declared.
OPERATIONS = [
    ("/v1/finetune", "post", "FinetuneInputs", None, True),
    ("/v1/finetune_details", "get", "finetune_id", "FinetuneDetailResponse", True),
    ("/v1/get_result", "get", "id", "ResultResponse", True),
    ("/v1/my_finetunes", "get", None, "MyFinetunesResponse", False),
    ("/v1/delete_finetune", "post", "DeleteFinetuneInputs", "DeleteFinetuneResponse", True),
]
OURS = ["/healthz", "/v1/finetune_file", "/v1/finetune_need"]


@pytest.fixture
async def description(api: httpx.AsyncClient) -> dict[str, Any]:
    answer = await api.get("/openapi.json")
    assert answer.status_code == 200
    described: dict[str, Any] = answer.json()
    return described


def meaning(schema: Any, schemas: dict[str, Any]) -> Any:
    """A schema without what says nothing about the wire: words, empty defaults, the order of a list of words."""
    if isinstance(schema, list):
        return [meaning(item, schemas) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return meaning(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    kept = {
        key: meaning(value, schemas)
        for key, value in schema.items()
        if key not in ("title", "description", "properties")
    }
    if "properties" in schema:
        kept["properties"] = {name: meaning(value, schemas) for name, value in schema["properties"].items()}
    if kept.get("additionalProperties") is True:
        del kept["additionalProperties"]
    if kept.get("default", 0) in (None, []):
        del kept["default"]
    for unordered in ("enum", "required"):
        if unordered in kept:
            kept[unordered] = sorted(kept[unordered])
    # Anything or null is anything.
    return {} if {} in kept.get("anyOf", []) else kept


@pytest.mark.parametrize("name", SCHEMAS)
async def test_a_schema_says_what_bfl_said(description: dict[str, Any], name: str) -> None:
    """Clients made for BFL's API must find the same fields, bounds, enums, defaults and required lists."""
    schemas = description["components"]["schemas"]

    assert meaning(schemas[name], schemas) == meaning(SCHEMAS[name], SCHEMAS)


@pytest.mark.parametrize(("path", "method", "given", "answered", "can_refuse"), OPERATIONS)
async def test_an_operation_takes_and_gives_what_bfl_said(
    description: dict[str, Any], path: str, method: str, given: str | None, answered: str | None, can_refuse: bool
) -> None:
    """Schemas are worth nothing if the operations do not name them."""
    operation = description["paths"][path][method]

    parameters = [
        item["name"] for item in operation.get("parameters", []) if item["in"] == "query" and item["required"]
    ]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {}).get("$ref")
    taken = [*parameters, *([body.rpartition("/")[2]] if body else [])]
    success = operation["responses"]["200"]["content"]["application/json"]["schema"].get("$ref")
    assert taken == ([given] if given else [])
    assert (success and success.rpartition("/")[2]) == answered
    assert ("422" in operation["responses"]) is can_refuse
    assert operation["operationId"] == f"{path.rpartition('/')[2]}{path.replace('/', '_')}_{method}"


async def test_the_description_has_bfl_s_operations_ours_and_the_key(description: dict[str, Any]) -> None:
    """Whoever reads it must not look for more, must see what is not BFL's, and must learn where the key goes."""
    key = {"type": "apiKey", "in": "header", "name": "x-key"}

    paths = description["paths"]
    operations = {path: operation for path, item in paths.items() for operation in item.values()}
    assert sorted(paths) == sorted([*OURS, *(path for path, *_ in OPERATIONS)])
    assert sorted(path for path, operation in operations.items() if operation["tags"] == ["Not BFL's"]) == OURS
    assert description["components"]["securitySchemes"] == {"APIKeyHeader": key}
    assert "security" not in operations.pop("/healthz")
    assert all(operation["security"] == [{"APIKeyHeader": []}] for operation in operations.values())
