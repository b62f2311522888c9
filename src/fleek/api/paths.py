"""Parts of paths that the framework's own patterns do not describe, as routes write them."""

from __future__ import annotations

from starlette.convertors import Convertor, register_url_convertor


class _TextConvertor(Convertor[str]):
    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class ResultConvertor(_TextConvertor):
    """`{media_id:result}`: one segment that is none of the names that other routes have in its place.

    Otherwise `GET /v1/media/generate` would be a search for the result "generate", and not a method
    that this route does not know.
    """

    regex = "(?!(?:generate|status|jobs|content)$)[^/]+"


class ModelConvertor(_TextConvertor):
    """`{name:model}`: any text, slashes included, but for what is done to a model.

    Otherwise `GET /v1/models/demo/pause` would be a search for the model "demo/pause".
    """

    regex = r"(?![\s\S]*/(?:pause|resume)$)[\s\S]*"


class AnythingConvertor(_TextConvertor):
    """`{key:anything}`: like `path`, and line breaks too, so that no text is an unknown route."""

    regex = r"[\s\S]*"


register_url_convertor("result", ResultConvertor())
register_url_convertor("model", ModelConvertor())
register_url_convertor("anything", AnythingConvertor())

MEDIA_ID = "{media_id:result}"
OBJECT_KEY = "{key:anything}"
MODEL = "{name:model}"
MODEL_TO = "{name:anything}"
"""The same, before the word for what is to be done to it."""
