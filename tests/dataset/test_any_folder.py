"""Any folder becomes an archive that three programs take, or a refusal that names every fault; nothing in between."""

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from io import BytesIO
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ImageStat

if sys.platform != "linux":
    pytest.skip("names of any bytes are Linux's", allow_module_level=True)

from bfl_mcp.contract import MEGAPIXEL
from bfl_mcp.dataset.archive import Archive, pack_dataset
from bfl_mcp.dataset.folder import read_dataset
from bfl_mcp.errors import DatasetError, quote_name
from tests.dataset.folders import Picture, Plan, plans
from tests.dataset.made import decode
from tests.trainer.archives import start
from tests.trainer.processes import names, serving

_EXAMPLES = 1000
_FOLDER_NAMES = ("photos", "photos ", " 'photos'", '"', "ph\no\u202etos", "~", "\udcff")


def as_it_is(folder: Path) -> dict[str, object]:
    """Everything in a folder that a careless program could change."""
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else None
        found[str(path)] = (status.st_mode, status.st_mtime_ns, status.st_ino, content)
    return found


def pack(folder: Path, max_images: int, max_megapixels: float) -> tuple[Archive, bytes]:
    archive = pack_dataset(read_dataset(folder), max_images=max_images, max_megapixels=max_megapixels)
    with closing(archive):
        return archive, archive.file.read()


def matching(sentences: list[str], expected: list[tuple[str, str]]) -> list[str]:
    """Take each expected sentence out, once; what is left. Fails on one that is missing."""
    left = list(sentences)
    for name, pattern in expected:
        wanted = re.compile(re.escape(f"{quote_name(name)}: ") + pattern)
        found = next((sentence for sentence in left if wanted.match(sentence)), None)
        assert found is not None, (name, pattern, sentences)
        left.remove(found)
    return left


def check_refusal(plan: Plan, error: DatasetError, max_images: int) -> None:
    """Every fault that was planted is named, and no other."""
    left = list(error.faults)
    expected = list(plan.faults)
    count = len(plan.pictures)
    if count > max_images:
        words = f"It holds {count} images; this provider trains on 1 to {max_images}: remove {count - max_images}."
        left.remove(words)
    if count <= 2 * max_images:
        expected += plan.broken
    if not plan.pictures and not plan.faults:
        left.remove("It holds no image that can be read (JPEG, PNG, WebP, AVIF, HEIC, BMP, GIF or TIFF).")
    left = matching(left, expected)
    guessed = {quote_name(name) for name, picture in plan.pictures.items() if picture.size is None}
    assert all(any(fault.startswith(f"{name}: it ") for name in guessed) for fault in left), left
    assert all(f"- {fault}" in str(error) for fault in error.faults)
    assert error.faults
    assert "Nothing was sent or charged" in str(error)


def check_archive(plan: Plan, archive: Archive, data: bytes, max_megapixels: float) -> dict[str, bytes]:
    """What lies in it, after a look at every entry: numbered in order, each picture itself, each caption its own."""
    with zipfile.ZipFile(BytesIO(data)) as opened:
        assert opened.testzip() is None
        entries = [(entry.filename, opened.read(entry)) for entry in opened.infolist()]
    left = iter(entries)
    for number, (_, picture) in enumerate(plan.in_order(), start=1):
        name, content = next(left)
        assert re.fullmatch(rf"{number:03}\.(jpg|png|webp)", name)
        check_picture(picture, content, max_megapixels)
        if picture.caption is not None:
            assert next(left) == (f"{number:03}.txt", picture.caption.encode())
    assert list(left) == []
    assert archive.images == len(plan.pictures)
    assert archive.captions == sum(picture.caption is not None for picture in plan.pictures.values())
    assert (archive.size_bytes, archive.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert not matching([f"{item.name}: {item.reason}" for item in archive.skipped], plan.skipped)
    return dict(entries)


def check_picture(picture: Picture, content: bytes, max_megapixels: float) -> None:
    image = decode(content)
    assert image.mode == "RGB"
    if max_megapixels:
        assert image.width * image.height <= max(max_megapixels * MEGAPIXEL, image.width, image.height)
    if picture.size is None:
        return
    width, height = picture.size
    if not max_megapixels or width * height <= max_megapixels * MEGAPIXEL:
        assert image.size == (width, height)
    assert all(abs(value - picture.grey) <= 8 for value in ImageStat.Stat(image).mean)


def unzips(data: bytes, place: Path) -> bool:
    place.write_bytes(data)
    return (
        subprocess.run([shutil.which("unzip") or "", "-tqq", place], capture_output=True, check=False).returncode == 0
    )


@contextmanager
def trainer(data: Path) -> Iterator[Callable[[bytes], dict[str, bytes]]]:
    """Sends an archive to our trainer, over HTTP, and gives the dataset it made. No worker: its lock is taken."""
    data.mkdir()
    with FileLock(data / "worker-0.lock"), serving(data) as server, server.client() as client:

        def train(archive: bytes) -> dict[str, bytes]:
            answer = client.post("/v1/finetune", json=start(archive))
            assert answer.status_code == 200, answer.text
            [finetune_id] = names(data / "finetunes")
            dataset = data / "finetunes" / finetune_id / "dataset"
            found = {path.name: path.read_bytes() for path in dataset.iterdir()}
            assert client.post("/v1/delete_finetune", json={"finetune_id": finetune_id}).status_code == 200
            return found

        yield train


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # what Pillow only mentions is no fault
@pytest.mark.timeout(240)
def test_any_folder_is_packed_well_or_refused_with_every_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """People point at folders as they are. A fault that is not named is looked for in vain, one that is not found is
    trained on, and an archive that only we can read is paid for in vain."""
    counts: Counter[str] = Counter()

    with trainer(tmp_path / "data") as train:

        @settings(
            max_examples=_EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )
        @given(
            plans(),
            st.sampled_from(_FOLDER_NAMES),
            st.sampled_from((20, 20, 20, 3, 1)),
            st.sampled_from((1.0, 1.0, 0, 0.001)),
        )
        def check(plan: Plan, folder_name: str, max_images: int, max_megapixels: float) -> None:
            counts["folders"] += 1
            with tempfile.TemporaryDirectory(dir=tmp_path) as place:
                folder = Path(place) / folder_name
                plan.write(folder)
                before = as_it_is(folder)
                try:
                    archive, data = pack(folder, max_images, max_megapixels)
                except DatasetError as error:
                    check_refusal(plan, error, max_images)
                    counts["refused"] += 1
                    counts["faults"] += len(error.faults)
                else:
                    assert not plan.faults
                    assert not plan.broken
                    assert 0 < len(plan.pictures) <= max_images
                    entries = check_archive(plan, archive, data, max_megapixels)
                    assert pack(folder, max_images, max_megapixels)[1] == data
                    assert unzips(data, Path(place) / "out.zip")
                    assert train(data) == entries
                    counts["packed"] += 1
                assert as_it_is(folder) == before

        check()

    with capsys.disabled():
        sys.stdout.write(
            f"\n{counts['folders']} folders: {counts['packed']} packed, {counts['refused']} refused "
            f"for {counts['faults']} faults\n"
        )
    assert counts["folders"] >= _EXAMPLES
    assert min(counts["packed"], counts["refused"]) >= _EXAMPLES // 6
