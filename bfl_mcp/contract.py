"""Black Forest Labs' finetuning API as published: requests, answers, bounds, defaults, hosts.

This module is the only place where a field, bound, enum or default of that API is written. The tools' schemas inherit
from it, the client serialises it, the trainer validates with it. Requests are strict; answers are read leniently: every
key is optional unless the API cannot work without it, unknown keys are kept, unknown words are kept verbatim.

Source, where nothing else is named: BFL's OpenAPI description of 2025 (title "BFL API", version 0.0.1), the last one
with `POST /v1/finetune`, and BFL's finetuning guide of the same year.
"""

import math
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic import ValidationError as Invalid
from pydantic_core.core_schema import ValidationInfo

# --- hosts ------------------------------------------------------------------------------------------------------------

BFL_API_URL: Final = "https://api.bfl.ai"
"""The host that BFL's API description of 2026 names for the finetune operations."""

BFL_DOMAIN: Final = "bfl.ai"

BFL_RETIRED_HOSTS: Final = frozenset({"api.us1.bfl.ai", "api.eu1.bfl.ai"})
"""The only hosts that trained in 2025. Observed 2026-06-16: they resolve, and connections to them time out."""

BFL_TRAINING_CLOSED_ON: Final = "2025-10-31"
"""Announced 2025-10-03 in BFL's release notes. Observed 2026-06-16: `POST /v1/finetune` answers 404 on every live
host."""

# --- the dataset, as BFL's guide describes it -------------------------------------------------------------------------

BFL_MAX_IMAGES: Final = 20
"""Documented range 1-20. Observed February 2025: 21 and more came back as `Request Moderated` without a reason."""

BFL_MAX_MEGAPIXELS: Final = 1.0
"""Documented: larger pictures are accepted, the extra pixels bring nothing."""

MEGAPIXEL: Final = 1024 * 1024
"""What one megapixel is to image models: a picture of 1024 × 1024 is left as it is. Not BFL's."""

MIN_IMAGES: Final = 1

MAX_IMAGES: Final = 1000
"""What our trainer takes, and what is assumed of providers other than BFL. Not BFL's."""

MAX_CAPTION_BYTES: Final = 64_000
"""Long captions have some thousand characters; text encoders read some hundred. Not BFL's."""

MAX_REPLACED_CAPTION_BYTES: Final = 4 * MAX_CAPTION_BYTES
"""A caption file above it is not written over: it could not be kept to be brought back. Not BFL's."""

MAX_TRIGGER_WORD_CHARACTERS: Final = 100
"""It is a word. Not BFL's."""

MAX_COMMENT_CHARACTERS: Final = 500
"""It is a name. Not BFL's."""

MAX_ID_CHARACTERS: Final = 500
"""Ids seen have 36. Not BFL's."""

MAX_PATH_CHARACTERS: Final = 4096
"""What Linux takes. Not BFL's."""

MAX_IMAGE_FILE_BYTES: Final = 128_000_000
"""A JPEG of as many pixels as are read has less; decoders read a file to its end whatever is in it. Not BFL's."""

# --- prices -----------------------------------------------------------------------------------------------------------

BFL_TRAINING_PRICES_USD: Final = ((149, 2.0), (500, 4.0), (1000, 6.0))
"""Most iterations, and the price up to there. Source: BFL's pricing page of 2025, the last one with trainings."""

# --- errors -----------------------------------------------------------------------------------------------------------

NOT_AUTHENTICATED: Final = "Not authenticated"
"""403 without a key. Source: BFL's agent skills."""

INVALID_KEY: Final = "Not authenticated - Invalid Authentication"
"""403 with a wrong key. Observed August 2025."""

FINETUNE_NOT_FOUND: Final = "Finetune not found or access denied"
"""404 of `finetune_details`. Observed 2026-09-21."""

# --- POST /v1/finetune ------------------------------------------------------------------------------------------------

Mode = Literal["general", "character", "style", "product"]
Priority = Literal["speed", "quality", "high_res_only"]
FinetuneType = Literal["full", "lora"]
LoraRank = Literal[16, 32]

DEFAULT_LEARNING_RATE: Final[dict[str, float]] = {"full": 1e-5, "lora": 1e-4}
"""What a null `learning_rate` means, by `finetune_type`."""


MIN_ITERATIONS: Final = 100
MAX_ITERATIONS: Final = 1000


class TrainingParameters(BaseModel):
    """What `POST /v1/finetune` lets the customer choose, apart from the images."""

    finetune_comment: str = Field(
        description="Name of the finetune: the only human name it will have, e.g. 'red teapot, first try'.",
    )
    mode: Mode = Field(
        description="What the images teach, which steers automatic captions: general is the whole picture."
    )
    trigger_word: str = Field(
        default="TOK", description="Word that stands for the new concept in captions, and later in prompts."
    )
    iterations: int = Field(
        default=300,
        ge=MIN_ITERATIONS,
        le=MAX_ITERATIONS,
        description="Training steps. 100-150 for a quick look, more for complex concepts.",
    )
    # Source for the rates behind null: the guide's final text; an earlier one gave 1e-5 for both types.
    learning_rate: float | None = Field(
        default=None,
        ge=1e-6,
        le=5e-3,
        allow_inf_nan=False,
        description="Step size. Leave out for 1e-5 with full, 1e-4 with lora.",
    )
    captioning: bool = Field(default=True, description="Let the provider write captions for images.")
    # `high_res_only` joined the enum in February 2025 and is explained nowhere.
    priority: Priority = Field(default="quality", description="speed trains faster; quality is the default.")
    finetune_type: FinetuneType = Field(
        default="full", description="full trains all weights, then extracts a LoRA; lora trains an adapter directly."
    )
    lora_rank: LoraRank = Field(default=32, description="Rank of the LoRA, 16 or 32. 16 trains and loads faster.")


class FinetuneInputs(TrainingParameters):
    """The whole body of `POST /v1/finetune`. Unknown fields are ignored, as at BFL."""

    # A refusal must not repeat the archive, which can be hundreds of megabytes of base64.
    model_config = ConfigDict(hide_input_in_errors=True)

    file_data: str = Field(description="Base64 of a ZIP with the images and, optionally, caption files.", repr=False)
    webhook_url: HttpUrl | None = Field(default=None, description="Where to send a notification.")
    webhook_secret: str | None = Field(default=None, description="Secret for the notification.", repr=False)


class FinetuneCreated(BaseModel):
    """The answer to a start, `{"finetune_id": "<uuid4>"}` as observed; BFL's own sample prints it as `id`."""

    model_config = ConfigDict(extra="allow")

    finetune_id: str = Field(min_length=1)
    engine: str | None = None
    """Only our trainer sends it: what trains, `practice` where nothing does."""

    @model_validator(mode="before")
    @classmethod
    def _read_id(cls, body: Any) -> Any:
        # An id that was sent is an id that was paid for: no oddity beside it may cost it.
        if not isinstance(body, dict):
            return body
        engine = body.get("engine")
        found = (_read_id(body.get(name)) for name in ("finetune_id", "id"))
        return {
            **body,
            "finetune_id": next(filter(None, found), ""),
            "engine": engine if isinstance(engine, str) else None,
        }


# --- LoRAs from elsewhere, at BFL -------------------------------------------------------------------------------------

BFL_BASE_MODELS: Final = ("flux-2-klein-base-4b", "flux-2-klein-base-9b")
"""Base models our trainer trains for and BFL's dashboard takes LoRAs of, as in `/v1/flux-2-klein-base-4b-finetuned`.
The form (Customization → Finetunes → + Add Finetune) wants a Name of small letters, digits, `-` and `_`, the Base
Model, the Precision (FP8), the Trigger Phrase and the file. Documented 2026 in BFL's guide to klein LoRAs."""

# --- what our trainer adds; none of it is BFL's -----------------------------------------------------------------------

NEED_FAULT: Final = "need"
"""Type of the faults in a 422 of our trainer about what a training takes and what is not there."""

TRAINER_HEADER: Final = "x-bfl-mcp-trainer"
"""Our trainer puts it on every answer, with its version."""

DEFAULT_MODEL: Final = "black-forest-labs/FLUX.2-klein-base-4B"
"""What it trains, as a name at the Hugging Face hub. Apache-2.0."""

DEFAULT_CAPTIONER: Final = "Qwen/Qwen3-VL-2B-Instruct"
"""What it writes captions with. Apache-2.0."""

MIN_MAX_PX: Final = 64
"""A picture of fewer pixels a side is a few tokens, and teaches nothing."""

TRAINING_PACKAGES: Final = ("torch", "diffusers", "transformers", "peft", "safetensors")
"""What the extra `[train]` installs, and the engine `flux2` imports."""

Engine = Literal["practice", "flux2"]
"""What our trainer trains with: `practice` trains nothing."""


class TrainerNeedInputs(TrainingParameters):
    """The body of `POST /v1/finetune_need`: a start without its images."""

    images: int = Field(ge=MIN_IMAGES, le=MAX_IMAGES, description="How many images would be sent.")


class TrainerNeed(BaseModel):
    """What a training would take at our trainer, and whether it has that."""

    model_config = ConfigDict(extra="allow")

    engine: str = Field(description="What would train: practice trains nothing.")
    fits: bool = Field(description="Whether it would be started.")
    sentence: str = Field(description="What it takes and what is there; where it does not fit, what to change.")


class _Lenient(BaseModel):
    """Facts that are an addition: one that makes no sense is as good as none, and never costs the others."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    @field_validator("*", mode="wrap")
    @classmethod
    def _read_or_default(cls, value: object, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        try:
            return read(value)
        except Invalid:
            return cls.model_fields[info.field_name or ""].get_default(call_default_factory=True)


class CaptionsUsed(_Lenient):
    """The captions a finetune was trained with."""

    count: int | None = None
    written: int | None = None
    """How many of them the trainer's captioner wrote."""
    first: list[str] = []


class TrainerDetails(_Lenient):
    """What our trainer's `finetune_details` tell beside BFL's. Any server may answer so: the texts are foreign."""

    engine: str | None = None
    state: str | None = None
    doing: str | None = None
    """The stage in words, while it trains."""
    queue_position: float | None = None
    seconds_left: float | None = None
    base_model: str | None = None
    seed: int | None = None
    loss_first: float | None = None
    loss_last: float | None = None
    kept_energy: float | None = None
    """Share of a full training that its LoRA holds, 0-1."""
    captions_used: CaptionsUsed = CaptionsUsed()
    lora: str | None = None
    """Where it lies: an absolute path, or below `FILE_PATH` at the trainer's address."""
    files: dict[str, str] = {}
    """Every file of the outcome, and where it lies, told the same way."""


FILE_PATH: Final = "/v1/finetune_file"
"""Gives one file of a ready finetune, by `finetune_id` and `name`. Wants the key."""


# --- GET /v1/finetune_details -----------------------------------------------------------------------------------------


class FinetuneDetailResponse(BaseModel):
    """Parameters of the training plus other metadata. There is no status in it.

    Seen in typed clients of 2025: finetune_comment, trigger_word, mode, iterations, learning_rate, priority,
    finetune_type, lora_rank, timestamp.
    """

    finetune_details: dict[str, Any]


# --- GET /v1/get_result -----------------------------------------------------------------------------------------------

# `Reasoning` and `Generating` since September 2026.
STATUSES: Final = (
    "Task not found",
    "Pending",
    "Request Moderated",
    "Content Moderated",
    "Ready",
    "Error",
    "Reasoning",
    "Generating",
)

# `Failed` was never in the enum; BFL's own sample loops test for it beside `Error`.
FAILED_STATUSES: Final = frozenset({"Error", "Failed", "Request Moderated", "Content Moderated"})

StatusResponse = Annotated[str, WithJsonSchema({"type": "string", "enum": list(STATUSES), "title": "StatusResponse"})]
"""A word of BFL's enum when sent; any word when read."""


class ResultResponse(BaseModel):
    """A task as `get_result` tells it. For a finetune the task id is the `finetune_id`."""

    model_config = ConfigDict(extra="allow")

    id: str
    status: StatusResponse
    result: Any = None
    progress: float | None = None
    details: dict[str, Any] | None = None
    preview: dict[str, Any] | None = None

    @field_validator("progress", mode="before")
    @classmethod
    def _read_progress(cls, value: object) -> object:
        # Documented as a number or null; anything else is no reason to lose the status beside it.
        return finite_number(value)

    @field_validator("details", "preview", mode="before")
    @classmethod
    def _read_object(cls, value: object) -> object:
        return value if isinstance(value, dict) or value is None else {"error": value}


# --- the rest ---------------------------------------------------------------------------------------------------------


class MyFinetunesResponse(BaseModel):
    """The account's finetunes. Items are untyped in the description; observed: plain id strings."""

    finetunes: list[Any]

    @property
    def finetune_ids(self) -> list[str]:
        """The ids, from strings or from objects with `finetune_id` or `id`; items without one are left out."""
        return [identifier for item in self.finetunes if (identifier := _read_id(item))]


def _read_id(value: object) -> str:
    """An id from a text, a number or an object that holds one; empty where there is none."""
    if isinstance(value, dict):
        return _read_id(value.get("finetune_id")) or _read_id(value.get("id"))
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**MAX_ID_CHARACTERS:
        return str(value)
    return value if isinstance(value, str) and len(value) <= MAX_ID_CHARACTERS else ""


def finite_number(value: object) -> float | None:
    """A number an API sent, or None where it is none that can be counted with: JSON readers let NaN and 1e999 pass."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


class DeleteFinetuneInputs(BaseModel):
    """The body of `POST /v1/delete_finetune`."""

    finetune_id: str = Field(description="Id of the finetune to delete.")


class DeleteFinetuneResponse(BaseModel):
    """The answer to a deletion. Documented; no real one was ever recorded, so our client relies on none of it."""

    status: str
    message: str
    deleted_finetune_id: str
    timestamp: str


class CreditsResponse(BaseModel):
    """What the account has left. One credit is US$ 0.01."""

    credits: float


class ValidationError(BaseModel):
    """One fault of a 422. BFL sends `input`, `ctx` and `url` too; `input` repeats the whole upload."""

    loc: list[str | int]
    msg: str
    type: str


class HTTPValidationError(BaseModel):
    """The body of a 422."""

    detail: list[ValidationError] = Field(default_factory=list)
