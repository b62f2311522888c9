"""Which providers are installed, and which models they serve.

Providers are found through the entry-point group `fleek.providers`, so that a package can bring
one without a change here. An entry point names a class with
`from_config(config: Mapping[str, Any]) -> Provider`, where `config` is the table
`[providers.NAME]` of `fleek.toml`, empty when there is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, TypeGuard

from fleek.core.errors import ConfigurationError, NotFound, Violation
from fleek.providers.base import JsonSchema, OpenProvider, Provider, ProviderUnavailable
from fleek.providers.parameters import ParameterRules

GROUP = "fleek.providers"
DEMO = "demo"
"""The built-in model, and the provider that serves it."""


@dataclass(frozen=True, slots=True)
class LoadedProviders:
    """The providers that can be used, by name, and for the others the sentence that says why not."""

    providers: Mapping[str, Provider]
    unavailable: Mapping[str, str]


def load_providers(configs: Mapping[str, Mapping[str, Any]]) -> LoadedProviders:
    """Construct every installed provider.

    One that lacks its SDK or its key is unavailable, as is one without a table that cannot do without. A
    table that is wrong, or that nobody offers a provider for, raises ConfigurationError.
    """
    offered = _offered()
    for name in configs:
        if name not in offered:
            raise ConfigurationError(f"providers.{name}: no such provider; known: {_names(offered)}")
    providers: dict[str, Provider] = {}
    unavailable: dict[str, str] = {}
    for name, entry_point in offered.items():
        loaded = _load(entry_point, configs.get(name))
        if isinstance(loaded, str):
            unavailable[name] = loaded
        else:
            providers[name] = loaded
    return LoadedProviders(providers, unavailable)


def _offered() -> dict[str, EntryPoint]:
    """The entry points by name, in order; two packages must not offer the same one."""
    offered: dict[str, EntryPoint] = {}
    for entry_point in sorted(entry_points(group=GROUP), key=lambda found: found.name):
        known = offered.setdefault(entry_point.name, entry_point)
        if known.value != entry_point.value:
            both = f"{known.value} and {entry_point.value}"
            raise ConfigurationError(f"Two packages offer the provider {entry_point.name}: {both}")
    return offered


def _load(entry_point: EntryPoint, config: Mapping[str, Any] | None) -> Provider | str:
    """The provider, or the sentence that says why there is none."""
    try:
        construct = entry_point.load().from_config
    except ImportError as error:
        return _missing_package(entry_point, error)
    except AttributeError:
        return f"The provider {entry_point.name} has no class with from_config at {entry_point.value}"
    try:
        provider: Provider = construct(config or {})
    except ProviderUnavailable as error:
        return error.message
    except ConfigurationError as error:
        if config is not None:
            raise
        return error.message
    return provider


def _missing_package(entry_point: EntryPoint, error: ImportError) -> str:
    """Name the extra that brings the package; an entry point says `module:Class [extra]`."""
    package = error.name or "a package"
    # `EntryPoint.extras` takes a name with a hyphen for two.
    extras = entry_point.value.partition("[")[2].rstrip("] ")
    if extras and entry_point.dist is not None:
        return f"The provider {entry_point.name} needs {package}: install {entry_point.dist.name}[{extras}]"
    return f"The provider {entry_point.name} needs {package}, which is not installed"


class ModelDeclaration(Protocol):
    """One `[models."name"]` table of `fleek.toml`."""

    @property
    def provider(self) -> str:
        """The name of the provider that serves the model."""
        ...

    @property
    def ref(self) -> str:
        """What the provider calls the model; empty means the model's own name."""
        ...

    @property
    def queue(self) -> str:
        """Where its jobs wait."""
        ...

    @property
    def max_concurrency(self) -> int | None:
        """How many of its jobs run at once; None: no limit of its own."""
        ...

    @property
    def max_paid_submissions(self) -> int:
        """Orders that may be paid for one output, where those before were never heard of again."""
        ...

    @property
    def attempt_timeout(self) -> timedelta:
        """How long one attempt may take."""
        ...

    @property
    def price_per_output(self) -> Decimal | None:
        """US dollars."""
        ...

    @property
    def description(self) -> str:
        """A sentence for people."""
        ...


@dataclass(frozen=True, slots=True)
class _DemoDeclaration:
    """The model that exists with no configuration at all."""

    provider: str = DEMO
    ref: str = ""
    queue: str = "default"
    max_concurrency: int | None = None
    max_paid_submissions: int = 1
    # Its parameters allow a delay of ten minutes.
    attempt_timeout: timedelta = timedelta(minutes=15)
    price_per_output: Decimal | None = None
    description: str = "Draws a poster from the prompt and the seed, with no key and no network"


@dataclass(frozen=True, slots=True)
class _UndeclaredModel:
    """What holds for a model that only its provider knows: its name there is its name here."""

    provider: str
    ref: str = ""
    queue: str = "default"
    max_concurrency: int | None = None
    max_paid_submissions: int = 1
    attempt_timeout: timedelta = timedelta(minutes=10)
    price_per_output: Decimal | None = None
    description: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """One model that clients may ask for."""

    name: str
    provider: Provider
    ref: str
    queue: str
    max_concurrency: int | None
    attempt_timeout: timedelta
    price_per_output: Decimal | None
    description: str
    schema: JsonSchema | None
    """JSON Schema (2020-12) of `input`; None when it is not known: then everything is let through."""
    max_paid_submissions: int = 1
    """Orders that may be paid for one output, where those before were never heard of again."""
    _rules: ParameterRules | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rules = None if self.schema is None else ParameterRules(self.schema, model=self.name)
        object.__setattr__(self, "_rules", rules)

    def validate_input(self, value: Mapping[str, Any]) -> tuple[Violation, ...]:
        """What is wrong with a request's `input`; empty when nothing is.

        The pointers begin with `/input`; the messages name rules and never repeat a value.
        """
        return () if self._rules is None else self._rules.check(value)


class Catalog:
    """The models of this installation."""

    def __init__(
        self,
        models: Iterable[Model],
        unavailable: Mapping[str, str],
        *,
        default: str,
        undeclared: Iterable[OpenProvider] = (),
    ) -> None:
        """`undeclared`: providers that are asked for models that nobody declared."""
        self._models = {model.name: model for model in models}
        self._default = default
        self._undeclared = tuple(undeclared)
        self.unavailable = unavailable
        """Declared models that cannot be used, and why not."""

    @property
    def names(self) -> tuple[str, ...]:
        """The models that can be used, in the order of their declaration."""
        return tuple(self._models)

    @property
    def default(self) -> Model:
        """The model of a request that names none: the first declared one, even where others could do.

        Raises NotFound while it is unavailable: another model may cost something else.
        """
        return self.get(self._default)

    @property
    def is_open(self) -> bool:
        """Whether there are models beside those of `names`: some provider accepts undeclared ones."""
        return bool(self._undeclared)

    def get(self, name: str) -> Model:
        """A model by its name, declared or accepted by a provider as one of its own; or NotFound."""
        if name in self._models:
            return self._models[name]
        for provider in self._undeclared:
            if name not in self.unavailable and provider.accepts(name):
                return _model(name, _UndeclaredModel(provider.name), provider)
        raise NotFound("model")

    def all(self) -> tuple[Model, ...]:
        """Every model that can be used."""
        return tuple(self._models.values())


def build_catalog(
    models: Mapping[str, ModelDeclaration],
    providers: Mapping[str, Provider],
    unavailable_providers: Mapping[str, str],
) -> Catalog:
    """The declared models and the built-in one.

    A declared model whose provider nobody offers raises ConfigurationError.
    """
    declared: dict[str, ModelDeclaration] = dict(models)
    declared.setdefault(DEMO, _DemoDeclaration())
    usable: list[Model] = []
    unavailable: dict[str, str] = {}
    for name, declaration in declared.items():
        if declaration.provider in providers:
            usable.append(_model(name, declaration, providers[declaration.provider]))
        elif declaration.provider in unavailable_providers:
            unavailable[name] = unavailable_providers[declaration.provider]
        elif name in models:
            known = _names([*providers, *unavailable_providers])
            message = f"models.{name}: no such provider: {declaration.provider}; known: {known}"
            raise ConfigurationError(message)
        else:
            unavailable[name] = f"The provider {declaration.provider} is not installed"
    undeclared = [found for found in providers.values() if _is_open(found)]
    return Catalog(usable, unavailable, default=next(iter(declared)), undeclared=undeclared)


def _is_open(provider: Provider) -> TypeGuard[OpenProvider]:
    """A provider that could accept undeclared models does so only where its operator allows it."""
    return isinstance(provider, OpenProvider) and provider.accepts_undeclared


def _model(name: str, declaration: ModelDeclaration, provider: Provider) -> Model:
    ref = declaration.ref or name
    return Model(
        name=name,
        provider=provider,
        ref=ref,
        queue=declaration.queue,
        max_concurrency=declaration.max_concurrency,
        attempt_timeout=declaration.attempt_timeout,
        price_per_output=declaration.price_per_output,
        description=declaration.description,
        schema=provider.parameter_schema(ref),
        max_paid_submissions=declaration.max_paid_submissions,
    )


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
