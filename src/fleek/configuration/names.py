"""How settings are called: their variables, their keys in `fleek.toml`, and what was probably meant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import get_args

from pydantic import AliasChoices, BaseModel, SecretStr
from pydantic.fields import FieldInfo

PREFIX = "FLEEK_"
FILE_SUFFIX = "_FILE"
NESTED = "__"
OTHER_VARIABLES = frozenset({"FLEEK_URL", "FLEEK_DEBUG", "FLEEK_FAILPOINTS"})
"""Variables with our prefix that are no settings: the command line and the tests read them."""

Fields = Mapping[str, FieldInfo]


def keys_of(name: str, field: FieldInfo) -> tuple[str, ...]:
    """What a source may call a setting, the strongest first; the first is what pydantic is given."""
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        return tuple(choice for choice in alias.choices if isinstance(choice, str))
    return (name,)


def variables_of(name: str, field: FieldInfo) -> tuple[str, ...]:
    """The environment variables of a setting: with our prefix, and the standard one where there is one."""
    if field.validation_alias is None:
        return (f"{PREFIX}{name.upper()}",)
    return tuple(key.upper() for key in keys_of(name, field))


def variable_of(name: str, field: FieldInfo) -> str:
    """The variable that messages and pages name: the standard one where there is one."""
    return variables_of(name, field)[-1]


def secret_fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Settings that hold a secret: each may also be given as a file's path, under `..._FILE`."""
    return {name: field for name, field in model.model_fields.items() if _holds_secret(field.annotation)}


def _holds_secret(annotation: object) -> bool:
    return annotation is SecretStr or any(_holds_secret(part) for part in get_args(annotation))


def list_unknown_variables(given: Iterable[str], model: type[BaseModel]) -> dict[str, str | None]:
    """Variables with our prefix that set nothing, mostly misspelt ones, and what was probably meant."""
    settings = {
        variable for name, field in model.model_fields.items() for variable in variables_of(name, field)
    }
    files = {
        f"{variable}{FILE_SUFFIX}"
        for name, field in secret_fields(model).items()
        for variable in variables_of(name, field)
    }
    known = settings | files | OTHER_VARIABLES
    ours = sorted(name for name in given if name.upper().startswith(PREFIX))
    return {
        name: closest(name.upper(), known)
        for name in ours
        if name.upper() not in known and name.upper().partition(NESTED)[0] not in settings
    }


def closest(name: str, known: Iterable[str]) -> str | None:
    """The name that was probably meant."""
    return next(iter(get_close_matches(name, sorted(known), n=1, cutoff=0.75)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question to end a message with; empty where nothing is similar."""
    meant = closest(name, known)
    return "" if meant is None else f"; did you mean {meant}?"
