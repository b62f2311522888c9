"""Content URLs that Fleek signs itself."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, strategies as st

from fleek.core.errors import Forbidden
from fleek.storage.signed_urls import UrlSigner

KEY = "media/0198c0de-0000-7000-8000-000000000001/0198c0de-0000-7000-8000-000000000002/1.w512.webp"
NOW = datetime(2026, 11, 20, 12, 0, 0, 400_000, tzinfo=UTC)
EXPIRES_AT = NOW + timedelta(minutes=10)
SIGNER = UrlSigner(b"one secret of at least 32 bytes..")


def signed(key: str = KEY, expires_at: datetime = EXPIRES_AT) -> tuple[str, str]:
    """The `expires` and `signature` of a URL."""
    query = parse_qs(urlsplit(SIGNER.sign(key, expires_at)).query, strict_parsing=True)
    return query["expires"][0], query["signature"][0]


def test_a_signed_url_is_a_path_that_needs_no_escaping() -> None:
    parts = urlsplit(SIGNER.sign(KEY, EXPIRES_AT))

    assert (parts.scheme, parts.netloc, parts.path) == ("", "", f"/v1/objects/{KEY}")
    assert sorted(parse_qs(parts.query)) == ["expires", "signature"]
    assert "%" not in parts.query


def test_the_path_prefix_is_the_callers_choice() -> None:
    assert UrlSigner(b"secret", "/objects/").sign("media/a/1.png", NOW).startswith("/objects/media/a/1.png?")


def test_a_signature_is_good_until_the_second_it_names() -> None:
    expires, signature = signed()
    end = datetime.fromtimestamp(int(expires), UTC)
    SIGNER.verify(KEY, expires, signature, NOW)
    SIGNER.verify(KEY, expires, signature, end - timedelta(milliseconds=1))
    with pytest.raises(Forbidden):
        SIGNER.verify(KEY, expires, signature, end)

    assert EXPIRES_AT - timedelta(seconds=1) < end <= EXPIRES_AT


@pytest.mark.parametrize(
    ("key", "expires", "signature"),
    [
        (KEY.replace("1.w512", "2.w512"), None, None),
        ("media/other/1.png", None, None),
        (f"/{KEY}", None, None),
        (f"media/../{KEY}", None, None),
        ("", None, None),
        (KEY, "1763640000", None),
        (KEY, "99999999999", None),
        (KEY, "999999999999999999999999", None),
        (KEY, "", None),
        (KEY, "-1", None),
        (KEY, "1e9", None),
        (KEY, "١٢٣", None),
        (KEY, "nan", None),
        (KEY, None, ""),
        (KEY, None, "A" * 43),
        (KEY, None, "é\udc80"),
    ],
)
def test_anything_altered_is_forbidden(key: str, expires: str | None, signature: str | None) -> None:
    good_expires, good_signature = signed()
    with pytest.raises(Forbidden):
        SIGNER.verify(
            key,
            good_expires if expires is None else expires,
            good_signature if signature is None else signature,
            NOW,
        )


@pytest.mark.parametrize("altered", [lambda s: s[:-1], lambda s: s + "=", lambda s: s.swapcase(), str.upper])
def test_a_signature_is_compared_as_written(altered: Callable[[str], str]) -> None:
    expires, signature = signed()
    with pytest.raises(Forbidden):
        SIGNER.verify(KEY, expires, altered(signature), NOW)


def test_a_signature_of_another_secret_is_forbidden() -> None:
    expires, signature = signed()
    with pytest.raises(Forbidden):
        UrlSigner(b"another secret of at least 32 byte").verify(KEY, expires, signature, NOW)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "media",
        "media/",
        "other/1.png",
        "media/../secret",
        "media/a/../../b",
        "media//a",
        "media/a?b=c",
        "media/a#b",
        "media/a%2e%2e/b",
        "media/.hidden",
        "media/a\n",
        "media/ä",
        "/media/a",
        "media/a b",
        "media/" + "a" * 600,
    ],
)
def test_only_the_keys_of_results_are_signed(key: str) -> None:
    with pytest.raises(ValueError, match="not the key of a result"):
        SIGNER.sign(key, EXPIRES_AT)


@given(st.text(), st.text(), st.text())
def test_no_text_whatsoever_is_accepted_or_breaks_the_check(key: str, expires: str, signature: str) -> None:
    with pytest.raises(Forbidden):
        SIGNER.verify(key, expires, signature, NOW)
