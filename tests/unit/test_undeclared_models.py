"""Models that nobody declared: a provider whose operator allows it serves them by their own names."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from tests.unit.test_registry import Declaration, Plugins

from fleek.bootstrap.worker import build_claimer, provider_name
from fleek.core.errors import NotFound
from fleek.db.session import Database
from fleek.jobs.claim import ServedModel
from fleek.observability.metrics import Metrics
from fleek.providers.base import Provider
from fleek.providers.registry import Catalog, build_catalog, load_providers
from fleek.testing import FakeProvider

LEASE = timedelta(seconds=30)
NEEDS_KEY = """
from fleek.providers.base import ProviderUnavailable

class Painter:
    @classmethod
    def from_config(cls, config):
        raise ProviderUnavailable("The provider painter needs a key")
"""


class Gallery(FakeProvider):
    """A provider with more models than anybody declares: those with a slash."""

    def __init__(self, name: str = "gallery", *, open_to_all: bool = True) -> None:
        super().__init__(name=name)
        self.accepts_undeclared = open_to_all

    def accepts(self, ref: str) -> bool:
        return "/" in ref


def catalog(*providers: Provider, unavailable: dict[str, str] | None = None) -> Catalog:
    declared = {"painter": Declaration("gallery", ref="own/painter"), "gone/away": Declaration("closed")}
    by_name = {provider.name: provider for provider in providers}
    return build_catalog(declared, by_name, {"closed": "No key"} | (unavailable or {}))


def test_an_undeclared_model_is_called_as_its_provider_calls_it() -> None:
    gallery = Gallery()

    model = catalog(gallery).get("owner/name")

    assert (model.name, model.ref, model.provider) == ("owner/name", "owner/name", gallery)
    assert (model.queue, model.attempt_timeout, model.max_concurrency) == (
        "default",
        timedelta(minutes=10),
        None,
    )
    assert (model.price_per_output, model.schema) == (None, None)


def test_a_declared_model_stays_what_was_declared() -> None:
    models = catalog(Gallery())

    assert models.get("painter").ref == "own/painter"
    with pytest.raises(NotFound):
        models.get("gone/away")


def test_what_no_provider_accepts_is_not_found() -> None:
    with pytest.raises(NotFound):
        catalog(Gallery()).get("name")


@pytest.mark.parametrize("provider", [Gallery(open_to_all=False), FakeProvider(name="gallery")])
def test_without_the_operators_leave_only_declared_models_exist(provider: FakeProvider) -> None:
    models = catalog(provider)

    assert not models.is_open
    with pytest.raises(NotFound):
        models.get("owner/name")


def test_the_first_provider_that_accepts_a_name_serves_it() -> None:
    models = catalog(FakeProvider(name="plain"), Gallery("gallery"), Gallery("museum"))

    assert models.is_open
    assert models.get("owner/name").provider.name == "gallery"


def test_undeclared_models_are_not_listed_and_found_by_their_names() -> None:
    models = catalog(Gallery())

    found = models.get("owner/name")

    assert (found.name, found.provider.name) == ("owner/name", "gallery")
    assert models.names == ("painter",)
    assert "gone/away" in models.unavailable
    for name in ("gone/away", "name"):
        with pytest.raises(NotFound):
            models.get(name)


async def test_a_worker_serves_them_and_its_rescuer_knows_their_provider() -> None:
    database = Database("postgresql+asyncpg://nobody@127.0.0.1:1/none")
    open_one, closed = catalog(Gallery()), catalog(Gallery(open_to_all=False))

    found, missing = (
        build_claimer(database, one, "w", LEASE, Metrics())._find("owner/name") for one in (open_one, closed)
    )
    await database.aclose()

    assert found == ServedModel("owner/name", "gallery", timedelta(minutes=10))
    assert missing is None
    assert [provider_name(open_one, name) for name in ("owner/name", "painter", "gone/away")] == [
        "gallery", "gallery", ""
    ]  # fmt: skip


@pytest.mark.parametrize("table", [None, {"base_url": "https://example.com"}], ids=["no table", "a table"])
def test_a_provider_without_its_key_is_unavailable_and_does_not_stop_the_start(
    table: dict[str, str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    Plugins(tmp_path).install("undeclared_painter", NEEDS_KEY, "painter = undeclared_painter:Painter")

    loaded = load_providers({} if table is None else {"painter": table})

    assert loaded.unavailable["painter"] == "The provider painter needs a key"
    assert "painter" not in loaded.providers
