"""What URLs of the settings must look like.

Each check takes the text and gives it back; a ValueError says what is wrong, never what was given.
"""

from __future__ import annotations

from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

_POSTGRES_SCHEMES = frozenset({"postgres", "postgresql", "postgresql+asyncpg"})
_POSTGRES_PARAMETERS = (
    *("host", "port", "user", "password", "passfile", "dbname", "target_session_attrs"),
    *("sslmode", "sslrootcert", "sslcert", "sslkey", "sslpassword", "sslcrl", "sslnegotiation"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version"),
)
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_REDIS_SCHEMES = frozenset({"redis", "rediss", "unix"})
_HTTP_SCHEMES = frozenset({"http", "https"})


def check_database_url(url: str) -> str:
    """SQLAlchemy's form, which names the driver; the URL as most tools write it is taken too.

    `ssl`, which SQLAlchemy's users write, is given back as `sslmode`: that is what asyncpg reads in a URL.
    """
    parts = _split(url)
    if not _has_scheme(url, _POSTGRES_SCHEMES):
        raise ValueError("must be a PostgreSQL URL")
    if not parts.netloc and not parts.query:
        raise ValueError("must be a PostgreSQL URL with a host")
    given = parse_qsl(parts.query, keep_blank_values=True)
    parameters = [("sslmode" if name == "ssl" else name, value) for name, value in given]
    _check_database_parameters(parameters)
    rest = url.partition("://")[2]
    if parameters != given:
        rest = f"{rest.partition('?')[0]}?{urlencode(parameters)}"
    return f"postgresql+asyncpg://{rest}"


def _check_database_parameters(parameters: list[tuple[str, str]]) -> None:
    """Others would reach the server as settings that it does not know, or nobody."""
    _require(
        {name for name, _ in parameters} <= set(_POSTGRES_PARAMETERS),
        f"must have no other parameters than {', '.join(_POSTGRES_PARAMETERS)}",
    )
    modes = {value for name, value in parameters if name == "sslmode"}
    _require(modes <= set(_SSL_MODES), f"must have an sslmode of {', '.join(_SSL_MODES)}")


def check_redis_url(url: str) -> str:
    """`redis://`, `rediss://` for TLS, or `unix://` for a socket; the database is a number."""
    parts = _split(url)
    if not _has_scheme(url, _REDIS_SCHEMES):
        raise ValueError("must be a Redis URL, which begins with redis://, rediss:// or unix://")
    if parts.scheme == "unix":
        _require(bool(parts.path.strip("/")), "must name a socket")
        return url
    _require(bool(parts.hostname), "must be a Redis URL with a host")
    _require(
        parts.path.strip("/").isdecimal() or not parts.path.strip("/"), "must name its database by number"
    )
    return url


def check_storage_url(url: str) -> str:
    """Only what holds for every store: which kinds there are is said by the one who opens them."""
    parts = _split(url)
    _require(bool(parts.scheme) and "://" in url, "must be the URL of a folder or a bucket")
    if parts.scheme == "file":
        absolute = parts.netloc in {"", "localhost"} and parts.path.startswith("/")
        _require(absolute, "a folder's URL has three slashes and an absolute path")
    elif parts.scheme == "s3":
        _require(bool(parts.netloc), "must name a bucket")
    return url


def check_http_url(url: str) -> str:
    """An address that may have a path; no user, query or fragment."""
    parts = _split(url)
    _require(_has_scheme(url, _HTTP_SCHEMES), "must be a URL that begins with http:// or https://")
    _require(bool(parts.hostname), "must be a URL with a host")
    _require("@" not in parts.netloc, "must be a URL without user and password")
    _require(not parts.query, "must be a URL without a query")
    return url.rstrip("/")


def check_dsn(url: str) -> str:
    """As Sentry's own SDK reads it, which is not loaded before there is one."""
    parts = _split(url)
    _require(_has_scheme(url, _HTTP_SCHEMES), "must be a Sentry DSN, which begins with https://")
    _require(bool(parts.username), "must be a Sentry DSN with a public key")
    _require(bool(parts.hostname), "must be a Sentry DSN with a host")
    project = parts.path.rpartition("/")[2]
    _require(
        project.isdecimal() and project.isascii(), "must be a Sentry DSN that ends in a project's number"
    )
    _require(not parts.query, "must be a Sentry DSN without a query")
    return url


def _split(url: str) -> SplitResult:
    """The parts; Python's own words for what it cannot split help nobody."""
    _require(not any(character.isspace() for character in url), "must be a URL without white space")
    _require(url.isprintable(), "must be a URL of printable characters")
    # What stands behind it would be lost in silence.
    _require("#" not in url, "must be a URL without #; inside of a password it is written %23")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("must be a URL whose host is a name or an address") from None
    try:
        _ = parts.port
    except ValueError:
        raise ValueError("must be a URL whose port is a number from 0 to 65535") from None
    return parts


def _has_scheme(url: str, schemes: frozenset[str]) -> bool:
    scheme, separator, _ = url.partition("://")
    return bool(separator) and scheme.lower() in schemes


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(rule)
