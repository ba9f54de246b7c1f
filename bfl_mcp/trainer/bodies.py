"""The bodies of requests, read with bounded memory: uploads go to disk, and an archive is never parsed as JSON."""

import binascii
import secrets
from io import BytesIO
from typing import BinaryIO, Final, TypeVar

import anyio.to_thread
import pydantic
from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel

from bfl_mcp.contract import FinetuneInputs

_BLOCK_BYTES: Final = 1 << 20
# What JSON unfolds to in memory is bounded by parsing no more of it than this: some of it takes twenty times its size.
MAX_JSON_BYTES: Final = 1 << 20
# Four characters of base64 are three bytes. Decoding holds the interpreter's lock, so it is done in pieces.
_DECODED_AT_A_TIME: Final = 4 << 18
_NOT_ALONE: Final = (
    f"Value error, file_data is not base64, or the request holds more than {MAX_JSON_BYTES >> 20} MB beside it"
)
_Model = TypeVar("_Model", bound=BaseModel)


async def receive(request: Request, file: BinaryIO, max_bytes: int, note: str = "") -> None:
    """Write the request's body to disk, so that waiting uploads need no memory."""
    announced = request.headers.get("content-length", "0")
    size = int(announced) if announced.isdecimal() else 0
    block = bytearray()
    if size <= max_bytes:
        size = 0
        async for part in request.stream():
            size += len(part)
            block += part
            if size > max_bytes:
                break
            if len(block) >= _BLOCK_BYTES:
                await anyio.to_thread.run_sync(file.write, block)
                block = bytearray()
    if size > max_bytes:
        raise HTTPException(
            413,
            f"The request has {size / 1e6:.1f} MB or more; this trainer takes at most {max_bytes / 1e6:g} MB{note}.",
        )
    await anyio.to_thread.run_sync(file.write, block)


def read_inputs(upload: BinaryIO) -> tuple[FinetuneInputs, BytesIO]:
    """Read the parameters and the archive. In a long body `file_data` is not parsed, only found."""
    upload.seek(0)
    body = upload.read()
    if len(body) <= MAX_JSON_BYTES:
        inputs = parse(FinetuneInputs, body)
        return inputs, _decode(inputs.file_data)
    start, end = _find_longest_string(body)
    mark = secrets.token_hex()
    if len(body) - (end - start) > MAX_JSON_BYTES:
        raise invalid("value_error", "file_data", _NOT_ALONE)
    inputs = parse(FinetuneInputs, body[:start] + mark.encode() + body[end:])
    if inputs.file_data != mark:
        raise invalid("value_error", "file_data", _NOT_ALONE)
    # Some encoders escape the slashes. One byte is found at once where two take a fifth of a second.
    escaped = b"\\" in body
    return inputs, _decode(body[start:end].replace(b"\\/", b"/") if escaped else memoryview(body)[start:end])


def _find_longest_string(body: bytes) -> tuple[int, int]:
    """Where the longest run between two quotation marks stands. Looks no further once the rest is too long anyway."""
    longest, beside = (0, 0), 0
    before = body.find(b'"')
    while before >= 0 and beside <= MAX_JSON_BYTES:
        after = body.find(b'"', before + 1)
        run = (before + 1, after if after >= 0 else len(body))
        shorter, longest = sorted((longest, run), key=lambda span: span[1] - span[0])
        beside += 1 + shorter[1] - shorter[0]
        before = after
    return longest


def parse(model: type[_Model], body: bytes) -> _Model:
    try:
        return model.model_validate_json(body)
    except pydantic.ValidationError as error:
        raise RequestValidationError(
            [
                {**fault, "loc": ("body", *fault["loc"])}
                for fault in error.errors(include_url=False, include_input=False)
            ]
        ) from None


def _decode(file_data: str | bytes | memoryview) -> BytesIO:
    archive = BytesIO()
    try:
        for start in range(0, len(file_data), _DECODED_AT_A_TIME):
            piece = file_data[start : start + _DECODED_AT_A_TIME]
            decoded = binascii.a2b_base64(piece, strict_mode=True)
            if len(decoded) * 4 != len(piece) * 3 and start + len(piece) < len(file_data):
                raise ValueError("padding in the middle")
            archive.write(decoded)
    except ValueError:
        raise invalid("value_error", "file_data", "Value error, file_data is not base64") from None
    archive.seek(0)
    return archive


def invalid(kind: str, field: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"type": kind, "loc": ("body", field), "msg": message}])
