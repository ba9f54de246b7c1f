"""The base model and the captioner: a folder on this machine, or a repository of the hub that is brought here once."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from bfl_mcp.errors import quoted
from bfl_mcp.trainer.engines import TrainingError

# The repositories also hold all weights again in one file at the top, for other programs: twice the download.
_BASE_MODEL_FILES: Final = (
    "model_index.json",
    "scheduler/*",
    "text_encoder/*",
    "tokenizer/*",
    "transformer/*",
    "vae/*",
)
_CAPTIONER_FILES: Final = ("*.json", "*.txt", "*.jinja", "*.safetensors", "*.model")
_PIPELINE: Final = "Flux2KleinPipeline"

TellBytes = Callable[[int, int], None]
"""Takes the bytes that are here and those there will be in all, as far as known."""


def find_base_model(name: str, tell: TellBytes) -> Path:
    """Give the folder of a base model, downloading what is missing of it. What was downloaded before is not again.

    Raises:
        TrainingError: It is no FLUX.2 [klein] Base, or cannot be downloaded; the message says what to do.
    """
    folder = _find(name, _BASE_MODEL_FILES, "BFL_TRAINER_MODEL", tell)
    try:
        index = json.loads((folder / "model_index.json").read_bytes())
        found, distilled = index["_class_name"], index.get("is_distilled", False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise TrainingError(
            f"{quoted(name)} holds no diffusers pipeline: its model_index.json is missing or cannot be read. "
            "Name a FLUX.2 [klein] Base folder or repository in BFL_TRAINER_MODEL."
        ) from None
    if found != _PIPELINE:
        raise TrainingError(
            f"{quoted(name)} is a {quoted(found, 60)}, not a {_PIPELINE}. "
            "Name a FLUX.2 [klein] Base model in BFL_TRAINER_MODEL."
        )
    if distilled:
        raise TrainingError(
            f"{quoted(name)} is a distilled model, which training harms. Name its Base model in BFL_TRAINER_MODEL."
        )
    return folder


def find_captioner(name: str, tell: TellBytes) -> Path:
    """Give the folder of a captioner, downloading what is missing of it.

    Raises:
        TrainingError: It cannot be downloaded; the message says what to do.
    """
    return _find(name, _CAPTIONER_FILES, "BFL_TRAINER_CAPTIONER", tell)


def _find(name: str, files: tuple[str, ...], setting: str, tell: TellBytes) -> Path:
    folder = Path(name).expanduser()
    return folder if folder.is_dir() else _download(name, files, setting, tell)


def _download(name: str, files: tuple[str, ...], setting: str, tell: TellBytes) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(name, allow_patterns=list(files), tqdm_class=_bar(tell)))
    except GatedRepoError:
        raise TrainingError(
            f"{quoted(name)} is gated: accept its licence on its page at the hub, then put a read token into HF_TOKEN. "
            "FLUX.2-klein-base-4B needs neither."
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise TrainingError(
            f"{quoted(name)} is neither a folder here nor a repository of the hub that may be read. Set {setting}."
        ) from None
    except LocalEntryNotFoundError:
        raise TrainingError(
            f"{quoted(name)} is not on this machine, and the hub cannot be reached. Start again when it can, or "
            f"download the model elsewhere and name its folder in {setting}."
        ) from None
    except (HfHubHTTPError, OSError) as error:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        reason = "the disk is full" if full else type(error).__name__
        raise TrainingError(
            f"{quoted(name)} could not be downloaded: {reason}. Start again to go on where it stopped, or download it "
            f"elsewhere and name its folder in {setting}."
        ) from None


def _bar(tell: TellBytes) -> type[Any]:
    """A progress bar that shows nothing, and tells the bytes on the disk. The hub makes one for each kind of count."""
    from huggingface_hub.utils import tqdm

    # Only to a kind of its own the hub tells what it counts.
    class Told(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self._counts_bytes = options.pop("name", None) == "huggingface_hub.snapshot_download"
            self._done = 0
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self._done += int(n or 0)
            if self._counts_bytes:
                tell(self._done, int(self.total or 0))

    return Told
