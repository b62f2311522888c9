"""Finding providers by their entry points, and building the models from what is declared."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from fleek.core.errors import ConfigurationError, NotFound, Violation
from fleek.providers.base import Provider
from fleek.providers.demo import DemoProvider
from fleek.providers.registry import Catalog, Model, build_catalog, load_providers

PLUGIN = """
class Painter:
    name = "painter"

    def __init__(self, config):
        self.config = config

    @classmethod
    def from_config(cls, config):
        return cls(dict(config))
"""
NEEDS_SDK = "import no_such_sdk.client"
NEEDS_KEY = """
from fleek.core.errors import ConfigurationError

class Painter:
    @classmethod
    def from_config(cls, config):
        if "token" not in config:
            raise ConfigurationError("The provider painter needs PAINTER_API_TOKEN")
        return cls()
"""


@dataclass(frozen=True)
class Declaration:
    """What `[models."name"]` says."""

    provider: str = "demo"
    ref: str = ""
    queue: str = "default"
    max_concurrency: int | None = None
    max_paid_submissions: int = 1
    attempt_timeout: timedelta = timedelta(minutes=10)
    price_per_output: Decimal | None = None
    description: str = ""


class Plugins:
    """Packages that are installed for one test: a folder on the path, as pip leaves it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def install(self, package: str, code: str, entry_point: str) -> None:
        """One module and the entry point `name = module:Class [extra]`."""
        (self._folder / f"{package}.py").write_text(textwrap.dedent(code))
        info = self._folder / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[fleek.providers]\n{entry_point}\n")


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plugins:
    monkeypatch.syspath_prepend(tmp_path)
    return Plugins(tmp_path)


@pytest.fixture
def demo() -> Provider:
    return DemoProvider(default_delay=0)


def test_the_demo_provider_is_installed_and_takes_its_table() -> None:
    loaded = load_providers({"demo": {"default_delay": 0}})

    assert isinstance(loaded.providers["demo"], DemoProvider)
    assert isinstance(loaded.providers["demo"], Provider)
    assert "demo" not in loaded.unavailable


def test_a_plugin_is_found_by_its_entry_point_and_given_its_table(plugins: Plugins) -> None:
    plugins.install("registry_painter_a", PLUGIN, "painter = registry_painter_a:Painter")

    loaded = load_providers({"painter": {"base_url": "http://127.0.0.1"}})

    assert vars(loaded.providers["painter"]) == {"config": {"base_url": "http://127.0.0.1"}}


def test_a_provider_without_a_table_is_given_an_empty_one(plugins: Plugins) -> None:
    plugins.install("registry_painter_b", PLUGIN, "painter = registry_painter_b:Painter")

    assert vars(load_providers({}).providers["painter"]) == {"config": {}}


@pytest.mark.parametrize(
    ("package", "entry_point", "reason"),
    [
        (
            "registry_painter_c",
            "painter = registry_painter_c:Painter [local-gpu]",
            "The provider painter needs no_such_sdk: install registry_painter_c[local-gpu]",
        ),
        (
            "registry_painter_d",
            "painter = registry_painter_d:Painter",
            "The provider painter needs no_such_sdk, which is not installed",
        ),
    ],
)
def test_a_provider_without_its_sdk_is_unavailable_and_says_what_to_install(
    plugins: Plugins, package: str, entry_point: str, reason: str
) -> None:
    plugins.install(package, NEEDS_SDK, entry_point)

    loaded = load_providers({"painter": {"a": 1}})

    assert loaded.unavailable["painter"] == reason
    assert "painter" not in loaded.providers


@pytest.mark.parametrize(
    ("package", "code"),
    [("registry_painter_e", "Brush = 1"), ("registry_painter_f", "class Painter: ...")],
    ids=["no such class", "no from_config"],
)
def test_an_entry_point_that_names_no_provider_is_unavailable(
    plugins: Plugins, package: str, code: str
) -> None:
    plugins.install(package, code, f"painter = {package}:Painter")

    reason = load_providers({}).unavailable["painter"]

    assert reason == f"The provider painter has no class with from_config at {package}:Painter"


def test_a_provider_that_lacks_its_key_is_unavailable_as_long_as_it_has_no_table(plugins: Plugins) -> None:
    plugins.install("registry_painter_g", NEEDS_KEY, "painter = registry_painter_g:Painter")

    loaded = load_providers({})

    assert loaded.unavailable["painter"] == "The provider painter needs PAINTER_API_TOKEN"


def test_a_table_that_is_wrong_stops_the_start(plugins: Plugins) -> None:
    plugins.install("registry_painter_h", NEEDS_KEY, "painter = registry_painter_h:Painter")

    with pytest.raises(ConfigurationError, match="needs PAINTER_API_TOKEN"):
        load_providers({"painter": {}})


def test_a_table_for_a_provider_that_nobody_offers_names_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"providers\.dmeo: no such provider; known: .*demo"):
        load_providers({"dmeo": {}})


def test_two_packages_must_not_offer_the_same_provider(plugins: Plugins) -> None:
    plugins.install("registry_painter_i", PLUGIN, "painter = registry_painter_i:Painter")
    plugins.install("registry_painter_j", PLUGIN, "painter = registry_painter_j:Painter")

    with pytest.raises(ConfigurationError, match="Two packages offer the provider painter"):
        load_providers({})


def test_with_nothing_declared_there_is_the_demo_model(demo: Provider) -> None:
    catalog = build_catalog({}, {"demo": demo}, {})

    assert catalog.names == ("demo",)
    assert catalog.default is catalog.get("demo")
    assert (catalog.default.ref, catalog.default.queue, catalog.default.price_per_output) == (
        "demo",
        "default",
        None,
    )
    assert catalog.default.description


def test_the_demo_model_exists_beside_declared_ones_and_the_first_of_them_is_the_default(
    demo: Provider,
) -> None:
    catalog = build_catalog({"b": Declaration(), "a": Declaration()}, {"demo": demo}, {})

    assert catalog.names == ("b", "a", "demo")
    assert catalog.default.name == "b"
    assert [model.name for model in catalog.all()] == ["b", "a", "demo"]


def test_a_declared_model_called_demo_replaces_the_built_in_one(demo: Provider) -> None:
    catalog = build_catalog({"a": Declaration(), "demo": Declaration(queue="slow")}, {"demo": demo}, {})

    assert catalog.names == ("a", "demo")
    assert catalog.get("demo").queue == "slow"


def test_a_model_is_what_its_table_says(demo: Provider) -> None:
    declaration = Declaration(
        ref="owner/flux",
        queue="paid",
        max_concurrency=3,
        attempt_timeout=timedelta(seconds=90),
        price_per_output=Decimal("0.003"),
        description="Fast",
    )

    model = build_catalog({"flux": declaration}, {"demo": demo}, {}).get("flux")

    assert model == Model(
        "flux",
        demo,
        "owner/flux",
        "paid",
        3,
        timedelta(seconds=90),
        Decimal("0.003"),
        "Fast",
        demo.parameter_schema("owner/flux"),
    )


def test_a_model_without_a_ref_is_called_by_its_own_name(demo: Provider) -> None:
    assert build_catalog({"flux": Declaration()}, {"demo": demo}, {}).get("flux").ref == "flux"


def test_an_unknown_model_is_not_found(demo: Provider) -> None:
    with pytest.raises(NotFound, match="No such model"):
        build_catalog({}, {"demo": demo}, {}).get("flux")


def test_a_model_of_an_unavailable_provider_says_why_and_is_not_replaced_by_another(demo: Provider) -> None:
    catalog = build_catalog({"flux": Declaration(provider="gpu")}, {"demo": demo}, {"gpu": "needs torch"})

    assert catalog.unavailable == {"flux": "needs torch"}
    assert catalog.names == ("demo",)
    with pytest.raises(NotFound):
        _ = catalog.default


def test_a_model_of_a_provider_that_nobody_offers_stops_the_start(demo: Provider) -> None:
    with pytest.raises(
        ConfigurationError, match=r"models\.flux: no such provider: gpt; known: demo, replicate"
    ):
        build_catalog({"flux": Declaration(provider="gpt")}, {"demo": demo}, {"replicate": "no key"})


def test_without_the_demo_provider_the_built_in_model_says_so() -> None:
    catalog: Catalog = build_catalog({}, {}, {})

    assert catalog.unavailable == {"demo": "The provider demo is not installed"}


def test_a_models_input_is_checked_against_its_providers_schema(demo: Provider) -> None:
    model = build_catalog({}, {"demo": demo}, {}).default

    assert model.validate_input({"delay_seconds": 0}) == ()
    assert model.validate_input({"delay_seconds": 601}) == (
        Violation("/input/delay_seconds", "Must be at most 600"),
    )


def test_without_a_schema_any_input_is_let_through(demo: Provider) -> None:
    model = Model("m", demo, "m", "default", None, timedelta(minutes=1), None, "", None)

    assert model.validate_input({"anything": {"goes": [1]}}) == ()
