"""Who answers the API, and what that means for a dataset."""

from dataclasses import dataclass

from bfl_mcp.config import Settings, is_bfl_host
from bfl_mcp.contract import BFL_MAX_IMAGES, MAX_IMAGES


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
        return Provider(None, "the trainer inside this server", MAX_IMAGES, limit, practice=True)
    if is_bfl_host(url):
        return Provider(url, f"Black Forest Labs ({url})", BFL_MAX_IMAGES)
    return Provider(url, f"the server at {url}", MAX_IMAGES)
