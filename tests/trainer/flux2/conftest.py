"""A tiny base model and a tiny captioner for the whole session, and one finetune of each type trained with them."""

import os
from pathlib import Path

import pytest

# Read when PyTorch is loaded. With a thread for each core, small matrices on a busy machine take thirty times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Whatever a library would like to ask the hub, it is not asked.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tests.trainer.flux2.work import FULL, Done, Models, put, train


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    from tests.trainer.flux2.tiny import build_captioner, build_klein

    folder = tmp_path_factory.mktemp("models")
    return Models(build_klein(folder / "klein"), build_captioner(folder / "captioner"))


@pytest.fixture(scope="session")
def lora(tmp_path_factory: pytest.TempPathFactory, models: Models) -> Done:
    """A finetune of type lora, trained without an interruption."""
    job = put(tmp_path_factory.mktemp("lora"), models)
    return Done(job, train(job))


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory, models: Models) -> Done:
    """A finetune of type full, trained without an interruption."""
    job = put(tmp_path_factory.mktemp("full"), models, **FULL)
    return Done(job, train(job))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"
