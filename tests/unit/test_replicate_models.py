"""What a `ref` of Replicate names, and where it is ordered."""

from __future__ import annotations

from typing import Any

import pytest

from fleek.providers.replicate_models import ReplicateModel

VERSION = "5c7d5dc6dd8bf75c1acaa8565735e7986bc5b66206b55cca93cb72c9bf15ccaa"


@pytest.mark.parametrize(
    ("ref", "create", "schema", "body"),
    [
        (
            "black-forest-labs/flux-schnell",
            "/models/black-forest-labs/flux-schnell/predictions",
            "/models/black-forest-labs/flux-schnell",
            {"input": {"a": 1}},
        ),
        (
            f"replicate/hello-world:{VERSION}",
            "/predictions",
            f"/models/replicate/hello-world/versions/{VERSION}",
            {"input": {"a": 1}, "version": VERSION},
        ),
        (VERSION, "/predictions", None, {"input": {"a": 1}, "version": VERSION}),
        (
            "deployments/acme/app.v2",
            "/deployments/acme/app.v2/predictions",
            None,
            {"input": {"a": 1}},
        ),
    ],
    ids=["official", "version", "bare version", "deployment"],
)
def test_each_kind_is_ordered_at_its_own_place(
    ref: str, create: str, schema: str | None, body: dict[str, Any]
) -> None:
    model = ReplicateModel.parse(ref)

    assert model is not None
    assert model.create_path == create
    assert model.schema_path == schema
    assert model.body({"a": 1}) == body


@pytest.mark.parametrize(
    "ref",
    [
        "",
        "demo",
        "flux-schnell",
        "a/b/c",
        "a//b",
        "/a/b",
        "a/b/",
        "../etc/passwd",
        "a/..",
        "a/b?x=1",
        "a/b#x",
        "a/b:",
        "a/b:v:w",
        "a/b:../../x",
        "a b/c",
        "ä/b",
        "a/b\n",
        "deployments/acme",
        "deployments/a/b/c",
        VERSION[:-1],
        VERSION.upper(),
        f"{'a' * 101}/b",
    ],
)
def test_what_could_lead_elsewhere_is_no_model(ref: str) -> None:
    assert ReplicateModel.parse(ref) is None


@pytest.mark.parametrize(
    ("ref", "prediction", "made"),
    [
        ("acme/a", {"model": "acme/a", "version": "hidden"}, True),
        ("acme/a", {"model": "acme/b", "version": "hidden"}, False),
        (f"acme/a:{VERSION}", {"model": "acme/a", "version": VERSION}, True),
        (f"acme/a:{VERSION}", {"model": "acme/a", "version": "hidden"}, False),
        (VERSION, {"model": "acme/a", "version": VERSION}, True),
        (VERSION, {"model": "acme/a"}, False),
        ("deployments/acme/app", {"model": "x/y", "deployment": "acme/app"}, True),
        ("deployments/acme/app", {"model": "x/y", "deployment": "app"}, True),
        ("deployments/acme/app", {"model": "acme/app"}, False),
        ("acme/a", {}, False),
    ],
)
def test_a_prediction_is_recognised_as_the_models(ref: str, prediction: dict[str, Any], made: bool) -> None:
    model = ReplicateModel.parse(ref)

    assert model is not None
    assert model.made(prediction) is made
