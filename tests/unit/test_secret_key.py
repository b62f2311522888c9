"""The signing key: one for all processes of a home, whoever comes first."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from fleek.bootstrap.secret_key import load_secret
from fleek.core.errors import ConfigurationError
from fleek.settings import Settings, load_settings


def _load_at_once(settings: Settings, many: int) -> set[bytes]:
    """What several threads get. Threads, since they share a process id, as processes in containers do."""
    barrier = Barrier(many)

    def load() -> bytes:
        barrier.wait()
        return load_secret(settings)

    with ThreadPoolExecutor(many) as pool:
        return {future.result() for future in [pool.submit(load) for _ in range(many)]}


@pytest.mark.parametrize("attempt", range(20))
def test_processes_that_start_at_once_end_up_with_one_key(attempt: int, tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / str(attempt))
    keys = _load_at_once(settings, 16)

    assert len(keys) == 1
    assert len(keys.pop()) == 64
    assert [path.name for path in settings.home.iterdir()] == ["secret_key"]
    assert settings.local.secret_key_file.stat().st_mode & 0o777 == 0o600


def test_a_key_that_is_given_is_used_and_none_is_written(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path, secret_key="sixteen-letters-or-more")

    assert load_secret(settings) == b"sixteen-letters-or-more"
    assert not list(tmp_path.iterdir())


def test_a_key_that_is_too_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="FLEEK_SECRET_KEY: at least 16 characters"):
        load_secret(load_settings(home=tmp_path, secret_key="short"))
