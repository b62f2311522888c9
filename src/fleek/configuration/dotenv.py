"""`.env` and `.env.local` of the current folder: what they say, in which line, and who else hears of it."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from fleek.core.errors import ConfigurationError

FILES = (".env", ".env.local")
"""The later one wins."""
SHARED_PREFIXES = (
    *("AWS_", "AZURE_", "GOOGLE_"),
    *("REPLICATE_", "OPENAI_", "FAL_"),
    *("SENTRY_", "OTEL_"),
)
"""Names that others than Fleek's settings read from the environment: SDKs, the object store, providers."""

_BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True, slots=True)
class DotenvFile:
    """One file, with what it gives."""

    name: str
    values: Mapping[str, str] = field(repr=False)
    lines: Mapping[str, int]
    """The line of each name, counted from 1; the last one where a name is given again."""
    repeated: tuple[str, ...] = ()
    """Names that are given more than once."""


def read_dotenv_files() -> tuple[DotenvFile, ...]:
    """Those that exist, in the order of `FILES`; raises ConfigurationError for one that cannot be read."""
    return tuple(_read(Path(name)) for name in FILES if _is_there(Path(name)))


def export_shared_names(environment: MutableMapping[str, str]) -> None:
    """Give the shared names of the files to whatever reads `environment`, which wins where it has a value.

    For the start of a process only. Raises ConfigurationError for a file that cannot be read.
    """
    given: dict[str, str] = {}
    for file in read_dotenv_files():
        given |= {name: value for name, value in file.values.items() if name.startswith(SHARED_PREFIXES)}
    for name, value in given.items():
        # An empty value counts as none: that is what compose passes for a variable that nobody set.
        if value and not environment.get(name):
            environment[name] = value


def _is_there(path: Path) -> bool:
    """A pipe, through which some password stores offer the file, can be read once only: by the settings."""
    return path.exists() and not path.is_fifo()


def _read(path: Path) -> DotenvFile:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}; mend or remove it") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: is no UTF-8 text; save it as such") from None
    if text.startswith(_BYTE_ORDER_MARK):
        raise ConfigurationError(
            f"{path}, line 1: begins with a byte order mark; save it as UTF-8 without one"
        )
    lines, repeated = _find_lines(path, text)
    values = dotenv_values(stream=StringIO(text))
    known = {name: value for name, value in values.items() if value is not None}
    return DotenvFile(str(path), known, lines, repeated)


def _find_lines(path: Path, text: str) -> tuple[dict[str, int], tuple[str, ...]]:
    """The line of each name, and the names that are given again."""
    lines: dict[str, int] = {}
    repeated: list[str] = []
    for binding in parse_stream(StringIO(text)):
        # What is parsed begins with the blank lines before it.
        blank = binding.original.string[: -len(binding.original.string.lstrip()) or None]
        line = binding.original.line + blank.count("\n")
        if binding.error:
            message = f"{path}, line {line}: must be NAME=value, such as FLEEK_PORT=8000"
            raise ConfigurationError(message)
        if binding.key is not None:
            repeated += [binding.key] if binding.key in lines else []
            lines[binding.key] = line
    return lines, tuple(dict.fromkeys(repeated))
