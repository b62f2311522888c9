"""`fleek.toml`: what its keys may be, and in which line they stand."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fleek.configuration.names import Fields, did_you_mean, keys_of
from fleek.core.errors import ConfigurationError

FILE = "fleek.toml"
Keys = tuple[str, ...]

_HEADER = re.compile(r"^\s*\[\[?(?P<keys>.+?)\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"^\s*(?P<keys>(?:[A-Za-z0-9_.\-\s]|\"[^\"]*\"|'[^']*')+?)\s*=")
_PLACE = re.compile(r"\s*\(at (?:line (?P<line>\d+), column \d+|end of document)\)")


def read_config_file() -> dict[str, Any]:
    """The file of the current folder as a mapping, empty where there is none.

    Raises ConfigurationError with the line where it cannot be read.
    """
    path = Path(FILE)
    if not path.exists():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{FILE}: cannot be read: {error.strerror}; mend or remove it") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{FILE}: is no UTF-8 text; save it as such") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(_describe(error, path.read_text(encoding="utf-8"))) from None


def check_keys(data: Mapping[str, Any], fields: Fields) -> None:
    """Raises ConfigurationError for a key at the top that no setting has."""
    known = {key for name, field in fields.items() for key in keys_of(name, field)}
    for key in data:
        if key not in known:
            place = f"{FILE}{_in_line((key,))}"
            raise ConfigurationError(f"{place}: {key}: no setting has this name{did_you_mean(key, known)}")


def line_of(keys: Keys) -> int | None:
    """The line of a key, counted from 1; of a table, where it begins. None where it is unclear."""
    try:
        text = Path(FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return next((line for line, found in _lines(text) if found[: len(keys)] == keys), None)


def _in_line(keys: Keys) -> str:
    line = line_of(keys)
    return "" if line is None else f", line {line}"


def _lines(text: str) -> Iterator[tuple[int, Keys]]:
    """The full key of each line that has one."""
    table: Keys = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = _parse(header["keys"]) or table
            yield number, table
        elif (match := _KEY.match(line)) and (keys := _parse(match["keys"])):
            yield number, table + keys


def _parse(dotted: str) -> Keys:
    """`a."b.c"` as its parts; empty for what is no key."""
    try:
        value: object = tomllib.loads(f"{dotted} = 0")
    except tomllib.TOMLDecodeError:
        return ()
    keys: Keys = ()
    while isinstance(value, dict):
        [(key, value)] = value.items()
        keys += (key,)
    return keys


def _describe(error: tomllib.TOMLDecodeError, text: str) -> str:
    """Where the file stops being TOML, and at which key; never what stands there."""
    place = _PLACE.search(str(error))
    lines = text.splitlines()
    number = int(place["line"]) if place and place["line"] else max(len(lines), 1)
    line = lines[number - 1] if number <= len(lines) else ""
    key = match["keys"].strip() if (match := _KEY.match(line)) else ""
    reason = _PLACE.sub("", str(error))
    return f"{FILE}, line {number}: {f'{key}: ' if key else ''}is no TOML: {reason}; such as port = 8000"
