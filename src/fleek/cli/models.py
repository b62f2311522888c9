"""`fleek models`: what can generate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from fleek.cli.client import UrlOption, model_path, open_client
from fleek.cli.generate import parse_duration
from fleek.cli.output import JsonOption, Output, clean

app = typer.Typer(help="What can generate, what it takes, and whether it may", rich_markup_mode=None)

_NAME = typer.Argument(metavar="NAME", help="As `fleek models ls` prints it", show_default=False)


@app.command("ls")
def list_models(
    *,
    as_json: Annotated[bool, JsonOption] = False,
    url: Annotated[str | None, UrlOption] = None,
) -> None:
    """List the configured models.

    Columns where stdout is not a terminal: name, provider, available (yes, or why not), paused (until when
    and why), price, description.
    """
    output = Output(as_json)
    models = open_client(url).get("/v1/models")
    if as_json:
        output.document(models)
        return
    rows = (
        (
            *(model["name"], model["provider"], _availability(model), _pause(model)),
            *(_price(model), model["description"]),
        )
        for model in models["items"]
    )
    output.rows(("NAME", "PROVIDER", "AVAILABLE", "PAUSED", "PRICE", "DESCRIPTION"), rows)


@app.command("show")
def show_model(
    name: Annotated[str, _NAME],
    *,
    as_json: Annotated[bool, JsonOption] = False,
    url: Annotated[str | None, UrlOption] = None,
) -> None:
    """Show one model: its capabilities, its price, and what `--input` it takes."""
    output = Output(as_json)
    model = open_client(url).get(model_path(name))
    if as_json:
        output.document(model)
    else:
        output.facts(_describe(model))


@app.command("pause")
def pause_model(
    name: Annotated[str, _NAME],
    *,
    length: Annotated[
        str | None,
        typer.Option("--for", metavar="TIME", help="Such as 90s, 15m, 2h, 1d; unset: until resumed"),
    ] = None,
    reason: Annotated[str | None, typer.Option(help="For whoever wonders")] = None,
    as_json: Annotated[bool, JsonOption] = False,
    url: Annotated[str | None, UrlOption] = None,
) -> None:
    """Begin nothing new of a model; jobs are still accepted and wait, and what is under way goes on."""
    body = {"seconds": None if length is None else parse_duration(length, "--for"), "reason": reason}
    model = open_client(url).post(model_path(name, "pause"), body).json
    _print_pause(Output(as_json), model)


@app.command("resume")
def resume_model(
    name: Annotated[str, _NAME],
    *,
    as_json: Annotated[bool, JsonOption] = False,
    url: Annotated[str | None, UrlOption] = None,
) -> None:
    """End any pause of a model, also one that a refused key or an empty account has led to."""
    model = open_client(url).post(model_path(name, "resume"), {}).json
    _print_pause(Output(as_json), model)


def _print_pause(output: Output, model: Mapping[str, Any]) -> None:
    if output.as_json:
        output.document(model)
    else:
        output.data(f"{model['name']}\t{clean(_pause(model)) or 'not paused'}")


def _pause(model: Mapping[str, Any]) -> str:
    """Until when and why a model is paused; empty where it is not."""
    pause = model["pause"]
    if pause is None:
        return ""
    return f"until {pause['until'] or 'resumed'}: {pause['reason']}"


def _availability(model: Mapping[str, Any]) -> str:
    return "yes" if model["available"] else f"no: {model['unavailable_reason']}"


def _price(model: Mapping[str, Any]) -> str:
    price = model["price_per_output"]
    return "" if price is None else f"{price['amount']} {price['currency']}"


def _describe(model: Mapping[str, Any]) -> dict[str, object]:
    """A model as names and values; each parameter that it takes is one of them."""
    facts: dict[str, object] = {name: model[name] for name in ("name", "provider", "description")}
    facts |= {"available": _availability(model), "paused": _pause(model)}
    facts |= {"default": model["is_default"], "price": _price(model)}
    abilities = (model["capabilities"] or {}).items()
    facts["capabilities"] = ", ".join(
        name if value is True else f"{name}={value}" for name, value in abilities if value
    )
    properties = (model["parameters"] or {}).get("properties", {})
    for name, schema in properties.items():
        facts[f"input {name}"] = _parameter(schema)
    return facts


def _parameter(schema: Mapping[str, Any]) -> str:
    """What a value may be, in a line."""
    kind = " or ".join(str(choice) for choice in schema.get("enum", ())) or str(schema.get("type", "any"))
    limits = [
        f"{word} {schema[key]}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in schema
    ]
    default = [f"default {schema['default']}"] if "default" in schema else []
    described = [str(schema["description"])] if "description" in schema else []
    return ", ".join([" ".join([kind, *limits]), *default, *described])
