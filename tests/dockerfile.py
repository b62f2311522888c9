"""The Dockerfile, read: its stages, their instructions, and what reaches them of the checkout."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tests.compose import ROOT


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction; `stage` counts the FROMs up to it, from 1 (0: above the first)."""

    stage: int
    name: str
    text: str

    def words(self) -> list[str]:
        """Its arguments: JSON, or as a shell splits them, without flags such as `--from=build`."""
        if self.text.startswith("["):
            parsed: list[str] = json.loads(self.text)
            return parsed
        return [word for word in shlex.split(self.text) if not word.startswith("--")]


def instructions() -> list[Instruction]:
    """All of them, in order."""
    text = (ROOT / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found, stage = [], 0
    for line in filter(None, joined.splitlines()):
        name, _, rest = line.partition(" ")
        stage += name == "FROM"
        found.append(Instruction(stage, name, rest))
    return found


def last(name: str) -> Instruction:
    """The one that counts in the final stage."""
    return [found for found in instructions() if found.name == name][-1]


def environment() -> dict[str, str]:
    """What the image sets; `$PATH` is left as it is."""
    final = max(found.stage for found in instructions())
    pairs = [
        word.partition("=")
        for found in instructions()
        if found.stage == final and found.name == "ENV"
        for word in found.words()
    ]
    return {name: value for name, _, value in pairs}


def copied_from_checkout() -> list[str]:
    """Paths that the build takes from its context."""
    return [
        source
        for found in instructions()
        if found.name == "COPY" and "--from=" not in found.text
        for source in found.words()[:-1]
    ]


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a file into the context; the last pattern that fits decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if pattern and not pattern.startswith("#") and _fits(path, pattern.removeprefix("!")):
            sent = pattern.startswith("!")
    return sent


def _fits(path: str, pattern: str) -> bool:
    """A pattern fits a path, or a folder that it lies in."""
    regex = re.escape(pattern).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
    regex = re.sub(r"\\\[(\w+)\\\]", r"[\1]", regex)
    every = [path, *(str(parent) for parent in PurePosixPath(path).parents if str(parent) != ".")]
    return any(re.fullmatch(regex, candidate) for candidate in every)


def files_below(folder: Path) -> list[str]:
    """Every file, as the context names it."""
    return [str(path.relative_to(ROOT)) for path in folder.rglob("*") if path.is_file()]
