"""What a prediction of Replicate made, and that its key goes nowhere else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.contracts.provider_suite import content, generate
from tests.replicate_client import (
    REQUEST,
    asking,
    connect,
)
from tests.replicate_server import ReplicateServer

from fleek.core.errors import OutputInvalid, OutputTooLarge, ProviderError, ProviderErrorKind as Kind
from fleek.core.media import PNG, MediaType
from fleek.media.images import ImageWorker
from fleek.media.outputs import store_output
from fleek.providers.replicate import ReplicateProvider
from fleek.storage.object_store import open_storage
from fleek.storage.signed_urls import UrlSigner


@pytest.mark.parametrize(
    ("output", "count"),
    [("url", 1), ("list", 3), ("object", 3), ("data", 3)],
)
async def test_outputs_come_whole_and_in_order_in_every_shape(
    vendor: ReplicateServer, replicate: ReplicateProvider, output: str, count: int
) -> None:
    request = replace(REQUEST, input={"num_outputs": 3, "fake": {"output": output}})

    outputs = await generate(replicate, request)

    [prediction] = vendor.predictions.values()
    assert [await content(each) for each in outputs] == prediction.files()[:count]


async def test_a_long_data_uri_is_decoded_too(vendor: ReplicateServer, replicate: ReplicateProvider) -> None:
    long = "data:image/png;base64," + "iVBORw0K" * 100_000

    [output] = await generate(replicate, asking(output=[long]))

    assert len(await content(output)) == 600_000
    assert vendor.requests_to("file") == []


@pytest.mark.parametrize("output", ["null", "hello Alice", [], {"score": 0.5}, ["a", "cat"]])
async def test_a_prediction_without_files_is_an_invalid_output_and_its_order_stays(
    vendor: ReplicateServer, replicate: ReplicateProvider, output: Any
) -> None:
    with pytest.raises(OutputInvalid, match="holds no file"):
        await generate(replicate, asking(output=output))

    assert len(vendor.accepted) == 1


@pytest.mark.parametrize(
    ("host", "key"),
    [("own", False), ("api", True), ("foreign", False)],
    ids=["beside", "in the api", "foreign"],
)
async def test_the_key_goes_to_the_apis_own_files_only(vendor: ReplicateServer, host: str, key: bool) -> None:
    provider = connect(vendor, allow_hosts="127.0.0.1")

    [output] = await generate(provider, asking(host=host))
    await content(output)
    await provider.aclose()

    [fetched] = vendor.requests_to("file")
    assert ("authorization" in fetched.headers) is key


async def test_the_key_does_not_follow_a_redirect(vendor: ReplicateServer) -> None:
    provider = connect(vendor, allow_hosts="127.0.0.1")

    [output] = await generate(provider, asking(host="api", file="redirect"))
    with pytest.raises(OutputInvalid):
        # Every answer of this file is a redirect: the fourth is one too many.
        await content(output)
    await provider.aclose()

    first, *others = vendor.requests_to("file")
    assert "authorization" in first.headers
    assert others
    assert not any("authorization" in other.headers for other in others)


async def test_an_output_at_a_host_that_nobody_allowed_is_refused(
    vendor: ReplicateServer, replicate: ReplicateProvider
) -> None:
    [output] = await generate(replicate, asking(host="foreign"))

    with pytest.raises(OutputInvalid, match="does not fetch from"):
        await content(output)
    assert vendor.requests_to("file") == []


@pytest.mark.parametrize(
    ("file", "error"),
    [
        ("html", OutputInvalid),
        ("empty", OutputInvalid),
        ("missing", OutputInvalid),
        ("gzip", OutputInvalid),
        ("loop", OutputInvalid),
        ("truncated", ProviderError),
        ("error", ProviderError),
        ("endless", OutputTooLarge),
    ],
)
async def test_a_broken_file_is_never_stored_and_never_ordered_again(
    vendor: ReplicateServer, replicate: ReplicateProvider, file: str, error: type[Exception]
) -> None:
    storage = open_storage("memory://", signer=UrlSigner(bytes(32)))
    images = ImageWorker(1)
    keys: list[str] = []

    def key_for(media_type: MediaType) -> str:
        keys.append(f"media/x.{media_type.extension}")
        return keys[-1]

    [output] = await generate(replicate, asking(file=file))
    with pytest.raises(error) as caught:
        await store_output(storage, output, key_for=key_for, max_bytes=3_000_000, images=images)
    images.close()

    assert len(vendor.accepted) == 1
    assert not isinstance(caught.value, ProviderError) or caught.value.kind is Kind.TRANSIENT
    assert keys == []


async def test_a_file_is_stored_from_where_it_is(
    vendor: ReplicateServer, replicate: ReplicateProvider
) -> None:
    storage = open_storage("memory://", signer=UrlSigner(bytes(32)))
    images = ImageWorker(1)

    [output] = await generate(replicate, REQUEST)
    stored = await store_output(
        storage, output, key_for=lambda kind: f"a.{kind.extension}", max_bytes=1_000_000, images=images
    )
    images.close()

    [prediction] = vendor.predictions.values()
    assert (stored.content_type, stored.size_bytes) == (PNG.content_type, len(prediction.files()[0]))
