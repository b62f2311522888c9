"""Making a bucket, which obstore cannot: two requests whose URLs it signs.

A signed URL of the empty key is that of the bucket itself, in either style, so every source of
credentials works here too. New buckets are private everywhere that we know of: AWS blocks public
access to each of them, and R2 and Google Cloud Storage publish nothing unasked.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Awaitable, Callable
from typing import Literal, TypeAlias

import httpx2

from fleek.storage.adapter import StoreLimits
from fleek.storage.base import StorageError, StorageRefusedError
from fleek.storage.refusals import NO_BUCKET, WRONG_REGION, Refusal, find_refusal

Method: TypeAlias = Literal["GET", "HEAD", "PUT"]
SignBucket = Callable[[Method], Awaitable[str]]
"""The signed URL of the bucket for one method."""

_REGIONS_WITHOUT_CONSTRAINT = frozenset({"", "auto", "us-east-1"})
_CONSTRAINT = (
    '<CreateBucketConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    "<LocationConstraint>{region}</LocationConstraint></CreateBucketConfiguration>"
)
_REDIRECTS = frozenset({301, 307, 308})
_REGION = re.compile(r"[a-z0-9-]{1,40}")
_UNTRUSTED = Refusal(
    "its endpoint's certificate is not trusted",
    "let SSL_CERT_FILE name a file with the certificate of the authority that signed it",
)


class BucketMaker:
    """Looks whether a bucket is there, and makes it where it is not."""

    def __init__(self, bucket: str, region: str, sign: SignBucket, limits: StoreLimits) -> None:
        self._bucket = bucket
        self._region = region
        self._sign = sign
        self._timeout = httpx2.Timeout(limits.read, connect=limits.connect)
        self._total = limits.total

    async def ensure(self) -> bool:
        """Whether the bucket was missing. Raises StorageRefusedError; StorageError where waiting may help."""
        async with httpx2.AsyncClient(timeout=self._timeout) as client:
            found = await self._ask(client, "HEAD")
            if found.status_code == httpx2.codes.NOT_FOUND:
                return await self._make(client)
            if found.status_code != httpx2.codes.OK:
                await self._look_closer(client, found)
            return False

    async def _make(self, client: httpx2.AsyncClient) -> bool:
        body = ""
        if self._region not in _REGIONS_WITHOUT_CONSTRAINT:
            body = _CONSTRAINT.format(region=self._region)
        made = await self._ask(client, "PUT", body)
        if made.status_code == httpx2.codes.OK:
            return True
        # Somebody was faster, with the same account.
        if made.status_code == httpx2.codes.CONFLICT and "BucketAlreadyOwnedByYou" in made.text:
            return False
        raise self._explain(made, "create")

    async def _look_closer(self, client: httpx2.AsyncClient, found: httpx2.Response) -> None:
        """A HEAD says no more than its status: a GET of the same bucket tells why, or that all is well."""
        region = found.headers.get("x-amz-bucket-region", "")
        if found.status_code in _REDIRECTS or (region != self._region and _REGION.fullmatch(region)):
            named = f" ({region})" if _REGION.fullmatch(region) else ""
            raise self._refused(Refusal(f"{WRONG_REGION.detail}{named}", WRONG_REGION.remedy))
        if found.is_server_error:
            raise self._explain(found, "list")
        told = await self._ask(client, "GET")
        if told.status_code == httpx2.codes.OK:
            # Some stores ask for more permissions to look at a bucket than to list it.
            return
        if told.status_code == httpx2.codes.FORBIDDEN and "AccessDenied" in told.text:
            detail = "it is somebody else's, or the key may not look into it"
            remedy = "choose another name in FLEEK_STORAGE_URL, or give the key s3:ListBucket"
            raise self._refused(Refusal(detail, remedy))
        raise self._explain(told, "list")

    async def _ask(self, client: httpx2.AsyncClient, method: Method, body: str = "") -> httpx2.Response:
        url = await self._sign(method)
        try:
            # Each read of the client is bounded, but not their number.
            async with asyncio.timeout(self._total):
                return await client.request(method, url, content=body or None)
        except (httpx2.HTTPError, TimeoutError) as error:
            # Not chained: the vendor's text may repeat the signed URL.
            if _is_untrusted(error):
                raise self._refused(_UNTRUSTED) from None
            reason = type(error).__name__
            message = f"the object store of the bucket {self._bucket} does not answer: {reason}"
            raise StorageError(message, "start it, or check FLEEK_STORAGE_ENDPOINT") from None

    def _explain(self, answer: httpx2.Response, action: str) -> StorageError:
        status = f"{answer.status_code} {answer.reason_phrase}".strip()
        refusal = find_refusal(f"status code: {status} {answer.text}", action)
        if refusal is not None and refusal is not NO_BUCKET:
            return self._refused(refusal)
        message = f"the object store answers {status} for the bucket {self._bucket}"
        # 409: another creation is under way; 404: gone between two looks. Both pass.
        is_lasting = answer.is_client_error and answer.status_code not in {404, 408, 409, 429}
        remedy = "check FLEEK_STORAGE_URL, FLEEK_STORAGE_ENDPOINT and FLEEK_STORAGE_REGION"
        return StorageRefusedError(message, remedy) if is_lasting else StorageError(message, remedy)

    def _refused(self, refusal: Refusal) -> StorageRefusedError:
        return StorageRefusedError(f"cannot use the bucket {self._bucket}: {refusal.detail}", refusal.remedy)


def _is_untrusted(error: BaseException | None) -> bool:
    """Whether a certificate is what a connection failed by; the client wraps the reason twice."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False
