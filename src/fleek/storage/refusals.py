"""What S3's error codes mean for whoever runs Fleek, and what to do about each.

Only codes and statuses are taken from what a server says: its text may repeat keys and signatures.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_CODE = re.compile(r"<Code>(\w{3,60})</Code>")
_STATUS = re.compile(r"status code: (40[13])\b")
_NEEDED = {
    "write": "s3:PutObject",
    "read": "s3:GetObject",
    "look at": "s3:GetObject",
    "delete": "s3:DeleteObject",
    "list": "s3:ListBucket",
    "create": "s3:CreateBucket",
}
"""The permission that each action takes."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What is wrong, and what an operator can do about it."""

    detail: str
    remedy: str


NO_BUCKET = Refusal("the bucket does not exist", "`fleek storage init` makes it")
WRONG_REGION = Refusal("the bucket lies in another region", "set FLEEK_STORAGE_REGION to its region")
_REFUSALS = {
    "NoSuchBucket": NO_BUCKET,
    "InvalidAccessKeyId": Refusal("the store does not know the access key", "check AWS_ACCESS_KEY_ID"),
    "SignatureDoesNotMatch": Refusal(
        "the secret key does not fit the access key",
        "check AWS_SECRET_ACCESS_KEY, and that no proxy changes the host or the path",
    ),
    "ExpiredToken": Refusal("the credentials have ended", "set new ones, AWS_SESSION_TOKEN included"),
    "InvalidToken": Refusal("the session token is not valid", "check AWS_SESSION_TOKEN"),
    "RequestTimeTooSkewed": Refusal("this machine's clock is wrong", "set the clock by NTP"),
    "PermanentRedirect": WRONG_REGION,
    "AuthorizationHeaderMalformed": WRONG_REGION,
    "AuthorizationQueryParametersError": WRONG_REGION,
    "IllegalLocationConstraintException": WRONG_REGION,
    "InvalidLocationConstraint": Refusal("there is no such region", "check FLEEK_STORAGE_REGION"),
    "InvalidBucketName": Refusal(
        "the store does not take this bucket's name",
        "set FLEEK_STORAGE_URL to 3 to 63 lower-case letters, digits and dashes: s3://my-results",
    ),
    "BucketAlreadyExists": Refusal(
        "somebody else has a bucket of this name", "choose another name in FLEEK_STORAGE_URL"
    ),
    "TooManyBuckets": Refusal("the account may have no more buckets", "delete one, or raise its limit"),
}


def find_refusal(text: str, action: str) -> Refusal | None:
    """What `text`, an answer or a message with one in it, says of `action`; None: nothing that we know."""
    code, status = _CODE.search(text), _STATUS.search(text)
    if code is not None and code[1] in _REFUSALS:
        return _REFUSALS[code[1]]
    name = code[1] if code is not None else ""
    if name in {"AccessDenied", "Unauthorized", "AccountProblem", "AllAccessDisabled"} or status is not None:
        return _denied(
            name or ("403 Forbidden" if status and status[1] == "403" else "401 Unauthorized"), action
        )
    return None


def _denied(reason: str, action: str) -> Refusal:
    needed = _NEEDED.get(action, "the bucket's permissions")
    return Refusal(
        f"the key is refused ({reason})", f"check AWS_ACCESS_KEY_ID and its secret; it needs {needed}"
    )
