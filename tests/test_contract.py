"""The contract: bounds, enums and defaults as BFL published them."""

import pytest
from pydantic import ValidationError

from bfl_mcp.contract import FinetuneCreated, FinetuneInputs, MyFinetunesResponse, ResultResponse, TrainerDetails

REQUIRED = {"file_data": "UEs=", "finetune_comment": "cats", "mode": "general"}


def test_the_defaults_are_those_of_bfl() -> None:
    """A client that sends nothing else must get what BFL's guide promises."""
    inputs = FinetuneInputs.model_validate(REQUIRED)

    assert inputs.model_dump(exclude=set(REQUIRED)) == {
        "trigger_word": "TOK",
        "iterations": 300,
        "learning_rate": None,
        "captioning": True,
        "priority": "quality",
        "finetune_type": "full",
        "lora_rank": 32,
        "webhook_url": None,
        "webhook_secret": None,
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mode", "general"), ("mode", "character"), ("mode", "style"), ("mode", "product"),
        ("iterations", 100), ("iterations", 1000),
        ("learning_rate", 1e-6), ("learning_rate", 5e-3), ("learning_rate", None),
        ("priority", "speed"), ("priority", "quality"), ("priority", "high_res_only"),
        ("finetune_type", "full"), ("finetune_type", "lora"),
        ("lora_rank", 16), ("lora_rank", 32),
        ("webhook_url", "https://example.com/" + "a" * 2063),
        ("unheard_of", 1),
    ],
)  # fmt: skip
def test_what_bfl_takes_is_taken(field: str, value: object) -> None:
    """Both ends of every range, every word of every enum, and unknown fields."""
    FinetuneInputs.model_validate({**REQUIRED, field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mode", "face"), ("mode", None),
        ("iterations", 99), ("iterations", 1001), ("iterations", 300.5), ("iterations", None),
        ("learning_rate", 9e-7), ("learning_rate", 5.1e-3),
        ("priority", "fast"), ("finetune_type", "qlora"), ("lora_rank", 24), ("lora_rank", 64),
        ("webhook_url", "ftp://example.com"), ("webhook_url", "https://example.com/" + "a" * 2064),
    ],
)  # fmt: skip
def test_what_bfl_refuses_is_refused(field: str, value: object) -> None:
    """One step beyond each bound."""
    with pytest.raises(ValidationError) as caught:
        FinetuneInputs.model_validate({**REQUIRED, field: value})

    assert caught.value.errors()[0]["loc"][0] == field


@pytest.mark.parametrize("missing", sorted(REQUIRED))
def test_three_fields_are_required(missing: str) -> None:
    """file_data, finetune_comment and mode have no default."""
    with pytest.raises(ValidationError):
        FinetuneInputs.model_validate({name: value for name, value in REQUIRED.items() if name != missing})


def test_the_archive_is_in_no_repr_and_no_error() -> None:
    """It can be hundreds of megabytes of base64, and somebody's pictures."""
    inputs = FinetuneInputs.model_validate({**REQUIRED, "file_data": "SECRET" * 9, "webhook_secret": "hush"})
    with pytest.raises(ValidationError) as caught:
        FinetuneInputs.model_validate({**REQUIRED, "file_data": ["SECRET"]})

    assert "SECRET" not in repr(inputs)
    assert "hush" not in repr(inputs)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "body", [{"finetune_id": "a"}, {"id": "a"}, {"finetune_id": "a", "id": "b", "polling_url": "c"}]
)
def test_a_start_is_read_from_either_name(body: dict[str, str]) -> None:
    """Observed as `finetune_id`; printed as `id` by BFL's sample."""
    assert FinetuneCreated.model_validate(body).finetune_id == "a"


def test_unknown_status_words_and_keys_are_kept() -> None:
    """BFL added two words within a year."""
    result = ResultResponse.model_validate({"id": "a", "status": "Daydreaming", "cost": 4})

    assert result.status == "Daydreaming"
    assert result.model_extra == {"cost": 4}


def test_ids_come_from_strings_and_objects() -> None:
    """The list's items are untyped."""
    assert MyFinetunesResponse(finetunes=["a", {"id": "b"}, None]).finetune_ids == ["a", "b"]


def test_what_our_trainer_adds_is_read_as_far_as_it_makes_sense() -> None:
    """The details are anybody's: a fact that is none must not cost the others, nor pass for one."""
    details = TrainerDetails.model_validate(
        {
            "engine": 3,
            "doing": ["captioning"],
            "seconds_left": 10**400,
            "loss_first": float("nan"),
            "loss_last": 0.5,
            "kept_energy": True,
            "captions_used": {"count": "12", "written": 5, "first": ["a", 1]},
            "files": {"lora.safetensors": 1},
            "lora": "/data/lora.safetensors",
            "unheard_of": {},
        }
    )

    told = details.model_dump(exclude_defaults=True)
    assert told == {"loss_last": 0.5, "captions_used": {"written": 5}, "lora": "/data/lora.safetensors"}
    assert TrainerDetails.model_validate({"captions_used": 1, "files": []}) == TrainerDetails()
