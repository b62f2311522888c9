"""Write the pages of the reference that are made from the code, or check that they are current.

`python docs/generate.py` writes; with `--check` it exits with 1 when a page is not what the code says.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fleek.configuration.complaints import written
from fleek.configuration.dotenv import SHARED_PREFIXES
from fleek.configuration.names import secret_fields, variable_of
from fleek.settings import ModelSettings, Settings

_REFERENCE = Path(__file__).parent / "reference"

_CONFIGURATION = """# Configuration

<!-- Made by docs/generate.py from src/fleek/settings.py; do not edit. -->

Everything has a default that works untouched. Sources, the strongest first: flags, environment, `*_FILE`
for secrets, `.env.local`, `.env`, `fleek.toml` (there the names are lower case and without the prefix), the
defaults. Lists are written with commas. Cloud credentials keep their standard names, such as
`AWS_ACCESS_KEY_ID`.

| variable | default | |
| --- | --- | --- |
{settings}

{secrets} may each be
given as the path of a file, in `FLEEK_SECRET_KEY_FILE` and so on; giving both is an error. Names that
begin with `SENTRY_` may also be written with `FLEEK_` before them; that one wins.

## Files
`.env` holds what a folder's Fleek should be like, `.env.local` what is different on this machine; both are
read from the current folder, as is `fleek.toml`. An empty value, as in `FLEEK_PORT=`, counts as none. What
`.env` and `.env.local` say to others than Fleek's settings reaches those, such as a provider or the object
store, unless the environment itself has a value: the names that begin with
{shared}.
`fleek doctor` says which files were read.

A wrong value stops the start with exit code 2 and one line, which says what is wrong, where, and what it
may look like; so does an unknown key in `fleek.toml`. A variable that begins with `FLEEK_` and sets
nothing is warned of in the log.

```
$ FLEEK_SLOTS=many fleek worker
error: FLEEK_SLOTS: must be a whole number; such as 64
```

## Models
Declared in `fleek.toml`; with none, the built-in `demo` is there.

```toml
[models."sketch"]
provider = "demo"
max_concurrency = 4
attempt_timeout = "2m"
```

| key | default | |
| --- | --- | --- |
{models}
"""


def main(arguments: list[str]) -> int:
    """Write or check; the exit code."""
    stale = []
    for name, text in pages().items():
        path = _REFERENCE / name
        if "--check" not in arguments:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            stale.append(name)
    for name in stale:
        sys.stderr.write(f"docs/reference/{name} is not what the code says; run python docs/generate.py\n")
    return 1 if stale else 0


def pages() -> dict[str, str]:
    """Every generated page by its name."""
    settings = "\n".join(_rows(Settings, variable_of))
    models = "\n".join(_rows(ModelSettings, lambda name, _: name))
    named = [f"`{variable_of(name, field)}`" for name, field in secret_fields(Settings).items()]
    secrets = f"{', '.join(named[:-1])} and {named[-1]}"
    shared = ", ".join(f"`{prefix}`" for prefix in SHARED_PREFIXES)
    return {
        "configuration.md": _CONFIGURATION.format(
            settings=settings, models=models, secrets=secrets, shared=shared
        )
    }


def _rows(model: type[BaseModel], spell: Any) -> Iterator[str]:  # noqa: ANN401  a function of the name
    for name, field in model.model_fields.items():
        description = " ".join((field.description or "").split()).replace("|", "\\|")
        yield f"| `{spell(name, field)}` | {_default(field)} | {description} |"


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "" if field.default_factory else "required"
    if field.default in (None, "", ()):
        return ""
    return f"`{written(field.default)}`"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
