"""The routes that appear in answers, as absolute URLs."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Urls:
    """Builds links on one base, such as `https://media.example.com` (no slash at the end)."""

    base: str

    def job(self, job_id: UUID) -> str:
        """The whole job."""
        return f"{self.base}/v1/media/jobs/{job_id}"

    def status(self, job_id: UUID) -> str:
        """The light status."""
        return f"{self.base}/v1/media/status/{job_id}"

    def events(self, job_id: UUID) -> str:
        """The stream of events."""
        return f"{self.job(job_id)}/events"

    def cancel(self, job_id: UUID) -> str:
        """Where to ask for a cancel."""
        return f"{self.job(job_id)}/cancel"

    def content(self, media_id: UUID) -> str:
        """The bytes of a result."""
        return f"{self.base}/v1/media/content/{media_id}"

    def absolute(self, url: str) -> str:
        """A signed URL as clients reach it: a path is on this API."""
        return f"{self.base}{url}" if url.startswith("/") else url
