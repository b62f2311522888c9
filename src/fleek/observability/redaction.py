"""Secrets taken out of what a process tells: by value, where it knows them, and by their form.

Pure: a `Redactor` is built once from the secrets that a process knows, and is safe to use from any
thread. `known_secrets` finds them in settings and in the environment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Set as AbstractSet
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, unquote
from uuid import UUID

from pydantic import BaseModel, SecretBytes, SecretStr

REDACTED = "[redacted]"
MIN_LENGTH = 8
"""Characters from which on a value is hidden wherever it stands: shorter ones are parts of common words."""
MAX_DEPTH = 24
"""Levels of a value that are looked at; what lies deeper is left out."""

_TOO_DEEP = "[left out: too deep]"
_PAIR = 2
_FILE = "_file"
_MAX_SECRET = 65_536

SECRET_VARIABLES = (
    "REPLICATE_API_TOKEN",
    "OPENAI_API_KEY",
    "FAL_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "SENTRY_DSN",
    "FLEEK_SECRET_KEY",
    "FLEEK_DATABASE_URL",
    "FLEEK_REDIS_URL",
)
"""Variables of the environment that hold a secret, or a URL with one; so does any whose name says so."""

_HIDDEN_NAMES = r"passwords?|passwd|passphrase|secrets?|tokens?|api[_-]?keys?|private[_-]?keys?"
_SECRET_NAME = re.compile(
    rf"(?:^|[._-])(?:{_HIDDEN_NAMES}|secret[_-]?key|secret[_-]?access[_-]?key|credentials|dsn|fal[_-]?key"
    r"|(?:proxy-)?authorization|(?:set-)?cookie|x-amz-signature|signature)$",
    re.IGNORECASE,
)
"""Names of fields whose texts are secrets, whatever they look like."""

_USERINFO = re.compile(r"://(?P<user>[^:/@\s]*):(?P<password>[^@\s\"']+)@(?P<rest>[^\s\"']*)")
_KEY_OF_DSN = re.compile(r"\A[a-z]+://(?P<key>[^:/@\s]{8,})(?::[^@\s]*)?@")

_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    # Authorization: Bearer abc; 'authorization': 'Basic abc'
    (
        re.compile(r"(authorization[\"']?\s*[:=]\s*[\"']?)(?:[a-z]+\s+)?[^\s\"',;]+", re.IGNORECASE),
        rf"\1{REDACTED}",
    ),
    (re.compile(r"\b((?:bearer|basic)\s+)[a-z0-9._~+/=-]{8,}", re.IGNORECASE), rf"\1{REDACTED}"),
    # postgresql://user:password@host
    (re.compile(r"(://[^:/@\s\"']{0,256}:)[^@\s\"']{1,512}@"), rf"\1{REDACTED}@"),
    # Keys that carry their kind: Replicate, OpenAI and its like, Hugging Face, GitHub, AWS.
    (re.compile(r"(?<![A-Za-z0-9])(?:r8_|sk-|hf_|gh[opsu]_)[A-Za-z0-9_-]{8,}"), REDACTED),
    (re.compile(r"(?<![A-Za-z0-9])A(?:KIA|SIA)[A-Z0-9]{12,}"), REDACTED),
    # Parameters of signed URLs.
    (
        re.compile(
            r"\b(x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)|signature|sig)"
            r"=[^&\s\"'<>]+",
            re.IGNORECASE,
        ),
        rf"\1={REDACTED}",
    ),
    # password=abc, "api_key": "abc", secret_key='abc'
    (
        re.compile(
            rf"((?:{_HIDDEN_NAMES}|secret[_-]?key|access[_-]?key)(?:=[\"']?|[\"']\s*:\s*[\"']))"
            r"(?!\[redacted)[^\s\"'&,;<>]+",
            re.IGNORECASE,
        ),
        rf"\1{REDACTED}",
    ),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*-----|\Z)", re.DOTALL), REDACTED),
)

_TRIGGER = re.compile(r"[=:]|bearer|basic|r8_|sk-|hf_|gh[opsu]_|a[ks]ia|-----BEGIN", re.IGNORECASE)
"""What every pattern needs somewhere: most texts have none of it, and are looked at once instead of often."""


class Redactor:
    """Takes secrets out of texts and values: `values` wherever they stand, and whatever has a secret's form.

    Values shorter than `MIN_LENGTH` are left alone: hiding them would hide common words.
    """

    def __init__(self, values: Iterable[str] = ()) -> None:
        forms = {form for value in values if len(value) >= MIN_LENGTH for form in _forms(value)}
        # The longest first: of two secrets, one may begin the other.
        ordered = sorted(forms, key=lambda form: (-len(form), form))
        self._known = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def __repr__(self) -> str:
        return "Redactor()"

    def text(self, text: str) -> str:
        """The text with every secret replaced by `[redacted]`."""
        if self._known is not None:
            text = self._known.sub(REDACTED, text)
        if _TRIGGER.search(text) is None:
            return text
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return text

    def value(self, value: object) -> object:
        """A copy without secrets, at every depth, keys included.

        Mappings and sequences keep their shape, and numbers, times and ids are kept as they are. Bytes
        are left out, but for their number; anything else becomes its text.
        """
        return self._value(value, MAX_DEPTH)

    def field(self, name: str, value: object) -> object:
        """A field's value without secrets: a text is one as a whole where the field's name says so."""
        return self._field(name, value, MAX_DEPTH)

    def _field(self, name: str, value: object, depth: int) -> object:
        if isinstance(value, str | bytes) and value and _is_secret(name):
            return REDACTED
        return self._value(value, depth)

    def _value(self, value: object, depth: int) -> object:
        if isinstance(value, str) and not isinstance(value, Enum):
            return self.text(value)
        if _is_harmless(value):
            return value
        if isinstance(value, SecretStr | SecretBytes):
            return REDACTED
        if isinstance(value, bytes | bytearray | memoryview):
            return f"[{len(value)} bytes]"
        if isinstance(value, Mapping | AbstractSet | list | tuple):
            return self._collection(value, depth - 1) if depth > 0 else _TOO_DEEP
        return self.text(_describe(value))

    def _collection(self, value: Iterable[object], depth: int) -> object:
        if isinstance(value, Mapping):
            return {self.text(str(name)): self._field(str(name), item, depth) for name, item in value.items()}
        items = list(value)
        if len(items) == _PAIR and isinstance(items[0], str):  # such as a header
            items = [items[0], self._field(items[0], items[1], depth)]
        kept = [self._value(item, depth) for item in items]
        return tuple(kept) if isinstance(value, tuple) else kept


def known_secrets(settings: BaseModel, environment: Mapping[str, str]) -> frozenset[str]:
    """The secrets that settings and environment hold: keys, tokens, and the passwords inside URLs.

    Of tables such as a provider's, `token_file` and its like are read.
    """
    found = set(_secrets_in(settings))
    for name, value in environment.items():
        if name in SECRET_VARIABLES or _SECRET_NAME.search(name):
            found |= _parts_of(value)
        else:
            found |= _passwords_in(value)
    return frozenset(value for value in found if len(value) >= MIN_LENGTH)


def _secrets_in(value: object, name: str = "") -> Iterator[str]:
    if isinstance(value, SecretStr):
        yield from _parts_of(value.get_secret_value())
    elif isinstance(value, str) and name.endswith(_FILE) and _is_secret(name.removesuffix(_FILE)):
        yield _content(Path(value))
    elif isinstance(value, str):
        yield from _parts_of(value) if _SECRET_NAME.search(name) else _passwords_in(value)
    elif isinstance(value, BaseModel):
        for field in type(value).model_fields:
            yield from _secrets_in(getattr(value, field), field)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _secrets_in(item, str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _secrets_in(item, name)


def _content(path: Path) -> str:
    """What a file of a secret holds; whoever needs one that cannot be read says so."""
    try:
        with path.expanduser().open(errors="replace") as file:
            return file.read(_MAX_SECRET).strip()
    except OSError:
        return ""


def _parts_of(secret: str) -> set[str]:
    """Of a URL only the password, or a DSN's key: its host is no secret. Anything else as a whole."""
    if "://" not in secret:
        return {secret.strip()}
    key = _KEY_OF_DSN.match(secret)
    is_dsn = key is not None and secret.startswith(("http://", "https://"))
    return _passwords_in(secret) | ({key["key"]} if key is not None and is_dsn else set())


def _passwords_in(text: str) -> set[str]:
    """Passwords of URLs in a text, but for those that are only the user's or the database's name again."""
    found = set()
    for match in _USERINFO.finditer(text):
        password = match["password"]
        if password != match["user"] and password not in re.split(r"[/:?#.]", match["rest"]):
            found |= {password, unquote(password)}
    return found


def _forms(secret: str) -> set[str]:
    """How a secret may be written: as it is, in a URL, in JSON, and as Python shows it."""
    return {secret, quote(secret, safe=""), json.dumps(secret)[1:-1], repr(secret)[1:-1]}


@lru_cache(maxsize=1024)
def _is_secret(name: str) -> bool:
    """Whether a field of this name holds a secret; the names of a program's fields are few."""
    return _SECRET_NAME.search(name) is not None


def _is_harmless(value: object) -> bool:
    kinds = (bool, int, float, date, time, timedelta, Decimal, UUID)
    return value is None or (isinstance(value, kinds) and not isinstance(value, Enum))


def _describe(value: object) -> str:
    try:
        if isinstance(value, BaseException):
            return f"{type(value).__name__}: {value}"
        return str(value) if isinstance(value, Enum) else repr(value)
    except Exception:  # noqa: BLE001  what cannot describe itself is named, and ends no log record
        return f"<{type(value).__name__}>"
