"""The OpenAPI document and the page that shows it; nothing of it comes from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from fleek import __version__
from fleek.api.events import JobEvent
from fleek.api.problems import Problem, ProblemError

_STATIC = Path(__file__).parent / "static"
_PAGE_HEADERS = {
    # Swagger UI writes style attributes and embeds small pictures.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
}

TITLE = "Fleek"
DESCRIPTION = """\
One durable HTTP API in front of any media-generation model: post a prompt, get a job at once, watch it,
open the picture.

- Every `/v1/media/...` route answers as `/media/...` too, an alias of the current version:
  `POST /media/generate`, `GET /media/status/{job_id}`, `GET /media/content/{media_id}`, and so on.
- Errors are [RFC 9457](https://www.rfc-editor.org/rfc/rfc9457) problem documents, whose `type` and `code`
  are stable.
- Every answer has an `X-Request-ID`: yours, if you send one of `[A-Za-z0-9-]{1,64}`, or a new one.
- Bodies are JSON in UTF-8 with each key once; unknown fields and query parameters are refused, and so are
  numbers as text.
- Times are RFC 3339 in UTC, ids are UUIDv7.
"""
TAGS = [
    {"name": "media", "description": "Generate, ask how it is, and fetch results"},
    {"name": "jobs", "description": "Everything about a job"},
    {"name": "models", "description": "What can be asked for"},
    {"name": "health", "description": "For load balancers and operators"},
]
_REFERENCE = "#/components/schemas/"
_SHARED: tuple[type[BaseModel], ...] = (Problem, ProblemError, JobEvent)
_REQUEST_ID = {
    "description": "The id of this request, in the log as well",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9-]{1,64}$"},
}


class Application(FastAPI):
    """FastAPI, with a document that knows of problems and of the header that every answer has."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI 3.1 document, built once."""
        if self.openapi_schema is None:
            self.openapi_schema = _build(self)
        return self.openapi_schema


def _build(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=TITLE, version=__version__, description=DESCRIPTION, routes=app.routes, tags=TAGS
    )
    document["info"]["license"] = {"name": "Apache-2.0", "identifier": "Apache-2.0"}
    components = document["components"]
    components["headers"] = {"X-Request-ID": _REQUEST_ID}
    for model in _SHARED:
        schema = model.model_json_schema(mode="serialization", ref_template=_REFERENCE + "{model}")
        components["schemas"] |= schema.pop("$defs", {}) | {model.__name__: schema}
    for schema in components["schemas"].values():
        schema.pop("examples", None)  # FastAPI drops every null in them; the routes have better ones.
    for route in app.routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            for method in route.methods or ():
                _complete(document["paths"][route.path_format][method.lower()], route)
    names = {name: schema.get("title", name) for name, schema in components["schemas"].items()}
    components["schemas"] = {names[name]: schema for name, schema in components["schemas"].items()}
    _rename(document, {_REFERENCE + name: _REFERENCE + title for name, title in names.items()})
    return document


def _complete(operation: dict[str, Any], route: APIRoute) -> None:
    """Give an operation's answers the header that all have, and their examples with every null.

    Parameters lose the null that their Python type has: in a URL there is none, only leaving them out.
    """
    for parameter in operation.get("parameters", ()):
        schema = parameter["schema"]
        if {"type": "null"} in schema.get("anyOf", ()):
            (kept,) = (option for option in schema.pop("anyOf") if option != {"type": "null"})
            parameter["schema"] = schema | kept
    for status, response in operation["responses"].items():
        response.setdefault("headers", {})["X-Request-ID"] = {"$ref": "#/components/headers/X-Request-ID"}
        declared = route.responses[int(status)].get("content", {})
        for media_type, content in declared.items():
            if "examples" in content:
                response["content"][media_type]["examples"] = content["examples"]


def _rename(node: Any, names: dict[str, str]) -> None:  # noqa: ANN401  any part of the document
    """Let references use the public names of the schemas, which are their titles."""
    if isinstance(node, list):
        for item in node:
            _rename(item, names)
    elif isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            node["$ref"] = names.get(node["$ref"], node["$ref"])
        for item in node.values():
            _rename(item, names)


class _Assets(StaticFiles):
    """Files that a browser keeps and asks for by their tag: a new release may bring others."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:  # noqa: ANN401  the framework's, passed on
        """The file, or that it has not changed."""
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def add_docs(app: FastAPI) -> None:
    """`/docs` and its files, to which the address that a newcomer opens first leads."""
    app.add_route("/", _lead_to_docs, include_in_schema=False)
    app.add_route("/docs", _show_docs, include_in_schema=False)
    app.mount("/docs/assets", _Assets(directory=_STATIC))


async def _lead_to_docs(_request: Request) -> Response:
    return RedirectResponse("/docs")


async def _show_docs(_request: Request) -> Response:
    return FileResponse(_STATIC / "docs.html", headers=_PAGE_HEADERS, media_type="text/html; charset=utf-8")
