"""What a prediction of Replicate says: how far it is, what it made, or why it failed.

A prediction is foreign JSON: everything here holds for any object.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from fleek.core.errors import OutputInvalid, ProviderError, ProviderErrorKind
from fleek.providers.replicate_errors import GONE, excerpt

RUNNING = frozenset({"starting", "processing"})
SUCCEEDED = "succeeded"
FAILED = "failed"
STOPPED: Mapping[str, str] = {
    "canceled": "Replicate canceled the prediction while it ran: by its deadline, or by somebody",
    "aborted": "Replicate gave the prediction up before it began: its deadline came first",
}
"""The other ends, and what they mean."""

MAX_OUTPUTS = 64
_LOG_TAIL = 2_000
"""Characters of a log's end that are kept."""
_PROGRESS_TAIL = 8_000
_LONGEST_TIME = 1e9
"""Seconds: what is no time at all is not kept."""
_BAR = re.compile(r"(?P<percent>\d{1,3})%\|[^|\r\n]*\|\s*(?P<done>\d+)/(?P<total>\d+)")
"""A bar of tqdm, which practically every model's log has: ` 45%|####     | 9/20 [00:01<00:01]`."""

_POLICY = re.compile(
    r"nsfw|flagged|sensitive content|content[ _-]?policy|policy violation|safety (system|filter|checker)"
    r"|moderation|moderated|\bE005\b",
    re.IGNORECASE,
)
_INPUT = re.compile(r"input validation error|invalid input|input was invalid|\bE006\b", re.IGNORECASE)


def read_progress(logs: object) -> float | None:
    """The fraction that the last progress bar of a log shows; None where there is none."""
    if not isinstance(logs, str):
        return None
    bars = list(_BAR.finditer(logs[-_PROGRESS_TAIL:]))
    if not bars:
        return None
    done, total = int(bars[-1]["done"]), int(bars[-1]["total"])
    fraction = done / total if total else int(bars[-1]["percent"]) / 100
    return min(fraction, 1.0)


def read_metrics(prediction: Mapping[str, Any]) -> dict[str, Any]:
    """What an attempt keeps of a finished prediction: its id, the times in seconds, the end of its log."""
    given = prediction.get("metrics")
    times = given if isinstance(given, dict) else {}
    metrics: dict[str, Any] = {"prediction": _storable(str(prediction.get("id")))}
    for name in ("predict_time", "total_time"):
        value = times.get(name)
        if isinstance(value, int | float) and 0 <= value <= _LONGEST_TIME:
            metrics[name] = value
    logs = prediction.get("logs")
    if isinstance(logs, str) and logs.strip():
        metrics["logs"] = _storable(logs[-_LOG_TAIL:])
    return metrics


def read_outputs(prediction: Mapping[str, Any]) -> list[str]:
    """The URLs of a succeeded prediction, `https:`, `http:` and `data:`, as they stand in its output.

    An output is a URL, a list or an object, in any nesting: lists are read from the first to the last item,
    objects in the order of their members. Text that is no URL is passed over.

    Raises a ProviderError once Replicate has removed them, and OutputInvalid for an output without files.
    """
    output = prediction.get("output")
    if output is None and prediction.get("data_removed"):
        message = "Replicate has removed the outputs (result_expired): it keeps them for an hour"
        raise ProviderError(GONE, message)
    urls = list(_urls(output))
    if not urls:
        raise OutputInvalid("The output of the prediction holds no file")
    if len(urls) > MAX_OUTPUTS:
        raise OutputInvalid(f"The output of the prediction holds more than {MAX_OUTPUTS} files")
    return urls


def is_inline(url: str) -> bool:
    """Whether a URL is its own content."""
    return url[:5].lower() == "data:"


def decode_inline(url: str) -> bytes:
    """The content of a data URI (RFC 2397); raises OutputInvalid."""
    head, comma, data = url[5:].partition(",")
    if not comma:
        raise OutputInvalid("The output of the prediction is a broken data URI")
    raw = unquote_to_bytes(data.encode(errors="replace"))
    if not head.lower().endswith(";base64"):
        return raw
    try:
        return base64.b64decode(raw, validate=True)
    except binascii.Error:
        raise OutputInvalid("The output of the prediction is a broken data URI") from None


def failure_of(prediction: Mapping[str, Any]) -> ProviderError:
    """Why a prediction ended without an output: only a new order can give another result."""
    status = str(prediction.get("status"))
    if status in STOPPED:
        return ProviderError(ProviderErrorKind.TIMEOUT, STOPPED[status], ends_order=True)
    said = prediction.get("error")
    text = said if isinstance(said, str) else ""
    kind = ProviderErrorKind.PROVIDER_BUG
    if _POLICY.search(text):
        kind = ProviderErrorKind.PERMANENT_POLICY
    elif _INPUT.search(text):
        kind = ProviderErrorKind.PERMANENT_INPUT
    given = prediction.get("input")
    told = excerpt(text, given if isinstance(given, dict) else {})
    return ProviderError(kind, f"The prediction failed: {told}" if told else "The prediction failed")


def _urls(value: object) -> Iterator[str]:
    """Without recursion: a foreign value may nest as deep as its text is long."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            if is_inline(item) or item[:8].lower().startswith(("https://", "http://")):
                yield item
        elif isinstance(item, list):
            waiting.extend(reversed(item))
        elif isinstance(item, dict):
            waiting.extend(reversed(item.values()))


def _storable(text: str) -> str:
    """PostgreSQL's jsonb holds no NUL, and UTF-8 no lone surrogate."""
    return text.replace("\0", "").encode(errors="replace").decode()
