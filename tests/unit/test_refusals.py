"""What the codes of S3 mean, and what is never repeated of an answer."""

from __future__ import annotations

import pytest

from fleek.storage.refusals import find_refusal


@pytest.mark.parametrize(
    ("code", "detail", "remedy"),
    [
        ("NoSuchBucket", "does not exist", "fleek storage init"),
        ("InvalidAccessKeyId", "does not know the access key", "AWS_ACCESS_KEY_ID"),
        ("SignatureDoesNotMatch", "does not fit", "AWS_SECRET_ACCESS_KEY"),
        ("ExpiredToken", "have ended", "AWS_SESSION_TOKEN"),
        ("RequestTimeTooSkewed", "clock", "NTP"),
        ("PermanentRedirect", "another region", "FLEEK_STORAGE_REGION"),
        ("AccessDenied", "the key is refused (AccessDenied)", "s3:PutObject"),
        ("BucketAlreadyExists", "somebody else", "FLEEK_STORAGE_URL"),
    ],
)
def test_a_code_names_what_is_wrong_and_what_to_change(code: str, detail: str, remedy: str) -> None:
    found = find_refusal(f"status code: 403 Forbidden: <Error><Code>{code}</Code></Error>", "write")

    assert found is not None
    assert detail in found.detail
    assert remedy in found.remedy


@pytest.mark.parametrize(
    ("action", "permission"),
    [
        ("write", "s3:PutObject"),
        ("read", "s3:GetObject"),
        ("look at", "s3:GetObject"),
        ("delete", "s3:DeleteObject"),
        ("list", "s3:ListBucket"),
        ("create", "s3:CreateBucket"),
    ],
)
def test_a_refused_action_names_the_permission_that_it_takes(action: str, permission: str) -> None:
    """An answer to HEAD has no body: only its status speaks."""
    found = find_refusal("Server returned non-2xx status code: 403 Forbidden: ", action)

    assert found is not None
    assert permission in found.remedy
    assert found.detail == "the key is refused (403 Forbidden)"


@pytest.mark.parametrize(
    "text",
    ["", "status code: 404 Not Found: ", "status code: 503 Slow Down", "<Code>NoSuchKey</Code>", "in 403ms"],
)
def test_what_may_pass_or_is_unknown_is_no_refusal(text: str) -> None:
    assert find_refusal(text, "read") is None


def test_nothing_else_of_an_answer_is_repeated() -> None:
    text = "status code: 403: <Code>AccessDenied</Code><AWSAccessKeyId>AKIA-not-for-logs</AWSAccessKeyId>"
    found = find_refusal(text, "read")

    assert "AKIA" not in repr(found)
