"""Prompts sent through a running Fleek, and every picture that comes back checked.

Only the public HTTP API is used, as any client would: submit, wait, look at the job, download.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2
from PIL import Image
from tests.prompts import Prompt

_TERMINAL = frozenset({"completed", "error", "canceled"})
_WAIT_SECONDS = 20
_ANSWER_SECONDS = 30.0
_CONNECTIONS = 100

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for."""

    prompt: Prompt
    size: Size
    seed: int
    input: Mapping[str, Any] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        """The request as JSON."""
        width, height = self.size
        request = {"prompt": self.prompt.text, "width": width, "height": height, "seed": self.seed}
        return request | {"input": dict(self.input)}


@dataclass(frozen=True, slots=True)
class Picture:
    """What came back: the job in full, and the bytes of its result (empty when there is none)."""

    order: Order
    job: Mapping[str, Any]
    content: bytes


def plan_orders(
    prompts: Iterable[Prompt], sizes: Sequence[Size], seed: int, given: Mapping[str, Any] | None = None
) -> list[Order]:
    """One order a prompt, with the sizes in turn and a seed of its own."""
    turns = zip(prompts, itertools.cycle(sizes), itertools.count(seed))
    return [Order(prompt, size, own, given or {}) for prompt, size, own in turns]


async def collect(
    url: str, orders: Sequence[Order], *, on_done: Callable[[], None] = lambda: None
) -> list[Picture]:
    """Submit all orders at once, and wait for every picture, in the order of the orders.

    Raises httpx2.HTTPError when Fleek cannot be reached or refuses a request.
    """
    limits = httpx2.Limits(max_connections=_CONNECTIONS)
    async with httpx2.AsyncClient(base_url=url, timeout=_ANSWER_SECONDS, limits=limits) as client:
        job_ids = await asyncio.gather(*(_submit(client, order) for order in orders))
        work = (_fetch(client, order, job_id, on_done) for order, job_id in zip(orders, job_ids, strict=True))
        return await asyncio.gather(*work)


def find_faults(pictures: Sequence[Picture]) -> list[str]:
    """A sentence for everything that is not as it was ordered; empty when all is well."""
    owners = Counter(hashlib.sha256(picture.content).hexdigest() for picture in pictures if picture.content)
    faults = []
    for picture in pictures:
        found = [*_faults_of(picture)]
        if picture.content and owners[hashlib.sha256(picture.content).hexdigest()] > 1:
            found.append("has the same bytes as another prompt's picture")
        faults += [f"{picture.order.prompt.text!r} {fault}" for fault in found]
    return faults


async def _submit(client: httpx2.AsyncClient, order: Order) -> str:
    response = await client.post("/v1/media/generate", json=order.body)
    return str(response.raise_for_status().json()["id"])


async def _fetch(
    client: httpx2.AsyncClient, order: Order, job_id: str, on_done: Callable[[], None]
) -> Picture:
    """Wait for the end of one job and download its result."""
    status = None
    while status not in _TERMINAL:
        response = await client.get(f"/v1/media/status/{job_id}", params={"wait": _WAIT_SECONDS})
        status = response.raise_for_status().json()["status"]
    job = (await client.get(f"/v1/media/jobs/{job_id}")).raise_for_status().json()
    content = b""
    for media in job["media"][:1]:
        response = await client.get(media["content_url"], follow_redirects=True)
        content = response.raise_for_status().content
    on_done()
    return Picture(order, job, content)


def _faults_of(picture: Picture) -> Iterable[str]:
    """What is wrong with one picture, looked at alone."""
    job = picture.job
    if job["status"] != "completed":
        yield f"ended as {job['status']}: {(job['error'] or {}).get('message', 'no reason is given')}"
        return
    if len(job["media"]) != 1:
        yield f"has {len(job['media'])} results, not one"
        return
    media = job["media"][0]
    if hashlib.sha256(picture.content).hexdigest() != media["sha256"]:
        yield "came with bytes of another sha256 than the job says"
    if (media["width"], media["height"]) != picture.order.size:
        yield f"is recorded as {media['width']} x {media['height']}, not {_words(picture.order.size)}"
    try:
        with Image.open(io.BytesIO(picture.content)) as image:
            image.load()
    except (OSError, SyntaxError) as error:
        yield f"does not decode: {error}"
        return
    if image.size != picture.order.size:
        yield f"is {_words(image.size)} pixels, not {_words(picture.order.size)}"


def _words(size: Size) -> str:
    return f"{size[0]} x {size[1]}"
