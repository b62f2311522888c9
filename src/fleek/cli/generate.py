"""`fleek generate`: a prompt in, pictures out."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from fleek.cli.client import NO_ANSWER, Client, UrlOption, open_client
from fleek.cli.delivery import Delivery, own_command
from fleek.cli.exits import CommandError, ExitCode, usage_error
from fleek.cli.output import JsonOption, Output
from fleek.cli.saving import Destination, choose_format
from fleek.cli.waiting import Terminated, heeding_sigterm
from fleek.core.media import OutputFormat

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def generate(  # noqa: PLR0913  one parameter a flag
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to show", show_default=False)],
    *,
    n: Annotated[int, typer.Option("--n", "-n", help="Number of pictures")] = 1,
    model: Annotated[str | None, typer.Option(help="A name of `fleek models ls`; unset: the default")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the first picture")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels, with --height")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, with --width")] = None,
    image_format: Annotated[
        OutputFormat | None,
        typer.Option("--format", help="Unset: as --output is named, else png"),
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to avoid")] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="KEY=VALUE",
            help="For the model itself, repeatable; a value that is JSON is sent as such",
        ),
    ] = None,
    priority: Annotated[int | None, typer.Option(help="-10 to 10, higher first")] = None,
    deadline: Annotated[
        str | None,
        typer.Option(help="Give up after this long: 90, 90s, 15m, 2h, 1d", metavar="TIME"),
    ] = None,
    max_attempts: Annotated[int | None, typer.Option(help="Failures before giving up")] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Yours, repeatable: kept with the job"),
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same key makes one job, however often")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE|DIR|-",
            help="Unset: a name made of the prompt; a folder for several; - is stdout",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE")] = False,
    timeout: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds to wait; then exit 124, the job goes on"),
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Only submit, and print the job's id")] = False,
    as_json: Annotated[bool, JsonOption] = False,
    url: Annotated[str | None, UrlOption] = None,
) -> None:
    """Generate pictures from a prompt, and save them.

    Prints the path of each saved file. Ctrl-C asks whether to leave the job running or to cancel it.
    """
    body = _without_absent(
        prompt=prompt,
        model=model,
        n=n if n != 1 else None,
        seed=seed,
        width=width,
        height=height,
        output_format=image_format or choose_format(output),
        negative_prompt=negative_prompt,
        input=parse_pairs("--input", inputs, parse_value) or None,
        priority=priority,
        deadline_seconds=None if deadline is None else parse_duration(deadline, "--deadline"),
        max_attempts=max_attempts,
        metadata=parse_pairs("--metadata", metadata, str) or None,
    )
    destination = Destination(output, force, n)
    _check(destination, no_wait=no_wait, as_json=as_json)
    key = uuid.uuid4().hex if idempotency_key is None else parse_key(idempotency_key)
    client = open_client(url)
    with heeding_sigterm():
        job = _submit(client, Output(as_json), body, key)
        if no_wait:
            _print_accepted(Output(as_json), job, own_command("jobs", "watch", job["id"], url=url))
        else:
            Delivery(client, Output(as_json), job["id"], destination, timeout, url).run()


def parse_pairs(option: str, pairs: Sequence[str] | None, parse: Any) -> dict[str, Any]:  # noqa: ANN401  any function of a text
    """`KEY=VALUE` texts as a dict. Raises a usage error for a missing `=` and for a repeated key."""
    values: dict[str, Any] = {}
    for pair in pairs or ():
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise usage_error(f"{option} {pair!r} is not KEY=VALUE")
        if key in values:
            raise usage_error(f"{option} names {key!r} twice")
        values[key] = parse(value)
    return values


def parse_value(text: str) -> Any:  # noqa: ANN401  any JSON value
    """The text as JSON where it is JSON, else as it stands; `"4"` in quotes stays a text."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text


def _refuse(constant: str) -> Any:  # noqa: ANN401  never returns
    """NaN and Infinity are words to everyone but Python's reader."""
    raise ValueError(constant)


def parse_duration(text: str, option: str) -> int:
    """Seconds of `90`, `90s`, `15m`, `2h` or `1d`."""
    match = re.fullmatch(r"(\d{1,9})([smhd]?)", text.strip())
    if match is None:
        raise usage_error(f"{option} {text!r} is not a time", "examples: 90, 90s, 15m, 2h, 1d")
    return int(match[1]) * _UNITS[match[2]]


def parse_key(key: str) -> str:
    """The key, if a header can carry it."""
    if re.fullmatch(r"[!-~]{1,255}", key) is None:
        raise usage_error("--idempotency-key takes 1 to 255 visible ASCII characters")
    return key


def _without_absent(**values: Any) -> dict[str, Any]:  # noqa: ANN401  any JSON value
    """Only what the user said: the server knows the defaults, and a key's fingerprint is that of the body."""
    return {name: value for name, value in values.items() if value is not None}


def _check(destination: Destination, *, no_wait: bool, as_json: bool) -> None:
    """Refuse what could not be saved before it is made, for making it may cost money."""
    if no_wait:
        if destination.output is not None:
            raise usage_error("--output needs the result, which --no-wait does not wait for")
        return
    if as_json and destination.is_standard_output:
        raise usage_error("Standard output cannot take both the picture and --json")
    destination.check()


def _submit(client: Client, output: Output, body: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The accepted job. The key makes it safe to send again what may have arrived already."""
    hint = f"the same command with --idempotency-key {key} finds out, and makes no second job"
    try:
        reply = client.post("/v1/media/generate", body, key=key)
    except CommandError as error:
        if error.problem_code == NO_ANSWER:
            error.hint = hint
        raise
    except KeyboardInterrupt as interrupt:
        code = ExitCode.TERMINATED if isinstance(interrupt, Terminated) else ExitCode.INTERRUPTED
        message = "Interrupted while submitting; the job may have been accepted"
        raise CommandError(message, exit_code=code, code="interrupted", hint=hint) from None
    if reply.headers.get("idempotency-replayed") == "true":
        output.note("This key was used before: here is the job that it made")
    return dict(reply.json)


def _print_accepted(output: Output, job: Mapping[str, Any], watch: str) -> None:
    if output.as_json:
        output.document({"job": job, "files": []})
        return
    output.data(str(job["id"]))
    output.note("Accepted", f"`{watch}` follows it; with --output it also saves the result")
