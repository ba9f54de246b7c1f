"""The configuration: what the environment says, and what is refused before anything starts."""

import os
from pathlib import Path

import pytest

from bfl_mcp.config import Settings, is_bfl_host, is_loopback, is_training_installed, read_settings
from bfl_mcp.contract import DEFAULT_CAPTIONER, DEFAULT_MODEL, TRAINING_PACKAGES
from bfl_mcp.errors import ConfigError


def test_nothing_set_means_the_trainer_inside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without key and URL the server needs no network; empty is unset, as hosts send it."""
    for name in ("BFL_API_KEY", "BFL_API_URL", "BFL_MCP_HOME", "BFL_MCP_MAX_MEGAPIXELS"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)

    settings = read_settings()

    assert settings.provider_url is None
    assert settings.max_megapixels == 1.0
    assert settings.home.is_relative_to(tmp_path)


def test_nothing_set_trains_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """The open 4B model, with whatever GPU is there."""
    for name in ("ENGINE", "MODEL", "CAPTIONER", "MAX_PX", "KEY"):
        monkeypatch.setenv(f"BFL_TRAINER_{name}", "")

    settings = read_settings()

    assert (settings.engine, settings.max_px, settings.trainer_key) == ("auto", None, None)
    assert (settings.model, settings.captioner) == (DEFAULT_MODEL, DEFAULT_CAPTIONER)


@pytest.mark.parametrize(
    ("named", "read"),
    [
        (" black-forest-labs/FLUX.2-klein-base-9B\n", "black-forest-labs/FLUX.2-klein-base-9B"),
        ("/models/klein base", "/models/klein base"),
        ("~/klein", "{home}/klein"),
    ],
)
@pytest.mark.parametrize("variable", ["BFL_TRAINER_MODEL", "BFL_TRAINER_CAPTIONER"])
def test_a_model_is_a_name_at_the_hub_or_a_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, named: str, read: str
) -> None:
    """Weights come from the hub, or lie on a disk already."""
    monkeypatch.setenv(variable, named)

    settings = read_settings()

    assert {"BFL_TRAINER_MODEL": settings.model, "BFL_TRAINER_CAPTIONER": settings.captioner}[variable] == read.format(
        home=tmp_path
    )


@pytest.mark.parametrize("value", ["https://huggingface.co/a/b", "a/b/c", "klein", "../a", "a/ b", "-a/b", "a/.b"])
def test_what_names_no_model_is_refused_in_words(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """A wrong name would otherwise be found out an hour later, by the worker."""
    monkeypatch.setenv("BFL_TRAINER_MODEL", value)

    with pytest.raises(ConfigError, match=r"BFL_TRAINER_MODEL: name it as at the Hugging Face hub.*whole path"):
        read_settings()


@pytest.mark.parametrize("pixels", ["63", "-1", "512.5", "big"])
def test_too_few_pixels_to_train_with_are_refused(monkeypatch: pytest.MonkeyPatch, pixels: str) -> None:
    """The least is what tests train with."""
    monkeypatch.setenv("BFL_TRAINER_MAX_PX", pixels)

    with pytest.raises(ConfigError, match="BFL_TRAINER_MAX_PX"):
        read_settings()


def test_whether_training_is_installed_is_told_without_importing_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """torch takes a second to import, and a host waits for the tool list."""
    for name in TRAINING_PACKAGES:
        (tmp_path / "site" / name).mkdir(parents=True)
        (tmp_path / "site" / name / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path / "site")

    assert is_training_installed()


def test_a_key_alone_means_bfl(monkeypatch: pytest.MonkeyPatch) -> None:
    """The documented host of 2026."""
    monkeypatch.setenv("BFL_API_KEY", "test-key")

    assert read_settings().provider_url == "https://api.bfl.ai"


@pytest.mark.parametrize("pasted", ["test-key\n", " test-key ", '"test-key"', "'test-key'"])
def test_a_key_is_read_as_people_paste_it(monkeypatch: pytest.MonkeyPatch, pasted: str) -> None:
    """Quotes and line breaks come along with copy and paste."""
    monkeypatch.setenv("BFL_API_KEY", pasted)

    key = read_settings().api_key

    assert key is not None
    assert key.get_secret_value() == "test-key"


@pytest.mark.parametrize("variable", ["BFL_API_KEY", "BFL_TRAINER_KEY"])
@pytest.mark.parametrize("key", ["test key", "test\nkey", "tëst-key", "test\x07key"])
def test_a_key_that_cannot_be_one_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, key: str, variable: str
) -> None:
    """A broken header or a leaked key would be the alternatives."""
    monkeypatch.setenv(variable, key)

    with pytest.raises(ConfigError, match=variable) as caught:
        read_settings()

    assert key not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://localhost:1/", "http://[::1]:2", "https://a.example"])
def test_http_is_for_this_machine_https_for_all(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Loopback needs no certificate."""
    monkeypatch.setenv("BFL_API_URL", url)

    assert read_settings().provider_url == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    ["HTTPS://API.BFL.AI", "https://api.bfl.ai:443/", "https://api.bfl.ai./v1", "https://Api.Bfl.ai/v1/"],
)
def test_one_server_has_one_address(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """The journal tells providers apart by it: another spelling must not open the door to a second start."""
    monkeypatch.setenv("BFL_API_URL", url)

    assert read_settings().provider_url == "https://api.bfl.ai"


def test_allowed_folders_are_the_home_directory_or_what_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Several at once, with `~`; a flag on the command line wins."""
    assert read_settings().allowed_dirs == (tmp_path,)

    monkeypatch.setenv("BFL_MCP_ALLOWED_DIRS", f"~/cats{os.pathsep} /data ")
    assert read_settings().allowed_dirs == (tmp_path / "cats", Path("/data"))
    assert read_settings(BFL_MCP_ALLOWED_DIRS=("/only",)).allowed_dirs == (Path("/only"),)


@pytest.mark.parametrize(
    "variable",
    [
        "BFL_API_URL",
        "BFL_MCP_HOME",
        "BFL_MCP_ALLOWED_DIRS",
        "BFL_MCP_MAX_MEGAPIXELS",
        "BFL_MCP_CONFIRM_SPEND",
        "BFL_MCP_SPEND_LIMIT_USD",
        "BFL_MCP_SETTLE_SECONDS",
        "BFL_TRAINER_PRACTICE_SECONDS",
        "BFL_TRAINER_MAX_UPLOAD_MB",
        "BFL_TRAINER_ENGINE",
        "BFL_TRAINER_MODEL",
        "BFL_TRAINER_CAPTIONER",
        "BFL_TRAINER_MAX_PX",
    ],
)
def test_a_key_in_the_wrong_variable_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """Hosts show standard error in logs that people send around."""
    monkeypatch.setenv(variable, "bfl-0123456789abcdef")

    with pytest.raises(ConfigError, match=variable) as caught:
        read_settings()

    assert "0123456789abcdef" not in str(caught.value)


def test_the_endpoint_part_of_a_url_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """People paste `…/v1` from the documentation."""
    monkeypatch.setenv("BFL_API_URL", "https://gpu.example/flux/v1/")

    assert read_settings().provider_url == "https://gpu.example/flux"


@pytest.mark.parametrize(
    "url",
    [
        "http://gpu.example", "http://10.0.0.7:8000", "http://127.0.0.1.evil.example", "ftp://gpu.example",
        "gpu.example", "https://", "https://user:pass@gpu.example", "https://gpu.example/?a=b", "https://gpu.example:port",
        "https://[::1", "https://api.bfl.ai/bfl-0123456789abcdef",
    ],
)  # fmt: skip
def test_addresses_that_could_leak_or_fail_are_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Over http anyone on the way could read the key and the images."""
    monkeypatch.setenv("BFL_API_URL", url)

    with pytest.raises(ConfigError, match="BFL_API_URL"):
        read_settings()


def test_a_key_in_the_wrong_variable_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts write standard error into log files."""
    monkeypatch.setenv("BFL_API_URL", "bfl_sk_4711")

    with pytest.raises(ConfigError) as caught:
        read_settings()

    assert "4711" not in str(caught.value)


def test_all_faults_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody restarts a host once for each mistake."""
    monkeypatch.setenv("BFL_MCP_MAX_MEGAPIXELS", "-1")
    monkeypatch.setenv("BFL_TRAINER_PRACTICE_SECONDS", "soon")
    monkeypatch.setenv("BFL_TRAINER_MAX_UPLOAD_MB", "1e308")
    monkeypatch.setenv("BFL_MCP_HOME", "~nobody-of-this-name/flux")

    with pytest.raises(ConfigError) as caught:
        read_settings()

    assert str(caught.value).count("\n- BFL_") == 4


def test_the_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not every host expands `~`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BFL_MCP_HOME", "~/flux")

    assert read_settings().home == tmp_path / "flux"


def test_the_key_is_in_no_repr() -> None:
    """Settings end up in logs and tracebacks."""
    settings = Settings.model_validate({"BFL_API_KEY": "test-key", "BFL_TRAINER_KEY": "test-key"})

    assert "test-key" not in repr(settings) + str(settings) + settings.model_dump_json()


@pytest.mark.parametrize(
    ("url", "bfl"),
    [
        ("https://api.bfl.ai", True), ("https://API.US1.BFL.AI/", True), ("https://api.bfl.ai.", True),
        ("https://bfl.ai.evil.example", False), ("https://notbfl.ai", False), ("http://127.0.0.1", False),
    ],
)  # fmt: skip
def test_bfl_is_known_by_its_domain(url: str, bfl: bool) -> None:
    """Limits, prices and the probe depend on it."""
    assert is_bfl_host(url) is bfl


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.1:1", True), ("http://127.9.9.9", True), ("http://[::1]", True), ("http://localhost", True),
        ("http://localhost.evil.example", False), ("http://0.0.0.0", False), ("http://192.168.0.1", False),
    ],
)  # fmt: skip
def test_loopback_is_this_machine_only(url: str, loopback: bool) -> None:
    """http is allowed there and nowhere else."""
    assert is_loopback(url) is loopback
