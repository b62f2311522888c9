"""What compose tells the processes: where the services are, their secrets, and who may reach them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests import compose
from tests.compose import ROOT, WHOLE

from fleek.api.middleware import allowed_host_names
from fleek.cli.listen import require_safe_host
from fleek.core.errors import ConfigurationError
from fleek.settings import PREFIX, Settings, load_settings

OURS = ("migrate", "storage-init", "api", "worker")
ALL = compose.services()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and none of the settings of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith((PREFIX, "AWS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _settings_of(service: str, dotenv: Path | None = None, **shell: str) -> Settings:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in compose.environment_of(service, shell, dotenv).items():
            patch.setenv(name, value)
        return load_settings()


def _dotenv(folder: Path, text: str) -> Path:
    path = folder / "compose.env"
    path.write_text(text)
    return path


@pytest.mark.parametrize("service", OURS)
@pytest.mark.parametrize("has_env_file", [False, True])
def test_the_processes_find_the_services_that_compose_starts(
    service: str, has_env_file: bool, folder: Path
) -> None:
    example = _dotenv(folder, (ROOT / ".env.example").read_text()) if has_env_file else None
    settings = _settings_of(service, example)

    for url, expected in (
        (settings.resolved_database_url, "postgres"),
        (settings.resolved_redis_url, "redis"),
        (settings.storage_endpoint or "", "localstack"),
    ):
        address = urlsplit(url)
        assert address.hostname == expected
        assert str(address.port) == _container_port(expected)
    password = urlsplit(settings.resolved_database_url).password
    assert password == ALL["postgres"]["environment"]["POSTGRES_PASSWORD"]
    assert settings.secret_key is None


def _container_port(service: str) -> str:
    return str(ALL[service]["ports"][0]).rpartition(":")[2]


def test_every_process_shares_one_home_and_so_one_secret() -> None:
    homes = {_settings_of(service).home for service in OURS}
    mounts = {mount for service in OURS for mount in ALL[service]["volumes"] if mount.startswith("home:")}

    assert mounts == {f"home:{home}" for home in homes}
    assert len(homes) == 1


def test_the_api_listens_for_its_port_and_answers_to_its_names() -> None:
    settings = _settings_of("api")
    names = allowed_host_names(settings.allowed_hosts, settings.host, settings.public_url)

    assert str(settings.port) == _container_port("api")
    assert {"localhost", "127.0.0.1", "api"} <= names
    assert "*" not in names
    require_safe_host(settings.host, insecure_no_auth=settings.insecure_no_auth)


def test_one_variable_decides_whether_the_api_answers_without_a_key() -> None:
    settings = _settings_of("api", FLEEK_INSECURE_NO_AUTH="false")

    with pytest.raises(ConfigurationError, match="FLEEK_INSECURE_NO_AUTH"):
        require_safe_host(settings.host, insecure_no_auth=settings.insecure_no_auth)


def test_the_port_that_needs_no_key_is_reached_from_this_machine_only() -> None:
    published = {
        name: port.rpartition(":")[0] for name, service in ALL.items() for port in service.get("ports", ())
    }

    assert published == {
        "api": "127.0.0.1:8000",
        "postgres": "127.0.0.1:5469",
        "redis": "127.0.0.1:6834",
        "localstack": "127.0.0.1:4566",
    }


def test_clients_reach_the_bucket_where_signed_urls_lead() -> None:
    address = urlsplit(_settings_of("api").storage_public_endpoint or "")
    moved = urlsplit(_settings_of("api", LOCALSTACK_PORT="4600").storage_public_endpoint or "")
    published = compose.services(WHOLE, {"LOCALSTACK_PORT": "4600"})["localstack"]["ports"]

    assert (address.hostname, address.port) == ("localhost", 4566)
    assert [f"127.0.0.1:{moved.port}:4566"] == published


@pytest.mark.parametrize(
    ("given", "endpoint", "public"),
    [
        ({"FLEEK_STORAGE_ENDPOINT": ""}, None, None),
        ({"FLEEK_STORAGE_ENDPOINT": "https://r2.example"}, "https://r2.example", "https://r2.example"),
        (
            {
                "FLEEK_STORAGE_ENDPOINT": "http://s3:9000",
                "FLEEK_STORAGE_PUBLIC_ENDPOINT": "https://s3.example",
            },
            "http://s3:9000",
            "https://s3.example",
        ),
    ],
)
@pytest.mark.parametrize("is_in_file", [False, True])
def test_two_variables_replace_the_bucket(
    given: Mapping[str, str], endpoint: str | None, public: str | None, is_in_file: bool, folder: Path
) -> None:
    given = {"FLEEK_STORAGE_URL": "s3://mine/pictures", **given}
    if is_in_file:
        text = "".join(f"{name}={value}\n" for name, value in given.items())
        settings = _settings_of("worker", _dotenv(folder, text))
    else:
        settings = _settings_of("worker", None, **given)

    assert settings.storage_url == "s3://mine/pictures"
    assert (settings.storage_endpoint, settings.storage_public_endpoint) == (endpoint, public)


def test_what_is_left_empty_counts_as_not_given(folder: Path) -> None:
    names = "FLEEK_SECRET_KEY", "FLEEK_DATABASE_URL", "FLEEK_REDIS_URL", "REPLICATE_API_TOKEN"
    settings = _settings_of("api", _dotenv(folder, "".join(f"{name}=\n" for name in names)))

    assert settings.secret_key is None
    assert settings.resolved_database_url == _settings_of("api").resolved_database_url


def test_the_keys_of_a_shell_reach_no_container_but_those_of_the_env_file_do(folder: Path) -> None:
    """Who works with AWS has keys in the shell, which are not meant for LocalStack."""
    shell = {"AWS_ACCESS_KEY_ID": "from-the-shell"}
    dotenv = _dotenv(folder, "AWS_ACCESS_KEY_ID=from-the-file\n")

    assert compose.environment_of("api", shell)["AWS_ACCESS_KEY_ID"] == "test"
    assert compose.environment_of("api", shell, dotenv)["AWS_ACCESS_KEY_ID"] == "from-the-file"


def test_no_secret_has_a_default_but_for_what_only_this_machine_reaches() -> None:
    for name in OURS:
        passed = ALL[name]["environment"]

        assert passed["FLEEK_SECRET_KEY"] is None
        assert passed["REPLICATE_API_TOKEN"] is None
        assert passed["SENTRY_DSN"] is None


def test_the_bucket_that_is_made_is_the_one_that_is_used() -> None:
    script = ROOT / "deploy/localstack/ready.d/10-bucket.sh"
    settings = _settings_of("api")

    assert settings.storage_url == f"s3://{ALL['localstack']['environment']['BUCKET']}"
    assert script.stat().st_mode & 0o111 == 0o111, "LocalStack runs it as a program"


def test_the_local_example_fits_the_ports_that_the_services_publish(folder: Path) -> None:
    (folder / ".env.local").write_text((ROOT / ".env.local.example").read_text())
    settings = load_settings()
    found = {
        urlsplit(url).netloc.rpartition("@")[2]
        for url in (
            settings.resolved_database_url,
            settings.resolved_redis_url,
            settings.storage_endpoint or "",
        )
    }

    assert found == {"localhost:5469", "localhost:6834", "localhost:4566"}
    assert settings.storage_url == _settings_of("api").storage_url
    password = urlsplit(settings.resolved_database_url).password
    assert password == ALL["postgres"]["environment"]["POSTGRES_PASSWORD"]
