"""Replicate: official models, versions and deployments, ordered over its HTTP API.

Every order costs money and Replicate has no idempotency key. So `submit` makes one create and never waits
for its result (`Prefer: wait` is not used): the id comes back at once, and the time in which an order is
paid for and not known is as short as it can be. An order whose answer was lost is looked for in the list
of predictions.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import httpx2
import structlog
from pydantic import SecretStr

from fleek.core.errors import ProviderError, ProviderErrorKind
from fleek.providers.base import (
    Accepted,
    AttemptContext,
    BytesOutput,
    Capabilities,
    Done,
    GenerationRequest,
    Handle,
    JsonSchema,
    Output,
    Pending,
    StreamOutput,
)
from fleek.providers.downloads import FetchLimits, OutputFetcher, Resolve, resolve_by_system
from fleek.providers.http import ApiClient, create_ssl_context
from fleek.providers.replicate_api import Patience, Prediction, ReplicateApi
from fleek.providers.replicate_config import ReplicateConfig
from fleek.providers.replicate_errors import GONE
from fleek.providers.replicate_inputs import InputSchema, build_input
from fleek.providers.replicate_models import ReplicateModel
from fleek.providers.replicate_predictions import (
    FAILED,
    RUNNING,
    STOPPED,
    SUCCEEDED,
    decode_inline,
    failure_of,
    is_inline,
    read_metrics,
    read_outputs,
    read_progress,
)

_log = structlog.get_logger(__name__)

_RETENTION = timedelta(hours=1)
"""After this time Replicate removes what went into a prediction and what came out of it."""
_BEFORE_INTENT, _AFTER_INTENT = timedelta(seconds=60), timedelta(seconds=120)
"""How far Replicate's clock may be from ours, and how long a create may take to arrive."""
_VISIBLE_WITHIN = timedelta(seconds=30)
_ASK_AGAIN = timedelta(seconds=1)
_NEVER = datetime.min.replace(tzinfo=UTC)
_DECODED_INLINE = 256 * 1024
"""Characters of base64 that are decoded in less time than a thread needs to take them over."""


class ReplicateProvider:
    """Orders predictions and follows them by their id, which any process can do."""

    name = "replicate"
    # Inputs such as `num_outputs` are the client's own: whatever a prediction then gives is stored.
    capabilities = Capabilities(
        resumable=True, lookup=True, cancel=True, progress=True, seed=True, max_outputs=1, paid=True
    )

    def __init__(  # noqa: PLR0913  what tests and operators set
        self,
        config: ReplicateConfig,
        token: SecretStr,
        *,
        patience: Patience | None = None,
        fetch_limits: FetchLimits | None = None,
        visible_within: timedelta = _VISIBLE_WITHIN,
        resolve: Resolve = resolve_by_system,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """`visible_within`: how long Replicate may not know a prediction that it has just created."""
        self.accepts_undeclared = config.allow_any
        self._visible_within = visible_within
        self._base_url = httpx2.URL(config.base_url)
        self._authorization = SecretStr(f"Bearer {token.get_secret_value()}")
        # Made here, once: it would hold up every other job if it were made for the first order.
        trusted = ssl_context or create_ssl_context()
        client = ApiClient(config.base_url, self._authorization, trusted)
        self._api = ReplicateApi(client, patience or Patience())
        self._fetcher = OutputFetcher(
            config.allowed,
            trusted,
            own=self._base_url,
            headers_for=self._headers_for,
            limits=fetch_limits,
            resolve=resolve,
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """From the `[providers.replicate]` table and REPLICATE_API_TOKEN.

        Raises ProviderUnavailable without a token, ConfigurationError for a key that is wrong.
        """
        settings = ReplicateConfig.read(config)
        return cls(settings, settings.load_token())

    def accepts(self, ref: str) -> bool:
        """Whether the name has the form of a model of Replicate."""
        return ReplicateModel.parse(ref) is not None

    async def submit(self, request: GenerationRequest, context: AttemptContext) -> Accepted:
        """One create, after the model's schema is known; raises ProviderError."""
        model = _model(request.ref)
        values = build_input(request, await self._api.schema(model))
        now = datetime.now(UTC)
        prediction = await self._api.create(model, values, context.time_left)
        return Accepted(Handle(str(prediction["id"]), {"accepted_at": now.isoformat()}))

    async def poll(self, handle: Handle, context: AttemptContext) -> Pending | Done:  # noqa: ARG002  the port's signature
        """How the prediction is. Its outputs are fetched when they are read, never before.

        A ProviderError ends the order only where Replicate says that the prediction has ended.
        """
        prediction = await self._api.get(handle.id)
        if prediction is None:
            return self._unknown(handle)
        status = str(prediction["status"])
        if status in RUNNING:
            return Pending(read_progress(prediction.get("logs")))
        if status == SUCCEEDED:
            outputs = [await self._output(url) for url in read_outputs(prediction)]
            return Done(tuple(outputs), read_metrics(prediction))
        if status == FAILED or status in STOPPED:
            raise failure_of(prediction)
        raise ProviderError(ProviderErrorKind.TRANSIENT, "Replicate tells a status that Fleek does not know")

    async def cancel(self, handle: Handle) -> None:
        """Ask Replicate to stop; what already ran is charged."""
        try:
            await self._api.cancel(handle.id)
        except Exception:  # noqa: BLE001  best effort: the job ends all the same, and Cancel-After ends the order
            _log.warning("cancel_failed", provider=self.name, handle=handle.id)

    async def find(self, request: GenerationRequest, context: AttemptContext) -> Sequence[Handle]:
        """Predictions that a lost create may have made: of its time, this model and the whole input."""
        try:
            found = await self._candidates(request, context)
        except ProviderError as error:
            _log.warning("lookup_failed", provider=self.name, job_id=str(context.job_id), why=error.message)
            return ()
        now = datetime.now(UTC).isoformat()
        return [Handle(str(prediction["id"]), {"accepted_at": now}) for prediction in found]

    def parameter_schema(self, ref: str) -> JsonSchema | None:  # noqa: ARG002  the port's signature
        """Not known before the first order: the start waits for no backend. Replicate checks the input."""
        return None

    async def aclose(self) -> None:
        """Close the connections."""
        await self._api.aclose()

    def _unknown(self, handle: Handle) -> Pending:
        """A prediction that was just created may not be known everywhere yet; an older one is gone."""
        accepted_at = _time_or_none(handle.data.get("accepted_at"))
        if accepted_at is not None and abs(datetime.now(UTC) - accepted_at) < self._visible_within:
            return Pending(poll_after=_ASK_AGAIN)
        message = (
            f"Replicate does not know the prediction {handle.id} any more (result_expired): "
            "it keeps results for an hour; the order may have been paid"
        )
        raise ProviderError(GONE, message)

    async def _output(self, url: str) -> Output:
        if not is_inline(url):
            return StreamOutput(self._fetcher.fetch(url))
        if len(url) <= _DECODED_INLINE:
            return BytesOutput(decode_inline(url))
        return BytesOutput(await asyncio.to_thread(decode_inline, url))

    async def _candidates(self, request: GenerationRequest, context: AttemptContext) -> list[Prediction]:
        model = _model(request.ref)
        inputs = _possible_inputs(request, await self._api.schema(model))
        after, before = _window(context.intent_at)
        return [
            prediction
            async for prediction in self._api.list_created(after, before)
            if model.made(prediction)
            and prediction.get("input") in inputs
            and after <= (_time_or_none(prediction.get("created_at")) or _NEVER) <= before
        ]

    def _headers_for(self, url: httpx2.URL) -> Mapping[str, str]:
        """The key goes to the API's own files, which ask for it, and nowhere else."""
        own, path = self._base_url, self._base_url.path.rstrip("/") + "/"
        if (url.scheme, url.host, url.port) == (own.scheme, own.host, own.port) and url.path.startswith(path):
            return {"Authorization": self._authorization.get_secret_value()}
        return {}


def _model(ref: str) -> ReplicateModel:
    model = ReplicateModel.parse(ref)
    if model is None:
        message = "A model of Replicate is owner/name, owner/name:version or deployments/owner/name"
        raise ProviderError(ProviderErrorKind.PERMANENT_INPUT, message)
    return model


def _possible_inputs(request: GenerationRequest, schema: InputSchema | None) -> list[dict[str, Any]]:
    """What may have been ordered: the schema may have become known, or have been forgotten, meanwhile."""
    inputs: list[dict[str, Any]] = []
    for known in (schema, None):
        # A size that the schema rules out was not ordered by it.
        with suppress(ProviderError):
            inputs.append(build_input(request, known))
    return inputs


def _window(intent_at: datetime | None) -> tuple[datetime, datetime]:
    """When the order may have been created, by Replicate's clock."""
    if intent_at is not None:
        return intent_at - _BEFORE_INTENT, intent_at + _AFTER_INTENT
    now = datetime.now(UTC)
    return now - _RETENTION, now + _BEFORE_INTENT


def _time_or_none(text: object) -> datetime | None:
    """An aware time in foreign JSON."""
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return time if time.tzinfo is not None else None
