"""The demo provider under the conformance suite."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from tests.contracts.provider_suite import ProviderSuite

from fleek.core.errors import ProviderErrorKind
from fleek.providers.base import GenerationRequest, Provider
from fleek.providers.demo import DemoProvider


class TestDemoProvider(ProviderSuite):
    @pytest.fixture
    async def provider(self) -> AsyncIterator[Provider]:
        provider = DemoProvider(default_delay=0)
        yield provider
        await provider.aclose()

    def asking(self, **parameters: Any) -> GenerationRequest:
        return replace(self.request(), input=parameters)

    def failing(self, kind: ProviderErrorKind) -> GenerationRequest:
        return self.asking(error=kind.value)

    def endless(self) -> GenerationRequest:
        return self.asking(hang=True)

    def slow_output(self) -> GenerationRequest:
        return self.asking(slow_output_seconds=0.3)

    def wrong_type(self) -> GenerationRequest:
        return self.asking(wrong_type=True)

    def huge_output(self, size: int) -> GenerationRequest:
        return self.asking(huge_output_bytes=size)
