"""A provider that hands out the same small picture at once: what is left is the engine's own time.

`stage` offers it to Fleek's processes as a package with an entry point, as any provider can be added.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fleek.core.errors import ProviderError, ProviderErrorKind
from fleek.providers.base import (
    Accepted,
    AttemptContext,
    BytesOutput,
    Capabilities,
    Done,
    GenerationRequest,
    Handle,
    JsonSchema,
    Pending,
)

NAME = "blank"
_SIDE = 64


class BlankProvider:
    """Implements `fleek.providers.base.Provider`."""

    name = NAME
    capabilities = Capabilities(seed=True, max_outputs=8)

    def __init__(self) -> None:
        buffer = io.BytesIO()
        Image.new("RGB", (_SIDE, _SIDE), (66, 99, 132)).save(buffer, "PNG")
        self._output = BytesOutput(buffer.getvalue())

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> BlankProvider:  # noqa: ARG003  there is nothing to set
        """How providers are constructed."""
        return cls()

    async def submit(self, request: GenerationRequest, context: AttemptContext) -> Accepted | Done:  # noqa: ARG002  the protocol's
        """The picture, whatever was asked for."""
        return Done((self._output,) * request.count)

    async def poll(self, handle: Handle, context: AttemptContext) -> Pending | Done:  # noqa: ARG002  the protocol's
        """Nothing is ever accepted for later."""
        raise ProviderError(ProviderErrorKind.PROVIDER_BUG, "There is no order to poll")

    async def cancel(self, handle: Handle) -> None:
        """Nothing runs elsewhere."""

    async def find(self, request: GenerationRequest, context: AttemptContext) -> Sequence[Handle]:  # noqa: ARG002  the protocol's
        """No order outlives `submit`."""
        return ()

    def parameter_schema(self, ref: str) -> JsonSchema | None:  # noqa: ARG002  the protocol's
        """Everything is let through."""
        return None

    async def aclose(self) -> None:
        """Nothing is open."""


def install(folder: Path) -> None:
    """Make `folder`, on a process's PYTHONPATH, look like an installed package that offers the provider."""
    metadata = folder / "fleek_blank-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: fleek-blank\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[fleek.providers]\n{NAME} = {__name__}:BlankProvider\n")
