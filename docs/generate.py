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

from fleek.settings import PREFIX, ModelSettings, Settings

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

`FLEEK_SECRET_KEY`, `FLEEK_DATABASE_URL` and `FLEEK_REDIS_URL` may each be given as the path of a file, in
`FLEEK_SECRET_KEY_FILE` and so on.

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
    settings = "\n".join(_rows(Settings, lambda name: f"{PREFIX}{name.upper()}"))
    models = "\n".join(_rows(ModelSettings, lambda name: name))
    return {"configuration.md": _CONFIGURATION.format(settings=settings, models=models)}


def _rows(model: type[BaseModel], spell: Any) -> Iterator[str]:  # noqa: ANN401  a function of the name
    for name, field in model.model_fields.items():
        description = " ".join((field.description or "").split()).replace("|", "\\|")
        yield f"| `{spell(name)}` | {_default(field)} | {description} |"


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "" if field.default_factory else "required"
    if field.default in (None, "", ()):
        return ""
    value = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{value}`"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
