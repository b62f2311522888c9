"""The `[providers.replicate]` table, the token, and that nobody gets to see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fleek.core.errors import ConfigurationError
from fleek.providers.base import OpenProvider, Provider, ProviderUnavailable
from fleek.providers.replicate import ReplicateProvider
from fleek.providers.replicate_config import ReplicateConfig

SECRET = "r8_abcdefghijklmnop"


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REPLICATE_API_TOKEN", raising=False)


def test_a_token_in_the_environment_is_all_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLICATE_API_TOKEN", f" {SECRET}\n")

    provider = ReplicateProvider.from_config({})

    assert isinstance(provider, Provider)
    assert provider.capabilities.paid
    assert ReplicateConfig.read({}).load_token().get_secret_value() == SECRET
    assert ReplicateConfig.read({}).base_url == "https://api.replicate.com/v1"


@pytest.mark.parametrize(
    "table", [{}, {"allow_any": True}, {"base_url": "http://127.0.0.1:1/v1"}, {"token": ""}]
)
def test_without_a_token_the_provider_says_what_it_needs(table: dict[str, Any]) -> None:
    with pytest.raises(ProviderUnavailable, match="needs a token: set REPLICATE_API_TOKEN"):
        ReplicateProvider.from_config(table)


def test_the_tables_token_goes_before_its_file_and_the_file_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPLICATE_API_TOKEN", "from-environment")
    file = tmp_path / "token"
    file.write_text("from-file\n")

    assert ReplicateConfig.read({"token_file": str(file)}).load_token().get_secret_value() == "from-file"
    both = ReplicateConfig.read({"token_file": str(file), "token": "from-table"})
    assert both.load_token().get_secret_value() == "from-table"


def test_a_token_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for file in (tmp_path / "nothing", tmp_path):
        with pytest.raises(ConfigurationError, match=r"providers\.replicate\.token_file: cannot read"):
            ReplicateConfig.read({"token_file": str(file)}).load_token()
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="it is not text"):
        ReplicateConfig.read({"token_file": str(tmp_path / "binary")}).load_token()


@pytest.mark.parametrize("token", ["r8 abc", "r8\nabc", "r8ä", "r8\tabc"])
def test_a_token_that_no_header_can_carry_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ConfigurationError, match="only visible ASCII") as caught:
        ReplicateConfig.read({"token": token}).load_token()

    assert token not in caught.value.message
    assert not isinstance(caught.value, ProviderUnavailable)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"tokne": SECRET},
            r"providers\.replicate\.tokne: Extra inputs are not permitted \(known keys: base_url",
        ),
        ({"allow_any": "perhaps"}, r"providers\.replicate\.allow_any: "),
        ({"token": [SECRET]}, r"providers\.replicate\.token: "),
        ({"base_url": "replicate"}, r"providers\.replicate\.base_url: must be an address"),
        ({"base_url": "ftp://x/v1"}, "must be an address"),
        ({"base_url": "https://"}, "must be an address"),
        ({"base_url": f"https://x:{SECRET}@y/v1"}, "must be an address"),
        ({"base_url": "https://x/v1?a=1"}, "must be an address"),
        ({"base_url": "https://x/v1#a"}, "must be an address"),
        ({"base_url": "http://[::1"}, "must be an address"),
        ({"base_url": "http://fake.internal/v1"}, r"providers\.replicate: base_url must begin with https"),
        ({"allow_hosts": ["10.0.0.0/99"]}, r"providers\.replicate\.allow_hosts: '10\.0\.0\.0/99' is neither"),
    ],
)
def test_a_wrong_key_is_named_and_its_value_is_not(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        ReplicateConfig.read(table)

    assert SECRET not in caught.value.message


@pytest.mark.parametrize(
    "table",
    [
        {"base_url": "https://proxy.example.com/replicate/v1/"},
        {"base_url": "http://127.0.0.1:8080/v1"},
        {"base_url": "http://[::1]:8080/v1"},
        {"base_url": "http://localhost/v1"},
        {"base_url": "http://fake.internal/v1", "allow_hosts": "fake.internal"},
        {"base_url": "http://10.1.2.3/v1", "allow_hosts": ["10.0.0.0/8"]},
    ],
)
def test_an_address_near_or_encrypted_or_allowed_is_taken(table: dict[str, Any]) -> None:
    assert not ReplicateConfig.read(table).base_url.endswith("/")


def test_variables_of_the_environment_arrive_as_text() -> None:
    config = ReplicateConfig.read({"allow_any": "true", "allow_hosts": "minio.internal, 10.0.0.0/8"})

    assert config.allow_any is True
    assert config.allow_hosts == ("minio.internal", "10.0.0.0/8")
    assert config.allowed.names("minio.internal")


def test_undeclared_models_are_accepted_only_where_the_operator_allows_them() -> None:
    careful = ReplicateProvider.from_config({"token": SECRET})
    generous = ReplicateProvider.from_config({"token": SECRET, "allow_any": "true"})

    assert isinstance(careful, OpenProvider)
    assert (careful.accepts_undeclared, generous.accepts_undeclared) == (False, True)
    assert generous.accepts("black-forest-labs/flux-schnell")
    assert not generous.accepts("flux-schnell")


def test_no_representation_shows_the_token() -> None:
    provider = ReplicateProvider.from_config({"token": SECRET})

    shown = repr(
        [provider, vars(provider), vars(provider._api), vars(provider._api._client), vars(provider._fetcher)]
    )

    assert "SecretStr" in shown
    assert SECRET not in shown
    assert SECRET not in repr(ReplicateConfig.read({"token": SECRET}))
