"""The key that signs cursors and content URLs."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from fleek.core.errors import ConfigurationError
from fleek.settings import Settings

_SECRET_BYTES = 32
_MIN_SECRET = 16


def load_secret(settings: Settings) -> bytes:
    """The signing key: configured, or generated once into the home with mode 600.

    Several processes may start at once; all of them end up with the one that was linked first.
    """
    if settings.secret_key is not None:
        secret = settings.secret_key.get_secret_value().encode()
        if len(secret) < _MIN_SECRET:
            message = (
                f"FLEEK_SECRET_KEY: at least {_MIN_SECRET} characters, such as `openssl rand -hex 32` gives"
            )
            raise ConfigurationError(message)
        return secret
    path = settings.local.secret_key_file
    try:
        if not path.exists():
            _generate_secret(path)
        return path.read_bytes().strip()
    except OSError as error:
        message = f"FLEEK_HOME: cannot keep a secret key at {path}: {error.strerror}; set FLEEK_SECRET_KEY"
        raise ConfigurationError(message) from error


def _generate_secret(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # No process id in the name: in containers that share the folder every process has the same one.
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(_SECRET_BYTES) + "\n")
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
