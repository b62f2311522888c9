"""From a job's id to its files: wait, see how it ended, download."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleek.cli.client import Client
from fleek.cli.exits import CommandError, ExitCode
from fleek.cli.feed import Change
from fleek.cli.output import Output
from fleek.cli.saving import Destination, Saver
from fleek.cli.waiting import Job, Terminated, Wait
from fleek.core.job import Status


@dataclass(frozen=True, slots=True)
class Delivery:
    """Brings one job's results to where they belong; without a destination only waits."""

    client: Client
    output: Output
    job_id: str
    destination: Destination | None = None
    timeout: float | None = None
    url: str | None = None
    """The URL that the user named, so that hints name it too."""
    on_change: Callable[[Change], None] | None = None

    def run(self) -> None:
        """Wait and save. Raises CommandError when the job failed, or could not be waited for or saved."""
        watch = self._command("jobs", "watch", self.job_id)
        job = Wait(self.client, self.output, self.job_id, watch, self.timeout, self.on_change).run()
        if job["status"] != Status.COMPLETED:
            self._print(job, [])
            raise self._failure(job)
        paths = [] if self.destination is None else self._save(job, self.destination, watch)
        self._print(job, paths)

    def _save(self, job: Job, destination: Destination, watch: str) -> list[Path]:
        saver = Saver(self.client, destination, tell=self._tell, warn=self.output.warn)
        facts = {"job_id": self.job_id}
        hint = f"the result is kept; `{watch}` saves it"
        try:
            return saver.save(job)
        except CommandError as error:
            raise CommandError(
                error.message,
                exit_code=error.exit_code,
                code=error.problem_code,
                hint=hint,
                facts={**error.facts, **facts},
            ) from error
        except KeyboardInterrupt as interrupt:
            code = ExitCode.TERMINATED if isinstance(interrupt, Terminated) else ExitCode.INTERRUPTED
            message = "Interrupted while saving"
            raise CommandError(message, exit_code=code, code="interrupted", hint=hint, facts=facts) from None

    def _tell(self, path: Path) -> None:
        if not self.output.as_json:
            self.output.data(str(path))

    def _print(self, job: Job, paths: list[Path]) -> None:
        if not self.output.as_json or (self.destination and self.destination.is_standard_output):
            return
        document = {"job": job, "files": [str(path) for path in paths]}
        if self.on_change is None:
            self.output.document(document)
        else:
            self.output.line(document)

    def _failure(self, job: Job) -> CommandError:
        error: Mapping[str, Any] = job.get("error") or {}
        code = str(error.get("code") or job["status"])
        message = "The job was canceled"
        if job["status"] == Status.ERROR:
            message = f"The job failed: {error.get('message') or code}"
        hint = f"`{self._command('jobs', 'retry', self.job_id, with_output=False)}` runs it again"
        can_retry = job["status"] == Status.CANCELED or error.get("retryable")
        return CommandError(
            message,
            exit_code=ExitCode.FAILED,
            code=code,
            hint=hint if can_retry else None,
            facts={"job_id": self.job_id},
        )

    def _command(self, *words: str, with_output: bool = True) -> str:
        options = []
        if with_output and self.destination is not None:
            options = ["--output", self.destination.output or "."]
            options += ["--force"] if self.destination.force else []
        return own_command(*words, *options, url=self.url)


def own_command(*words: str, url: str | None) -> str:
    """A command that the user can copy to go on from here."""
    options = [] if url is None else ["--url", url]
    return shlex.join([_program(), *words, *options])


def _program() -> str:
    """How the user calls this command: by its name where the shell finds it, else as it was typed."""
    typed = Path(sys.argv[0])
    found = shutil.which("fleek")
    if typed.name != "fleek" or (found and Path(found).resolve() == typed.resolve()):
        return "fleek"
    return str(typed)
