"""The base model from a hub: bytes told, only what is needed, nothing twice, and sentences for what goes wrong."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer.flux2.hub import REPOSITORY, Hub, hub
from tests.trainer.flux2.work import Models
from tests.trainer.processes import REPOSITORY as HERE

pytest.importorskip("torch")
pytest.importorskip("diffusers")

pytestmark = pytest.mark.timeout(120)

# The library reads its settings when it is imported: a process for each download.
PROGRAM = """
import json, sys
from bfl_mcp.trainer.engines import TrainingError
from bfl_mcp.trainer.engines.flux2.download import find_base_model
told = []
try:
    folder = str(find_base_model(sys.argv[1], lambda *bytes: told.append(bytes)))
except TrainingError as error:
    folder = f"TrainingError: {error}"
print(json.dumps([folder, told]))
"""


@pytest.fixture
def model_hub(models: Models) -> Iterator[Hub]:
    with hub(models.klein) as running:
        yield running


def download(name: str, home: Path, url: str) -> tuple[str, list[list[int]]]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name],
        cwd=HERE,
        env=environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folder, told = json.loads(done.stdout.splitlines()[-1])
    return folder, told


def test_a_repository_is_downloaded_once_and_its_bytes_are_told(model_hub: Hub, models: Models, tmp_path: Path) -> None:
    """Sixteen gigabytes take an hour: a person wants to see them come, and to see them come once."""
    (models.klein / "all-of-it.safetensors").write_bytes(b"twice the download")
    try:
        folder, told = download(REPOSITORY, tmp_path, model_hub.url)
        first = model_hub.sent.copy()
        again, told_again = download(REPOSITORY, tmp_path, model_hub.url)
    finally:
        (models.klein / "all-of-it.safetensors").unlink()

    weights = list(models.klein.rglob("*.safetensors"))
    assert again == folder
    assert all((Path(folder) / path.relative_to(models.klein)).stat().st_size for path in weights)
    assert "all-of-it.safetensors from 0" not in first
    assert "transformer/diffusion_pytorch_model.safetensors from 0" in first
    assert model_hub.sent == first
    total = sum(path.stat().st_size for path in models.klein.rglob("*") if path.is_file())
    assert told[-1] == [total, total]
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told_again == [] or told_again[-1] == [0, 0]


def test_a_download_that_was_cut_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Networks go away in eight gigabytes; what has come must not come again."""
    repository = tmp_path / "repository"
    (repository / "transformer").mkdir(parents=True)
    (repository / "model_index.json").write_text('{"_class_name": "Flux2KleinPipeline"}', encoding="utf-8")
    content = os.urandom(25_000_000)
    (repository / "transformer" / "weights.safetensors").write_bytes(content)

    with hub(repository) as running:
        running.cut_after_bytes = 15_000_000
        folder, told = download(REPOSITORY, tmp_path / "home", running.url)

    assert (Path(folder) / "transformer" / "weights.safetensors").read_bytes() == content
    [again] = [line for line in running.sent if not line.endswith(" from 0")]
    assert int(again.removeprefix("transformer/weights.safetensors from ")) >= 10_000_000
    assert told[-1][0] == told[-1][1] == len(content) + (repository / "model_index.json").stat().st_size


def test_a_gated_model_is_told_from_one_that_is_not_there(model_hub: Hub, tmp_path: Path) -> None:
    """The first wants a licence accepted and a token, the second another name."""
    gated, _ = download("somebody/gated", tmp_path, model_hub.url)
    missing, _ = download("somebody/nothing", tmp_path, model_hub.url)

    assert gated.startswith("TrainingError: 'somebody/gated' is gated: accept its licence")
    assert "HF_TOKEN" in gated
    assert missing.startswith("TrainingError: 'somebody/nothing' is neither a folder here nor a repository of the hub")
    assert "BFL_TRAINER_MODEL" in missing


def test_a_hub_that_cannot_be_reached_leaves_what_is_here(model_hub: Hub, tmp_path: Path) -> None:
    """Once downloaded, a model needs no network; before, the sentence says what to do without one."""
    before, _ = download(REPOSITORY, tmp_path / "empty", "http://127.0.0.1:1")
    folder, _ = download(REPOSITORY, tmp_path / "full", model_hub.url)
    after, _ = download(REPOSITORY, tmp_path / "full", "http://127.0.0.1:1")

    assert before.startswith(f"TrainingError: '{REPOSITORY}' is not on this machine, and the hub cannot be reached.")
    assert after == folder
