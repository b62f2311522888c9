"""Requests that the document allows and forbids, made up by a machine: the answers are the promised ones."""

from __future__ import annotations

import schemathesis
from hypothesis import HealthCheck, settings
from tests.api.serving import Api

from fleek.api.app import create_app
from fleek.settings import load_settings

# What a schema cannot say: that width and height come together and 2.0 is no integer here; that a key
# was used with another body; that an event was never sent; that a cursor was not made here.
_CONFIG = """
seed = 1
request-timeout = 60

[[operations]]
include-name = [
    "POST /v1/media/generate", "POST /v1/media/jobs/{job_id}/retry", "POST /v1/models/{name}/pause",
]
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 409, 422]

[[operations]]
include-name = ["GET /v1/media/jobs/{job_id}/events", "GET /v1/media/jobs", "GET /v1/media"]
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 404]
"""

SCHEMA = schemathesis.openapi.from_dict(
    create_app(load_settings()).openapi(), config=schemathesis.Config.from_str(_CONFIG)
)


@SCHEMA.parametrize()
@settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_one_that_the_document_promises(case: schemathesis.Case, api: Api) -> None:
    # No worker runs here: whoever asks to wait would wait for all of the time.
    case.headers.pop("Prefer", None)
    case.query.pop("wait", None)
    case.call_and_validate(base_url=api.url)
