"""What a training takes: the table, models in folders, and the sentence where there is too little."""

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bfl_mcp.contract import DEFAULT_CAPTIONER, DEFAULT_MODEL
from bfl_mcp.trainer import needs
from bfl_mcp.trainer.needs import (
    FULL_PX,
    GIB,
    SPEED_PX,
    Asked,
    Present,
    check_need,
    choose_plan,
    describe_need,
    estimate_download_bytes,
    estimate_need,
    list_plans,
)
from bfl_mcp.trainer.shapes import KLEIN_4B, KLEIN_9B, Shape, find_shape, read_shape

NINE = DEFAULT_MODEL.replace("4B", "9B")
ASKED = Asked("full", "quality", 32, True, 12, DEFAULT_MODEL, DEFAULT_CAPTIONER)


def present(gpu: float | None, disk: float = 500, download: float = 500, *, one_disk: bool = False) -> Present:
    gpu_bytes = None if gpu is None else int(gpu * GIB)
    return Present(gpu_bytes, "NVIDIA GeForce RTX 4070", int(disk * GIB), int(download * GIB), one_disk)


def write_weights(path: Path, shapes: dict[str, list[int]]) -> None:
    """The head of a safetensors file, which is all that is looked at."""
    entries: dict[str, Any] = {
        name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()
    }
    head = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(head).to_bytes(8, "little") + head)


def write_model(folder: Path, layers: int = 36) -> Path:
    """A model in two files a part, whose text encoder has more layers than are read, and a head."""
    config = {"num_layers": 2, "num_single_layers": 4, "num_attention_heads": 4, "attention_head_dim": 32}
    write_weights(folder / "transformer" / "a-00001.safetensors", {"x_embedder.weight": [128, 64]})
    write_weights(folder / "transformer" / "a-00002.safetensors", {"proj_out.weight": [64, 128]})
    text = {f"model.layers.{number}.mlp.weight": [100, 10] for number in range(layers)}
    others = {"model.embed_tokens.weight": [50, 10], "model.norm.weight": [10], "lm_head.weight": [50, 10]}
    write_weights(folder / "text_encoder" / "b.safetensors", {**text, **others})
    (folder / "transformer" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "text_encoder" / "config.json").write_text('{"hidden_size": 10}', encoding="utf-8")
    return folder


# --- the table --------------------------------------------------------------------------------------------------------


def rows() -> Iterable[tuple[Shape, list[str]]]:
    lines = (needs.__doc__ or "").splitlines()
    for name, shape in (("4B", KLEIN_4B), ("9B", KLEIN_9B)):
        [line] = [line for line in lines if line.split()[:1] == [name]]
        yield shape, re.findall(r"[\d.]+ – [\d.]+", line)


def test_the_table_in_the_docstring_is_what_is_reckoned() -> None:
    """People read the table, programs the functions; they must say the same."""
    for shape, cells in rows():
        reckoned = []
        for kind in ("lora", "full"):
            for priority, pixels in (("quality", FULL_PX), ("speed", SPEED_PX)):
                sizes = [plan.need_bytes / GIB for plan in list_plans(shape, kind, priority, 32, pixels)]  # type: ignore[arg-type]
                reckoned.append(f"{min(sizes):.1f} – {max(sizes):.1f}")
        assert cells == reckoned


def test_the_usual_cards_train_what_bfl_s_guide_says() -> None:
    """12 GB for a LoRA of the 4B and 24 GB for one of the 9B, as the guide to FLUX.2 [klein] has it."""
    assert not check_need(replace(ASKED, finetune_type="lora"), present(11.6))
    assert not check_need(replace(ASKED, finetune_type="lora", model=NINE), present(23.6))
    assert not check_need(ASKED, present(23.6))


def test_the_fastest_way_that_fits_is_chosen() -> None:
    """Pictures together before blocks kept: a larger batch is worth more than what checkpointing costs."""
    plans = list_plans(KLEIN_4B, "lora", "speed", 32, SPEED_PX)

    chosen = [choose_plan(plans, size * GIB) for size in (80, 24, 16, 11)]

    assert [plan and (plan.batch_size, plan.gradient_checkpointing) for plan in chosen] == [
        (4, False),
        (4, True),
        (4, True),
        None,
    ]
    on_cpu = choose_plan(plans, None)
    assert on_cpu is not None
    assert on_cpu.batch_size == 1


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (DEFAULT_MODEL, KLEIN_4B),
        (NINE, KLEIN_9B),
        ("somebody/flux2-KLEIN-base-4b-copy", KLEIN_4B),
        ("black-forest-labs/FLUX.2-dev", None),
        ("somebody/flux-4B", None),
        ("no/folder/of/this/machine", None),
    ],
)
def test_a_model_at_the_hub_is_known_by_its_name(name: str, shape: Shape | None) -> None:
    """Before the download nothing else is known of it; what has another name is not guessed."""
    assert find_shape(name) == shape


def test_of_a_model_in_a_folder_only_the_layers_that_are_read_count(tmp_path: Path) -> None:
    """Eight of 36 layers and the head are never loaded: a quarter of the text encoder."""
    folder = write_model(tmp_path / "model")

    shape = read_shape(folder)

    assert shape == Shape(2, 4, 128, 2 * 128 * 64, 28 * 1000 + 500 + 10, 10)
    assert find_shape(str(folder)) == shape


@pytest.mark.parametrize("spoiled", ["transformer/config.json", "text_encoder/b.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100, b"\x02" + bytes(7) + b"[]", b"[" * 3000])
def test_a_folder_that_is_no_model_has_no_shape(tmp_path: Path, spoiled: str, content: bytes) -> None:
    """The engine says what is wrong with it; the check beforehand must not fail on it."""
    folder = write_model(tmp_path / "model")
    (folder / spoiled).write_bytes(content)

    shape = find_shape(str(folder))

    assert shape is None or shape.text_encoder_parameters == 0


def test_only_what_is_not_there_yet_is_to_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second finetune needs no second download, and the rest of a broken one less; folders need none."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    blobs = tmp_path / "hub" / "models--black-forest-labs--FLUX.2-klein-base-4B" / "blobs"
    whole = estimate_download_bytes(DEFAULT_MODEL, DEFAULT_CAPTIONER)
    blobs.mkdir(parents=True)

    with (blobs / "half.incomplete").open("wb") as file:
        file.truncate(9_000_000_000)
    rest = estimate_download_bytes(DEFAULT_MODEL, None)
    with (blobs / "more").open("wb") as file:
        file.truncate(9_000_000_000)

    assert (whole, rest) == (20_300_000_000, 7_000_000_000)
    assert estimate_download_bytes(DEFAULT_MODEL, None) == 0
    assert estimate_download_bytes(str(tmp_path), str(tmp_path)) == 0


# --- too little -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "gpu", "remedy"),
    [
        ({}, 12, 'It fits with finetune_type="lora" (11.3 GiB); or take a GPU with more memory.'),
        ({}, 18.5, 'finetune_type="lora" (11.3 GiB) or priority="speed" (18.2 GiB) or BFL_TRAINER_MAX_PX=704 (18.5'),
        ({}, 8, 'Not even finetune_type="lora" with priority="speed" fits, which takes 11.3 GiB: take a GPU'),
        ({"finetune_type": "lora"}, 8, "No other choice takes less: take a GPU with at least 11.3 GiB."),
        (
            {"finetune_type": "lora", "model": NINE},
            21.25,
            'It fits with priority="speed" (21.0 GiB) or BFL_TRAINER_MAX_',
        ),
        ({"model": NINE}, 20, f"It fits with BFL_TRAINER_MODEL={DEFAULT_MODEL} (19.2 GiB)"),
    ],
)
def test_a_card_too_small_is_told_need_present_and_only_remedies_that_fit(
    change: dict[str, Any], gpu: float, remedy: str
) -> None:
    """A remedy that does not help sends people round in circles."""
    asked = replace(ASKED, **change)

    [shortage] = check_need(asked, present(gpu))

    assert shortage.field == ("finetune_type" if asked.finetune_type == "full" else "priority")
    assert f'finetune_type="{asked.finetune_type}" with priority="quality" takes' in shortage.sentence
    assert f"NVIDIA GeForce RTX 4070 has {int(gpu * 10) / 10} GiB." in shortage.sentence
    assert remedy in shortage.sentence


@pytest.mark.parametrize("gpu", [8, 11.5, 16, 18.5, 19.1, 20.9, 24, 40, 41])
@pytest.mark.parametrize("model", [DEFAULT_MODEL, NINE])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_every_remedy_that_is_named_does_fit(gpu: float, model: str, kind: Any) -> None:
    """Held against the very check that refused."""
    asked = replace(ASKED, model=model, finetune_type=kind)
    fields = {"finetune_type": "finetune_type", "priority": "priority"}

    for shortage in check_need(asked, present(gpu)):
        for name, value in re.findall(r'(\w+)="?([\w./-]+)"? \(', shortage.sentence.partition("It fits with")[2]):
            field = fields.get(name, name.removeprefix("BFL_TRAINER_").lower())
            changes: dict[str, Any] = {field: int(value) if field == "max_px" else value}
            remedied = replace(asked, **changes)
            assert not check_need(remedied, present(gpu)), shortage.sentence


def test_too_little_disk_is_told_beside_too_little_memory() -> None:
    """Whoever frees the one must not meet the other on the next try."""
    memory, disk = check_need(ASKED, present(12, disk=5))

    assert "GPU memory" in memory.sentence
    assert "take 29.2 GiB in the trainer's data folder; 5.0 GiB are free." in disk.sentence
    assert 'finetune_type="lora" takes 1.1 GiB in place of 29.2 GiB' in disk.sentence


def test_downloads_count_on_the_disk_they_go_to() -> None:
    """Two things that fit alone need not fit together on one disk."""
    asked = replace(ASKED, finetune_type="lora")

    assert not check_need(asked, present(24, disk=5, download=20))
    [elsewhere] = check_need(asked, present(24, disk=50, download=10))
    [together] = check_need(asked, present(24, disk=19.5, download=19.5, one_disk=True))

    assert "models to download take 19.0 GiB in the hub's cache (HF_HOME); 10.0 GiB are free" in elsewhere.sentence
    assert "takes 20.0 GiB of disk; 19.5 GiB are free" in together.sentence


def test_on_a_cpu_and_for_an_unknown_model_only_the_disk_is_checked() -> None:
    """Nobody counts the memory of the one, nobody knows the need of the other."""
    unknown = replace(ASKED, model="somebody/unheard-of")

    assert not check_need(ASKED, present(None))
    assert not check_need(unknown, present(1))
    assert "on the CPU" in describe_need(ASKED, present(None))
    assert "not known beforehand" in describe_need(unknown, present(1))


def test_more_and_larger_pictures_take_more() -> None:
    """What is asked for must count: images on the disk, pixels and rank in memory."""
    usual = estimate_need(ASKED)

    assert estimate_need(replace(ASKED, images=1000)).work_bytes - usual.work_bytes > 7 * GIB
    assert estimate_need(replace(ASKED, max_px=256)).gpu_bytes < usual.gpu_bytes  # type: ignore[operator]
    assert estimate_need(replace(ASKED, finetune_type="lora", rank=16)).work_bytes < usual.work_bytes
    assert usual.download_bytes - estimate_need(replace(ASKED, captioning=False)).download_bytes == 4_300_000_000
