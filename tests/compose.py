"""The compose files as Docker Compose reads them: included, merged, and with their variables filled in.

Only what the two files use of the specification (https://github.com/compose-spec/compose-spec): `include`,
YAML's merge keys, `${NAME:-default}` and `${NAME-default}`, nested, and `env_file`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from dotenv import dotenv_values

ROOT = Path(__file__).parent.parent
WHOLE, SERVICES = "docker-compose.yml", "docker-compose.services.yml"
_NAME = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?:(:?-)((?:[^${}]|\$\{[^{}]*\})*))?\}")


def read(name: str) -> dict[str, Any]:
    """A file as it is written."""
    document: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return document


def load(name: str, variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A file with what it includes; `variables` are those of the shell and of `.env`."""
    document = read(name)
    for included in document.pop("include", ()):
        other = load(included, variables)
        for part in ("services", "volumes"):
            document[part] = document.get(part, {}) | other.get(part, {})
    filled: dict[str, Any] = _fill(document, variables or {})
    return filled


def services(name: str = WHOLE, variables: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """The services of a file, by name."""
    found: dict[str, dict[str, Any]] = load(name, variables)["services"]
    return found


def environment_of(
    service: str, shell: Mapping[str, str] | None = None, dotenv: Path | None = None
) -> dict[str, str]:
    """What a service's processes find in their environment; `dotenv` stands for the checkout's `.env`."""
    written = {} if dotenv is None else _values(dotenv)
    known = written | dict(shell or {})
    definition = services(WHOLE, known)[service]
    found: dict[str, str] = {}
    for entry in definition.get("env_file", ()):
        if isinstance(entry, str):
            found |= _values(ROOT / entry)
        else:
            found |= written
    for key, value in definition.get("environment", {}).items():
        if value is not None:
            found[key] = str(value)
        elif key in known:
            found[key] = known[key]
    return found


def variables_without_default(name: str) -> set[str]:
    """Names that are filled in, and for which the file itself says nothing."""
    text = (ROOT / name).read_text()
    named = set(_NAME.findall(text))
    return {variable for variable in named if re.search(rf"\$\{{{variable}\}}", text)}


def variables(name: str) -> set[str]:
    """Every name that a file fills in or passes on."""
    passed = {
        key
        for service in load(name)["services"].values()
        for key, value in service.get("environment", {}).items()
        if value is None
    }
    return set(_NAME.findall((ROOT / name).read_text())) | passed


def bytes_of(size: str) -> int:
    """`1g`, `512m`."""
    return int(size[:-1]) * 1024 ** ("kmg".index(size[-1].lower()) + 1)


def _values(path: Path) -> dict[str, str]:
    return {name: value or "" for name, value in dotenv_values(path, interpolate=False).items()}


def _fill(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _fill(inner, variables) for key, inner in value.items()}
    if isinstance(value, list):
        return [_fill(inner, variables) for inner in value]
    return _filled(value, variables) if isinstance(value, str) else value


def _filled(text: str, variables: Mapping[str, str]) -> str:
    def replaced(match: re.Match[str]) -> str:
        name, separator, default = match[1], match[2], match[3] or ""
        is_set = bool(variables.get(name)) if separator == ":-" else name in variables
        return variables[name] if is_set else _filled(default, variables)

    while (filled := _VARIABLE.sub(replaced, text)) != text:
        text = filled
    return text


def words(document: Any) -> Iterator[str]:
    """Every string of a document."""
    if isinstance(document, dict):
        for inner in document.values():
            yield from words(inner)
    elif isinstance(document, list):
        for inner in document:
            yield from words(inner)
    elif isinstance(document, str):
        yield document
