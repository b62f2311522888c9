"""What a wrong setting is told: its name, where it stands, what is wrong, and an example; never its value."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from enum import Enum
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from fleek.configuration.dotenv import DotenvFile
from fleek.configuration.names import FILE_SUFFIX, NESTED, did_you_mean, keys_of, variable_of, variables_of
from fleek.configuration.toml import FILE, line_of
from fleek.configuration.types import RULES

_OUR_WORDS = {
    "missing": "is missing",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "bool_parsing": "must be true or false",
    "decimal_parsing": "must be a number",
    "time_delta_parsing": "must be a time, as a number with s, m, h or d",
    "too_short": "must not be empty",
    "dict_type": "must be a table, in JSON",
    "model_type": "must be a table",
}
_UNITS = ((86_400, "d"), (3600, "h"), (60, "m"))
_FIELD = re.compile(r'field "(?P<name>\w+)"')


class Complaints:
    """Describes the errors of one model of settings."""

    def __init__(
        self,
        model: type[BaseModel],
        tables: Mapping[str, type[BaseModel]],
        flags: Mapping[str, Any],
        files: Sequence[DotenvFile],
    ) -> None:
        """`tables`: settings that are tables of tables, with the model of one of them."""
        self._model = model
        self._tables = tables
        self._flags = flags
        self._files = files

    def describe(self, error: ValidationError) -> str:
        """Every problem, in one line."""
        problems = error.errors(include_input=False, include_url=False)
        return "; ".join(
            dict.fromkeys(
                self._describe(problem) for problem in problems if not _follows_from_others(problem, problems)
            )
        )

    def describe_unparsed(self, error: Exception) -> str:
        """A table that a variable should have given as JSON."""
        match = _FIELD.search(str(error))
        name = match["name"] if match else ""
        field = self._model.model_fields.get(name)
        if field is None:
            return "A setting is no JSON"
        variable = self._given_as(name, field)
        return f"{variable}{self._place(name, field, ())}: is no JSON{_such_as(field)}"

    def _describe(self, problem: ErrorDetails) -> str:
        location = [str(part) for part in problem["loc"] if isinstance(part, str)]
        what = _in_our_words(problem)
        if not location:
            return what
        name, field = self._find(location[0])
        if field is None:
            return f"{location[0]}: {what}"
        inner = tuple(location[1:])
        leaf, known = self._leaf(name, field, inner)
        if problem["type"] == "extra_forbidden":
            return f"{self._title(name, field, inner)}: is no key of it{did_you_mean(inner[-1], known)}"
        example = "" if leaf is None or "such as" in what else _such_as(leaf)
        return f"{self._title(name, field, inner)}: {what}{example}"

    def _find(self, key: str) -> tuple[str, FieldInfo | None]:
        """A setting by what pydantic calls it."""
        for name, field in self._model.model_fields.items():
            if key == name or key in keys_of(name, field):
                return name, field
        return key, None

    def _leaf(
        self, name: str, field: FieldInfo, inner: tuple[str, ...]
    ) -> tuple[FieldInfo | None, tuple[str, ...]]:
        """The field that a problem is about, and the keys that stand beside it."""
        table = self._tables.get(name)
        if table is None or len(inner) <= 1:
            return field, ()
        return table.model_fields.get(inner[1]), tuple(table.model_fields)

    def _title(self, name: str, field: FieldInfo, inner: tuple[str, ...]) -> str:
        """The setting's name, and the file and line that it comes from."""
        place = self._place(name, field, inner)
        if place.startswith(f" ({FILE}") and inner:
            first, *rest = inner
            return f'{name}."{first}"{"".join(f".{part}" for part in rest)}{place}'
        return f"{NESTED.join([self._given_as(name, field), *(part.upper() for part in inner)])}{place}"

    def _given_as(self, name: str, field: FieldInfo) -> str:
        """The variable by which a setting was given, where it was given by one."""
        places = [os.environ, *(file.values for file in self._files)]
        for variable in variables_of(name, field):
            if any(_has(place, variable) for place in places):
                return variable
        return variable_of(name, field)

    def _place(self, name: str, field: FieldInfo, inner: tuple[str, ...]) -> str:
        """Where the value that counts stands; empty for a flag and for the environment."""
        if name in self._flags:
            return ""
        given = {key.upper() for key in os.environ if os.environ[key]}
        for variable in variables_of(name, field):
            if _has(os.environ, variable):
                return ""
            if f"{variable}{FILE_SUFFIX}" in given:
                return f" (the file of {variable}{FILE_SUFFIX})"
        return self._place_in_files(name, field, inner)

    def _place_in_files(self, name: str, field: FieldInfo, inner: tuple[str, ...]) -> str:
        for file in reversed(self._files):
            for variable in variables_of(name, field):
                for found, line in file.lines.items():
                    plain = found.upper()
                    if plain in {variable, f"{variable}{FILE_SUFFIX}"} or plain.startswith(variable + NESTED):
                        return f" ({file.name}, line {line})"
        return _place_in_toml(keys_of(name, field), inner)


def _place_in_toml(keys: Sequence[str], inner: tuple[str, ...]) -> str:
    for key in keys:
        # A key that is missing has no line; its table has one.
        lines = (line_of((key, *inner[:depth])) for depth in range(len(inner), -1, -1))
        found = next((line for line in lines if line is not None), None)
        if found is not None:
            return f" ({FILE}, line {found})"
    return ""


def example_of(field: FieldInfo) -> str | None:
    """How a value may look, as it is written in a variable; None where the setting gives none."""
    for value in (*(field.examples or ()), field.default):
        if value is not None and value is not PydanticUndefined and value not in ("", (), {}):
            return written(value)
    return None


def duration_text(value: timedelta) -> str:
    """A time as settings write it, in its largest whole unit."""
    seconds = value.total_seconds()
    unit, letter = next((pair for pair in _UNITS if seconds >= pair[0] and seconds % pair[0] == 0), (1, "s"))
    return f"{seconds / unit:g}{letter}"


def _such_as(field: FieldInfo) -> str:
    example = example_of(field)
    return "" if example is None else f"; such as {example}"


def written(value: object) -> str:
    """A value as a variable has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ",".join(written(item) for item in value)
    if isinstance(value, timedelta):
        return duration_text(value)
    if isinstance(value, Enum):
        return str(value.value)
    return str(value)


def _follows_from_others(problem: ErrorDetails, problems: Sequence[ErrorDetails]) -> bool:
    """Whether a list counts as empty only because what it holds is wrong."""
    place = problem["loc"]
    return problem["type"] == "too_short" and any(
        len(other["loc"]) > len(place) and other["loc"][: len(place)] == place for other in problems
    )


def _in_our_words(problem: ErrorDetails) -> str:
    if problem["type"] in _OUR_WORDS:
        return _OUR_WORDS[problem["type"]]
    if problem["type"] == "string_pattern_mismatch":
        return RULES[problem["ctx"]["pattern"]]
    message = problem["msg"].removeprefix("Value error, ")
    return re.sub(r"^(?:Input|Value|String|Tuple|List|Set|Dictionary) should ", "must ", message)


def _has(variables: Mapping[str, str], name: str) -> bool:
    """Whether a variable has a value, or one of the keys of its table has."""
    return any(
        value and (found.upper() == name or found.upper().startswith(name + NESTED))
        for found, value in variables.items()
    )
