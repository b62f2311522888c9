"""The sources of settings that pydantic does not bring: files with one secret each, and `fleek.toml`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource

from fleek.configuration.names import FILE_SUFFIX, keys_of, secret_fields, variables_of
from fleek.configuration.toml import check_keys, read_config_file
from fleek.core.errors import ConfigurationError

_MOST_BYTES = 64 * 1024
"""A secret is shorter; a file that is not is another one than was meant."""


class ConfigFile(InitSettingsSource):
    """`fleek.toml`, whose keys must all be known."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        data = read_config_file()
        check_keys(data, settings_cls.model_fields)
        super().__init__(settings_cls, data)


class SecretFiles(PydanticBaseSettingsSource):
    """Reads `FLEEK_SECRET_KEY_FILE` and its like: the secret is the file's content."""

    def __init__(self, settings_cls: type[BaseSettings], variables: Mapping[str, str]) -> None:
        super().__init__(settings_cls)
        self._variables = {name.upper(): value for name, value in variables.items() if value}

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:  # noqa: ANN401  pydantic's
        """One secret, with the key that pydantic is given it by; None where no file is named."""
        key = keys_of(field_name, field)[0]
        for variable in variables_of(field_name, field):
            path = self._variables.get(f"{variable}{FILE_SUFFIX}")
            if path is None:
                continue
            if variable in self._variables:
                message = f"{variable} and {variable}{FILE_SUFFIX} are both given; keep one of them"
                raise ConfigurationError(message)
            return read_secret(f"{variable}{FILE_SUFFIX}", path), key, False
        return None, key, False

    def __call__(self) -> dict[str, Any]:
        """All secrets that were given as files."""
        found = [
            self.get_field_value(field, name) for name, field in secret_fields(self.settings_cls).items()
        ]
        return {key: value for value, key, _ in found if value is not None}


def read_secret(variable: str, path: str) -> str:
    """A file's text, stripped of the newline that editors add; raises ConfigurationError for none."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(_MOST_BYTES + 1).decode()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no UTF-8 text"
        raise ConfigurationError(f"{variable}: cannot read {_shown(path)}: {reason}") from None
    if not text.strip() or len(text) > _MOST_BYTES:
        what = "is empty" if not text.strip() else f"is longer than {_MOST_BYTES} bytes"
        raise ConfigurationError(f"{variable}: {_shown(path)} {what}; it must hold the secret and no more")
    return text.strip()


def _shown(path: str) -> str:
    """The path, unless it looks like the secret itself, given where a path is expected."""
    return (
        path
        if path.startswith(("/", "./", "../", "~"))
        else "the file that it names, such as /run/secrets/key"
    )
