"""Links in answers are absolute and lead to the routes of the contract."""

from __future__ import annotations

from uuid import UUID

import pytest

from fleek.core.urls import Urls

URLS = Urls("https://media.example.com")
ID = UUID("01920000-0000-7000-8000-000000000001")


@pytest.mark.parametrize(
    ("link", "path"),
    [
        (URLS.job(ID), f"/v1/media/jobs/{ID}"),
        (URLS.status(ID), f"/v1/media/status/{ID}"),
        (URLS.events(ID), f"/v1/media/jobs/{ID}/events"),
        (URLS.cancel(ID), f"/v1/media/jobs/{ID}/cancel"),
        (URLS.content(ID), f"/v1/media/content/{ID}"),
    ],
)
def test_a_link_leads_to_its_route(link: str, path: str) -> None:
    assert link == f"https://media.example.com{path}"


def test_a_signed_path_of_ours_becomes_absolute_and_any_other_url_stays() -> None:
    assert URLS.absolute("/v1/objects/a?b=c") == "https://media.example.com/v1/objects/a?b=c"
    assert URLS.absolute("https://bucket.example.com/a?b=c") == "https://bucket.example.com/a?b=c"
