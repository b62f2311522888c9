"""The folders and sockets of one local Fleek."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleek.core.home import Home, default_home

USER_HOME = Path("/home/ada")


def test_everything_lies_inside_the_home() -> None:
    home = Home(Path("/srv/fleek"))

    assert home.run == Path("/srv/fleek/run")
    assert home.postgres_data == Path("/srv/fleek/postgres")
    assert home.postgres_socket_dir == Path("/srv/fleek/run/postgres")
    assert home.valkey_socket == Path("/srv/fleek/run/valkey/valkey.sock")
    assert home.media == Path("/srv/fleek/media")
    assert home.logs == Path("/srv/fleek/logs")
    assert home.secret_key_file == Path("/srv/fleek/secret_key")
    assert home.state_file == Path("/srv/fleek/run/up.json")


def test_the_urls_lead_to_what_is_inside() -> None:
    home = Home(Path("/srv/fleek"))

    assert home.database_url == "postgresql+asyncpg://fleek@/fleek?host=/srv/fleek/run/postgres"
    assert home.redis_url == "unix:///srv/fleek/run/valkey/valkey.sock"
    assert home.storage_url == "file:///srv/fleek/media"


@pytest.mark.parametrize("name", ["x" * 200, "ü" * 60])
def test_sockets_of_a_long_path_go_to_a_short_one_that_is_always_the_same(name: str) -> None:
    home, again, other = Home(Path("/srv") / name), Home(Path("/srv") / name), Home(Path("/srv") / f"{name}2")

    assert len(str(home.postgres_socket_dir / ".s.PGSQL.5432.lock").encode()) <= 107
    assert home.run == again.run
    assert home.run != other.run
    assert home.postgres_data.is_relative_to(home.path)


def test_the_longest_path_that_still_fits_is_kept() -> None:
    path = Path("/" + "x" * 75)

    assert Home(path).run == path / "run"
    assert Home(Path(f"{path}x")).run != Path(f"{path}x") / "run"


@pytest.mark.parametrize(
    ("environ", "is_root", "expected"),
    [
        ({}, False, "/home/ada/.local/share/fleek"),
        ({}, True, "/var/lib/fleek"),
        ({"XDG_DATA_HOME": ""}, False, "/home/ada/.local/share/fleek"),
        ({"XDG_DATA_HOME": "relative"}, False, "/home/ada/.local/share/fleek"),
        ({"XDG_DATA_HOME": "/data"}, False, "/data/fleek"),
        ({"XDG_DATA_HOME": "/data"}, True, "/data/fleek"),
    ],
)
def test_the_default_home(environ: dict[str, str], *, is_root: bool, expected: str) -> None:
    assert default_home(environ, user_home=USER_HOME, is_root=is_root) == Path(expected)
