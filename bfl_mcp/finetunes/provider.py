"""Who answers the API, and what that means for a dataset."""

from dataclasses import dataclass
from typing import Final

from bfl_mcp.config import Settings, is_bfl_host, is_training_installed
from bfl_mcp.contract import BFL_MAX_IMAGES, MAX_IMAGES

HOW_TO_TRAIN_FOR_REAL: Final = (
    "To train for real, install this server with its extra [train] on a machine with an NVIDIA or AMD GPU; or run "
    "`bfl-mcp trainer` on such a machine, and set BFL_API_URL and BFL_API_KEY here to its address and key. The README "
    "shows both under 'Train on your own GPU'."
)


@dataclass(frozen=True, slots=True)
class Provider:
    """Whose server trains. `url` is None for the trainer inside this process."""

    url: str | None
    name: str
    max_images: int
    max_upload_bytes: int | None = None
    """Largest request body it takes, where that is known before asking."""
    practice: bool | None = None
    """Whether it only goes through the motions, where that is known before asking."""

    @property
    def is_bfl(self) -> bool:
        return self.url is not None and is_bfl_host(self.url)


def choose_provider(settings: Settings) -> Provider:
    """The provider the settings name: BFL with a key, any server with a URL, else the trainer inside this process."""
    url = settings.provider_url
    if url is None:
        limit = int(settings.max_upload_mb * 1_000_000)
        return Provider(None, "the trainer inside this server", MAX_IMAGES, limit, practice=_only_practises(settings))
    if is_bfl_host(url):
        return Provider(url, f"Black Forest Labs ({url})", BFL_MAX_IMAGES)
    return Provider(url, f"the server at {url}", MAX_IMAGES)


def _only_practises(settings: Settings) -> bool | None:
    """Whether the trainer inside this process trains nothing; None where only a look at the GPU tells."""
    if settings.engine == "auto":
        return None if is_training_installed() else True
    return settings.engine == "practice"
