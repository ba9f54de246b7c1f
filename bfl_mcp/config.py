"""What the person decides: environment variables → `Settings`. Empty means unset; secrets stay secret."""

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from bfl_mcp.contract import (
    BFL_API_URL,
    BFL_DOMAIN,
    BFL_MAX_MEGAPIXELS,
    DEFAULT_CAPTIONER,
    DEFAULT_MODEL,
    MIN_MAX_PX,
    TRAINING_PACKAGES,
    Engine,
)
from bfl_mcp.errors import ConfigError

_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def _default_home() -> Path:
    from platformdirs import user_data_path

    return user_data_path("bfl-mcp", appauthor=False)


class Settings(BaseSettings):
    """The decisions of the person who runs the server, one field for each environment variable."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", hide_input_in_errors=True, frozen=True)

    api_key: SecretStr | None = Field(default=None, validation_alias="BFL_API_KEY")
    api_url: str | None = Field(default=None, validation_alias="BFL_API_URL")
    home: Annotated[Path, NoDecode] = Field(default_factory=_default_home, validation_alias="BFL_MCP_HOME")
    allowed_dirs: Annotated[tuple[Path, ...], NoDecode] = Field(
        default_factory=lambda: (Path.home(),), validation_alias="BFL_MCP_ALLOWED_DIRS"
    )
    """Folders an agent may name lie in one of these, and in no hidden folder below it."""
    max_megapixels: float = Field(
        default=BFL_MAX_MEGAPIXELS, ge=0, allow_inf_nan=False, validation_alias="BFL_MCP_MAX_MEGAPIXELS"
    )
    """Pictures above it are shrunk; 0 keeps every size."""
    confirm_spend: Literal["ask", "never"] = Field(default="ask", validation_alias="BFL_MCP_CONFIRM_SPEND")
    """Whether the person must agree before a start that costs money."""
    spend_limit_usd: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, validation_alias="BFL_MCP_SPEND_LIMIT_USD"
    )
    """The most that starts may cost in any 24 hours, as far as prices are known."""
    settle_seconds: float = Field(default=120.0, ge=0, allow_inf_nan=False, validation_alias="BFL_MCP_SETTLE_SECONDS")
    """How long after a start got lost, and with no trace of it at the provider, it may be sent again."""
    practice_seconds: float = Field(
        default=10.0, gt=0, allow_inf_nan=False, validation_alias="BFL_TRAINER_PRACTICE_SECONDS"
    )
    max_upload_mb: float = Field(default=256.0, gt=0, le=100_000, validation_alias="BFL_TRAINER_MAX_UPLOAD_MB")
    """Largest request body the trainer takes, in megabytes of 1 000 000 bytes. Base64 makes it 4/3 of the archive."""
    engine: Literal["auto", Engine] = Field(default="auto", validation_alias="BFL_TRAINER_ENGINE")
    """What the trainer trains with; `auto` is flux2 where its packages and a GPU are, else practice."""
    model: str = Field(default=DEFAULT_MODEL, validation_alias="BFL_TRAINER_MODEL")
    """The base model: a name at the Hugging Face hub, or a folder."""
    captioner: str = Field(default=DEFAULT_CAPTIONER, validation_alias="BFL_TRAINER_CAPTIONER")
    """What writes captions for images without one: named like the model."""
    max_px: int | None = Field(default=None, ge=MIN_MAX_PX, validation_alias="BFL_TRAINER_MAX_PX")
    """Pictures are trained with no more pixels than a square of this side has."""
    trainer_key: SecretStr | None = Field(default=None, validation_alias="BFL_TRAINER_KEY")
    """What `bfl-mcp trainer` lets customers in by; none has it make one."""

    @field_validator("api_key", "trainer_key", mode="before")
    @classmethod
    def _read_key(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        # Keys arrive by copy and paste, often with the quotes or the line break around them.
        key = value.strip().strip("\"'").strip()
        if not key:
            return None
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError("it holds characters that no API key has; copy the key again")
        return key

    @field_validator("api_url")
    @classmethod
    def _read_url(cls, value: str | None) -> str | None:
        if value is None or not value.strip():
            return None
        return _check_url(value.strip())

    @field_validator("model", "captioner")
    @classmethod
    def _read_model(cls, value: str) -> str:
        name = value.strip()
        if _HUB_NAME.fullmatch(name):
            return name
        try:
            return str(_expand(Path(name)))
        except ValueError:
            # Not shown: it may be a key that was pasted into the wrong variable.
            raise ValueError(
                f"name it as at the Hugging Face hub, like {DEFAULT_MODEL}, or a folder's whole path"
            ) from None

    @field_validator("home")
    @classmethod
    def _expand_home(cls, value: Path) -> Path:
        return _expand(value)

    @field_validator("allowed_dirs", mode="before")
    @classmethod
    def _split_dirs(cls, value: Any) -> Any:
        return [part for part in value.split(os.pathsep) if part.strip()] if isinstance(value, str) else value

    @field_validator("allowed_dirs")
    @classmethod
    def _expand_dirs(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(_expand(path) for path in value)

    @property
    def provider_url(self) -> str | None:
        """Base URL of the configured provider, or None for the trainer inside this process."""
        if self.api_url is not None:
            return self.api_url
        return BFL_API_URL if self.api_key is not None else None


def read_settings(**flags: Any) -> Settings:
    """Read the settings from the environment; flags given on the command line, by their variable's name, win.

    Raises:
        ConfigError: A variable cannot be used. Every fault is named at once, and no value that could be secret.
    """
    try:
        return Settings(**flags)
    except ValidationError as error:
        faults = [
            f"- {'.'.join(map(str, fault['loc']))}: {fault['msg'].removeprefix('Value error, ')}"
            for fault in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        raise ConfigError("\n".join(["The configuration cannot be used:", *faults])) from None


def is_loopback(url: str) -> bool:
    """Whether the URL's host is this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_bfl_host(url: str) -> bool:
    """Whether the URL's host belongs to Black Forest Labs."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    return host == BFL_DOMAIN or host.endswith("." + BFL_DOMAIN)


def is_training_installed() -> bool:
    """Whether the packages of the extra `[train]` are there. Imports none of them."""
    from importlib.util import find_spec

    return all(find_spec(name) is not None for name in TRAINING_PACKAGES)


def _expand(path: Path) -> Path:
    # Hosts start servers anywhere and do not expand `~`.
    try:
        expanded = Path(str(path).strip()).expanduser()
    except RuntimeError:
        raise ValueError("it names an unknown home directory") from None
    if not expanded.is_absolute():
        raise ValueError("it must be an absolute path")
    return expanded


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - reading it is what checks it
    except ValueError:
        raise ValueError("it is no URL; write it like https://api.bfl.ai") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        # Not shown: it may be a key that was pasted into the wrong variable.
        raise ValueError("it is no http(s) URL; write it like https://api.bfl.ai")
    if parts.username or parts.password:
        raise ValueError("it holds a user name or password; put the key into BFL_API_KEY")
    if parts.query or parts.fragment:
        raise ValueError("it must end with the path, without '?' or '#'")
    if parts.scheme == "http" and not is_loopback(url):
        raise ValueError("it needs https: over http the key and the images could be read on the way")
    # One server has one address, however it is written: the journal tells starts apart by it.
    host = parts.hostname.rstrip(".")
    host = f"[{host}]" if ":" in host else host
    default = {"http": 80, "https": 443}[parts.scheme]
    port = "" if parts.port in (None, default) else f":{parts.port}"
    if is_bfl_host(url) and parts.path.rstrip("/") not in ("", "/v1"):
        raise ValueError("BFL's address has no path; write it like https://api.bfl.ai")
    # People paste the address of an endpoint as often as that of the server.
    return f"{parts.scheme}://{host}{port}{parts.path}".rstrip("/").removesuffix("/v1")
