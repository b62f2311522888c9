"""What a `ref` of Replicate names: an official model, one version of a model, or a deployment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_MODEL = re.compile(
    rf"(?!deployments/)(?P<owner>{_PART})/(?P<name>{_PART})(?::(?P<version>[A-Za-z0-9]{{1,64}}))?"
)
_DEPLOYMENT = re.compile(rf"deployments/(?P<owner>{_PART})/(?P<name>{_PART})")
_VERSION = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ReplicateModel:
    """Where predictions of a `ref` are created, and how they are recognised in a list."""

    owner: str
    name: str
    version: str | None = None
    is_deployment: bool = False

    @classmethod
    def parse(cls, ref: str) -> Self | None:
        """From `owner/name`, `owner/name:version`, a version's 64 digits, or `deployments/owner/name`."""
        if deployment := _DEPLOYMENT.fullmatch(ref):
            return cls(deployment["owner"], deployment["name"], is_deployment=True)
        if model := _MODEL.fullmatch(ref):
            return cls(model["owner"], model["name"], model["version"])
        return cls("", "", ref) if _VERSION.fullmatch(ref) else None

    @property
    def create_path(self) -> str:
        """Where a prediction is created."""
        if self.is_deployment:
            return f"/deployments/{self.owner}/{self.name}/predictions"
        return "/predictions" if self.version else f"/models/{self.owner}/{self.name}/predictions"

    @property
    def schema_path(self) -> str | None:
        """Where the schema of the input is; None where it would take several questions to find out."""
        if self.is_deployment or not self.name:
            return None
        model = f"/models/{self.owner}/{self.name}"
        return f"{model}/versions/{self.version}" if self.version else model

    def body(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The body of a create."""
        return {"input": dict(values)} | ({"version": self.version} if self.version else {})

    def made(self, prediction: Mapping[str, Any]) -> bool:
        """Whether a prediction of the list is one of this model's."""
        full_name = f"{self.owner}/{self.name}"
        if self.is_deployment:
            return prediction.get("deployment") in {full_name, self.name}
        if self.version:
            return bool(prediction.get("version") == self.version)
        return bool(prediction.get("model") == full_name)
