"""Thousands of spoiled archives, over HTTP to a trainer in a process of its own: taken or refused, and nothing else."""

import json
import random
import re
import sys
from collections import Counter
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from PIL import Image

from bfl_mcp.errors import quote_foreign
from tests.trainer.archives import start
from tests.trainer.mutations import KINDS, NEVER_TAKEN, good_draft, mutated
from tests.trainer.processes import names, paths, serving

_EACH = 160
_NAME = re.compile(r"(\d{3,4})\.(jpg|png|webp|txt)")
_FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


def check_refusal(answer: httpx.Response, folder: Path) -> None:
    """One sentence that can be shown as it is, and tells nothing about this machine."""
    [fault] = answer.json()["detail"]
    assert (fault["type"], fault["loc"]) == ("value_error", ["body", "file_data"])
    assert fault["msg"].startswith("Value error, ")
    assert fault["msg"] == quote_foreign(fault["msg"])
    assert str(folder) not in answer.text


def check_dataset(dataset: Path) -> None:
    """What was taken can be trained on: numbered pictures that decode to the last pixel, captions beside them."""
    files = {path.name: path for path in dataset.iterdir()}
    assert all(path.is_file() and not path.is_symlink() for path in files.values())
    found = [match for name in files if (match := _NAME.fullmatch(name))]
    pictures = {match[1]: match[2] for match in found if match[2] != "txt"}
    captions = {match[1] for match in found if match[2] == "txt"}
    assert len(found) == len(files) == len(pictures) + len(captions)
    assert set(pictures) == {f"{number:03}" for number in range(1, len(pictures) + 1)}
    assert captions <= set(pictures)
    for number in captions:
        assert files[f"{number}.txt"].read_text(encoding="utf-8-sig").strip()
    for number, suffix in pictures.items():
        with Image.open(BytesIO(files[f"{number}.{suffix}"].read_bytes()), formats=[_FORMATS[suffix]]) as image:
            image.load()


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # what Pillow only mentions is no fault
@pytest.mark.skipif(sys.platform != "linux", reason="open files and memory are read from /proc")
@pytest.mark.timeout(180)
def test_whatever_happens_to_an_archive_it_is_taken_or_refused(
    data: Path, no_worker: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Archives are damaged in ways nobody lists; none may fail the server, leave anything, or write anywhere else."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    counts: dict[str, Counter[int]] = {kind: Counter() for kind in KINDS}

    with serving(data) as server, server.client() as client:

        def post(archive: bytes) -> httpx.Response:
            return client.post("/v1/finetune", content=json.dumps(start(archive)).encode())

        def take(answer: httpx.Response) -> None:
            finetune_id: str = answer.json()["finetune_id"]
            check_dataset(data / "finetunes" / finetune_id / "dataset")
            assert names(data / "finetunes") == [finetune_id]
            assert client.post("/v1/delete_finetune", json={"finetune_id": finetune_id}).status_code == 200

        take(post(good_draft(random.Random(0)).laid_out()))
        before, open_files, idle = paths(tmp_path), server.open_files(), server.memory_mb("VmRSS")
        for kind, statuses in counts.items():
            for number in range(_EACH):
                answer = post(mutated(kind, number))
                statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    take(answer)
                else:
                    assert answer.status_code == 422, (kind, number, answer.text)
                    check_refusal(answer, tmp_path)
                assert paths(tmp_path) == before, (kind, number)
        grown = server.memory_mb("VmHWM") - idle
        assert server.open_files() <= open_files

    total = sum(counts.values(), Counter[int]())
    with capsys.disabled():
        sys.stdout.write(f"\n{total.total()} archives: {total[200]} taken, {total[422]} refused, +{grown:.0f} MB\n")
        for kind, statuses in counts.items():
            sys.stdout.write(f"  {kind}: {statuses[200]} taken, {statuses[422]} refused\n")
    assert total.total() >= 2000
    assert min(total[200], total[422]) > 500
    assert not [kind for kind in NEVER_TAKEN if counts[kind][200]]
    assert not list(Path("/").glob("bfl-mcp-evil*"))
    assert grown < 500
