"""The `fleek` command as people and scripts use it: the program, against a running `script/up`."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from tests.acceptance.conftest import ROOT, Up, clean_environment, gone_within
from tests.terminal import Terminal

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="`script/up` is accepted in the same way")

FLEEK = Path(sys.executable).parent / "fleek"
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_QUICK = ("--input", "delay_seconds=0", "--width", "64", "--height", "64")
_SLOW = ("--input", "delay_seconds=60", "--width", "64", "--height", "64")


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    """One Fleek with one worker, for all tests of this module."""
    with tempfile.TemporaryDirectory(prefix="fleek-home-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        command = [
            str(ROOT / "script" / "up"),
            "--home",
            str(folder / "home"),
            "--port",
            "0",
            "--workers",
            "1",
        ]
        with (folder / "up.err").open("w") as errors:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=folder, env=clean_environment()
            )
        started = Up(process, folder / "up.err", time.monotonic(), facts={})
        try:
            started.wait_ready()
            yield started
        finally:
            process.terminate()
            process.communicate(timeout=20)
        assert gone_within(folder, 5)


@dataclass(frozen=True, slots=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def hint(self) -> str:
        """Its last hint."""
        return [line for line in self.err.splitlines() if line.startswith("hint: ")][-1]


@dataclass(frozen=True, slots=True)
class Shell:
    """Runs `fleek` in a folder, with the home of the running Fleek in the environment."""

    folder: Path
    environment: Mapping[str, str]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command, without a terminal."""
        pipe = subprocess.PIPE
        command = [str(FLEEK), *arguments]
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            text=True,
            cwd=self.folder,
            env=self.environment,
        )

    def run(self, *arguments: str) -> Said:
        """Run a command to its end."""
        return finish(self.start(*arguments))

    def run_json(self, *arguments: str) -> object:
        """Run a command that succeeds; its document."""
        said = self.run(*arguments, "--json")
        assert (said.code, said.err) == (0, "")
        return json.loads(said.out)

    def submit(self, *arguments: str) -> str:
        """A job's id, without waiting for it."""
        said = self.run("generate", "a quiet harbour", "--no-wait", *arguments)
        assert said.code == 0, said.err
        return said.out.strip()


def finish(process: subprocess.Popen[str]) -> Said:
    """What a command said, once it has ended."""
    out, err = process.communicate(timeout=60)
    return Said(process.returncode, out, err)


@pytest.fixture
def shell(up: Up, tmp_path: Path) -> Shell:
    """A shell in an empty folder."""
    return Shell(tmp_path, clean_environment({"FLEEK_HOME": str(up.facts["home"])}))


class TestGenerate:
    """A prompt in, a picture out."""

    def test_a_picture_is_saved_and_only_its_path_is_printed(self, shell: Shell) -> None:
        said = shell.run("generate", "a lighthouse at dawn", "--output", "lighthouse.png")

        assert (said.code, said.out) == (0, "lighthouse.png\n")
        assert said.err.splitlines() == ["Waiting for a worker", "Generating"]
        with Image.open(shell.folder / "lighthouse.png") as picture:
            assert (picture.format, picture.size) == ("PNG", (1024, 1024))

    def test_several_pictures_go_into_a_folder(self, shell: Shell) -> None:
        said = shell.run("generate", "boats", "--n", "4", "--output", "out", "--seed", "3", *_QUICK)

        paths = said.out.splitlines()
        assert said.code == 0
        assert [path.name for path in sorted((shell.folder / "out").iterdir())] == [
            path.removeprefix("out/") for path in paths
        ]
        assert re.fullmatch(r"out/boats-[0-9a-f]{8}-1\.png", paths[0])
        assert len({(shell.folder / path).read_bytes() for path in paths}) == 4

    @pytest.mark.parametrize(
        ("name", "flags", "kind"),
        [
            ("x.jpg", (), "JPEG"),
            ("x.webp", (), "WEBP"),
            ("x", (), "PNG"),
            ("x", ("--format", "webp"), "WEBP"),
        ],
    )
    def test_the_format_follows_the_name_or_the_flag(
        self, shell: Shell, name: str, flags: tuple[str, ...], kind: str
    ) -> None:
        said = shell.run("generate", "boats", "--output", name, *flags, *_QUICK)

        assert said.code == 0, said.err
        with Image.open(shell.folder / name) as picture:
            assert (picture.format, picture.size) == (kind, (64, 64))

    def test_the_same_seed_gives_the_same_picture(self, shell: Shell) -> None:
        for name in ("a.png", "b.png"):
            shell.run("generate", "boats", "--seed", "7", "--output", name, *_QUICK)

        assert (shell.folder / "a.png").read_bytes() == (shell.folder / "b.png").read_bytes()

    def test_without_a_name_the_prompt_names_the_file(self, shell: Shell) -> None:
        said = shell.run("generate", "灯台の夜明け", *_QUICK)

        assert re.fullmatch(r"灯台の夜明け-[0-9a-f]{8}\.png\n", said.out)
        assert (shell.folder / said.out.strip()).is_file()

    def test_standard_output_can_be_the_file(self, shell: Shell) -> None:
        command = [str(FLEEK), "generate", "boats", "--output", "-", *_QUICK]
        result = subprocess.run(command, capture_output=True, check=True, env=shell.environment)

        with Image.open(io.BytesIO(result.stdout)) as picture:
            assert picture.size == (64, 64)

    def test_an_existing_picture_is_kept_unless_forced(self, shell: Shell) -> None:
        (shell.folder / "x.png").write_bytes(b"precious")
        before = len(shell.run("jobs", "ls", "--all").out.splitlines())

        refused = shell.run("generate", "boats", "--output", "x.png", *_QUICK)

        assert refused.code == 2
        assert refused.err == "error: x.png exists\nhint: --force overwrites it, another --output keeps it\n"
        assert (shell.folder / "x.png").read_bytes() == b"precious"
        assert len(shell.run("jobs", "ls", "--all").out.splitlines()) == before
        assert shell.run("generate", "boats", "--output", "x.png", "--force", *_QUICK).code == 0

    def test_with_json_there_is_one_document_and_nothing_else(self, shell: Shell) -> None:
        document = shell.run_json("generate", "boats", "--output", "x.png", "--metadata", "order=1", *_QUICK)

        assert isinstance(document, dict)
        assert document["files"] == ["x.png"]
        assert document["job"]["status"] == "completed"
        assert document["job"]["metadata"] == {"order": "1"}

    def test_a_refused_prompt_is_exit_1(self, shell: Shell) -> None:
        said = shell.run(
            "generate", "boats", "--output", "x.png", "--input", "error=permanent_policy", *_QUICK
        )

        assert (said.code, said.out) == (1, "")
        assert said.err.splitlines()[-1].startswith("error: The job failed: ")
        assert list(shell.folder.iterdir()) == []

    def test_a_failed_attempt_is_told_and_tried_again(self, shell: Shell) -> None:
        said = shell.run("generate", "boats", "--output", "x.png", "--input", "fail_times=1", *_QUICK)

        assert said.code == 0
        assert "Failed once, will try again: " in said.err

    @pytest.mark.parametrize(
        ("flags", "pointer"),
        [
            (["--width", "3", "--height", "64"], "/width"),
            (["--n", "9"], "/n"),
            (["--input", "delay_seconds=-1"], "/input/delay_seconds"),
            (["--deadline", "1s"], "/deadline_seconds"),
        ],
    )
    def test_what_the_server_refuses_is_exit_2_with_the_place(
        self, shell: Shell, flags: list[str], pointer: str
    ) -> None:
        said = shell.run("generate", "boats", "--output", "x.png", *flags)
        told = json.loads(shell.run("generate", "boats", *flags, "--json").err)

        assert said.code == 2
        assert f"\n  {pointer}: " in said.err
        assert (told["exit_code"], told["status"], told["errors"][0]["pointer"]) == (2, 422, pointer)

    def test_an_unknown_model_is_exit_2(self, shell: Shell) -> None:
        assert shell.run("generate", "boats", "--model", "nobody/knows").code == 2

    def test_an_idempotency_key_makes_one_job(self, shell: Shell) -> None:
        flags = ("--idempotency-key", f"key-{time.time_ns()}", *_QUICK)
        first = shell.submit(*flags)

        assert shell.submit(*flags) == first
        assert shell.run("generate", "another prompt", "--no-wait", *flags).code == 2

    def test_a_timeout_is_exit_124_and_its_hint_works(self, shell: Shell) -> None:
        said = shell.run(
            "generate", "boats", "--output", "x.png", "--input", "delay_seconds=2", "--timeout", "0.5"
        )
        watch = said.hint.split("`")[1].split()[1:]

        again = shell.run(*watch)

        assert said.code == 124
        assert "it goes on" in said.err
        assert (again.code, again.out) == (0, "x.png\n")
        assert (shell.folder / "x.png").is_file()


class TestInterrupt:
    """Ctrl-C never loses a job, and cancels one only when told to."""

    def test_without_a_terminal_it_detaches_and_tells_the_id(self, shell: Shell) -> None:
        process = shell.start("generate", "boats", "--output", "x.png", *_SLOW)
        assert process.stderr is not None
        while process.stderr.readline() != "Generating\n":
            pass
        process.send_signal(signal.SIGINT)

        said = finish(process)

        found = _ID.search(said.err)
        assert (said.code, said.out) == (130, "")
        assert found is not None
        assert f"jobs watch {found[0]} --output x.png" in said.hint
        assert shell.run("jobs", "cancel", found[0]).out.split("\t")[1].strip() in {"processing", "canceled"}

    @pytest.mark.parametrize(
        ("typed", "status", "said"),
        [
            (b"c\n", "canceled", "The job was canceled"),
            (b"d\n", "processing", "goes on"),
            (b"what?\nd\n", "processing", "Please type d or c"),
            (b"\x03", "processing", "goes on"),
            (b"\x04", "processing", "goes on"),
        ],
    )
    def test_on_a_terminal_it_asks(self, shell: Shell, typed: bytes, status: str, said: str) -> None:
        with Terminal([FLEEK, "generate", "boats", *_SLOW], shell.folder, shell.environment) as terminal:
            terminal.read_until("%")
            terminal.type(b"\x03")
            terminal.read_until("[d/c] ")
            terminal.type(typed)
            code = terminal.wait()

        job_id = _ID.search(terminal.text)
        assert job_id is not None
        assert code == 130
        assert said in terminal.text
        assert shell.run("jobs", "get", job_id[0]).out.splitlines()[1] == f"status\t{status}"
        shell.run("jobs", "cancel", job_id[0])


class TestTerminal:
    """People get a bar, tables and colours; NO_COLOR is heeded."""

    def test_a_bar_moves_and_disappears(self, shell: Shell) -> None:
        command = [str(FLEEK), "generate", "boats", "--output", "x.png", "--input", "delay_seconds=5"]
        with Terminal(command, shell.folder, shell.environment) as terminal:
            code = terminal.wait()

        assert code == 0
        assert "Generating" in terminal.text
        assert re.search(r"[1-9]\d%", terminal.text)
        assert terminal.text.rstrip().endswith("x.png")

    def test_a_table_shows_whole_ids_and_no_markup_or_escape_of_a_prompt(self, shell: Shell) -> None:
        job_id = finish(
            shell.start("generate", "[bold]x[/bold]\x1b]0;title\x07", "--no-wait", *_QUICK)
        ).out.strip()

        with Terminal(
            [FLEEK, "jobs", "ls", "--limit", "3"], shell.folder, shell.environment, columns=60
        ) as terminal:
            terminal.wait()

        assert re.search(r"\ds ago", terminal.text)
        assert "PROMPT" in terminal.text
        assert job_id in terminal.text
        assert "[bold]x" in terminal.text
        assert "\x1b]0;" not in terminal.text

    def test_no_color_means_no_escape_at_all(self, shell: Shell) -> None:
        plain = {**shell.environment, "NO_COLOR": "1"}

        with Terminal(
            [FLEEK, "generate", "boats", "--output", "x.png", *_QUICK], shell.folder, plain
        ) as terminal:
            code = terminal.wait()

        assert code == 0
        assert "\x1b" not in terminal.text


class TestJobs:
    """Look at jobs and steer them."""

    def test_a_job_from_submit_to_retry(self, shell: Shell) -> None:
        job_id = shell.submit(*_SLOW)

        canceled = shell.run("jobs", "cancel", job_id)
        watched = shell.run("jobs", "watch", job_id)
        retried = shell.run("jobs", "retry", job_id)
        shell.run("jobs", "cancel", job_id)

        assert canceled.code == 0
        assert canceled.out.startswith(f"{job_id}\t")
        assert (watched.code, watched.out) == (1, "")
        assert (retried.code, retried.out) == (0, f"{job_id}\tin_queue\n")

    def test_watch_with_json_prints_one_event_a_line_and_the_job_last(self, shell: Shell) -> None:
        said = shell.run("jobs", "watch", shell.submit(*_QUICK), "--json")

        *events, last = [json.loads(line) for line in said.out.splitlines()]
        kinds = [event["event"] for event in events if event["event"] != "progress"]
        assert (said.code, said.err) == (0, "")
        assert kinds == ["accepted", "claimed", "completed"]
        assert [event["sequence"] for event in events if event["sequence"]] == [1, 2, 3]
        assert last["job"]["status"] == "completed"

    def test_the_log_of_a_job_is_followed_to_its_last_record(self, shell: Shell) -> None:
        job_id = shell.submit(*_QUICK)

        followed = shell.run("jobs", "logs", job_id, "-f", "--json")
        again = shell.run("jobs", "logs", job_id)

        records = [json.loads(line) for line in followed.out.splitlines()]
        assert (followed.code, followed.err) == (0, "")
        assert [record["event"] for record in records] == [
            "attempt_started",
            "outputs_stored",
            "attempt_finished",
        ]
        assert records[-1]["data"]["outcome"] == "completed"
        assert len(again.out.splitlines()) == 3

    def test_watching_a_finished_job_can_still_save_it(self, shell: Shell) -> None:
        job_id = shell.submit(*_QUICK)
        assert shell.run("jobs", "watch", job_id).out == f"{job_id}\tcompleted\n"

        said = shell.run("jobs", "watch", job_id, "--output", "late.png")

        assert (said.code, said.out) == (0, "late.png\n")

    def test_a_completed_job_is_neither_canceled_nor_retried(self, shell: Shell) -> None:
        job_id = shell.submit(*_QUICK)
        shell.run("jobs", "watch", job_id)

        canceled, retried = shell.run("jobs", "cancel", job_id), shell.run("jobs", "retry", job_id)

        assert canceled == Said(
            0, f"{job_id}\tcompleted\n", "The job had ended before; nothing was changed\n"
        )
        assert retried.code == 2
        assert "Only a job that ended in error or was canceled can be retried" in retried.err

    def test_lists_are_filtered_and_go_over_pages(self, shell: Shell) -> None:
        word = f"w{time.time_ns()}"
        for number in range(3):
            shell.run("generate", f"{word} {number}", "--no-wait", *_QUICK)

        everything = shell.run("jobs", "ls", "--q", word, "--all").out.splitlines()
        assert [line.split("\t")[5] for line in everything] == [f"{word} {number}" for number in (2, 1, 0)]
        assert len(shell.run("jobs", "ls", "--q", word, "--limit", "2").out.splitlines()) == 2
        assert shell.run("jobs", "ls", "--q", word, "--model", "other").out == ""
        assert shell.run("jobs", "ls", "--status", "nowhere").code == 2
        assert shell.run_json("jobs", "ls", "--q", f"{word} -{word}") == {"items": []}

    def test_a_prompt_stays_on_its_line(self, shell: Shell) -> None:
        word = f"w{time.time_ns()}"
        shell.run("generate", f"{word}\tone\ntwo\x1b[2J", "--no-wait", *_QUICK)

        (line,) = shell.run("jobs", "ls", "--q", word).out.splitlines()

        assert line.split("\t")[5] == f"{word}\\tone\\ntwo\\x1b[2J"

    def test_many_jobs_are_canceled_and_retried_at_once(self, shell: Shell) -> None:
        tag = f"batch={time.time_ns()}"
        made = {shell.submit("--metadata", tag, *_SLOW) for _ in range(3)}
        completed = shell.submit("--metadata", tag, *_QUICK)
        shell.run("jobs", "watch", completed)

        planned = shell.run("jobs", "cancel", "--metadata", tag, "--dry-run")
        unasked = shell.run("jobs", "cancel", "--metadata", tag)
        canceled = shell.run("jobs", "cancel", "--metadata", tag, "--yes")
        for job_id in made:
            shell.run("jobs", "watch", job_id)
        retried = shell.run("jobs", "retry", "--metadata", tag, "--yes", "--json")
        outcome = json.loads(retried.out)
        shell.run("jobs", "cancel", "--metadata", tag, "--yes")

        assert {line.split("\t")[0] for line in planned.out.splitlines()} == made | {completed}
        assert "nothing was changed" in planned.err
        assert (unasked.code, unasked.out) == (2, "")
        assert "--yes" in unasked.hint
        assert canceled.code == 0
        assert f"{completed}\tcompleted" in canceled.out
        assert retried.code == 1
        assert {name: outcome[name] for name in ("matched", "changed", "refused")} == {
            "matched": 4,
            "changed": 3,
            "refused": 1,
        }
        assert {item["id"] for item in outcome["items"] if item["status"] == "in_queue"} == made
        assert [item["error"]["code"] for item in outcome["items"] if item["error"]] == ["job_not_retryable"]

    def test_failed_jobs_are_found_by_their_error(self, shell: Shell) -> None:
        tag = f"batch={time.time_ns()}"
        refused = shell.submit("--metadata", tag, "--input", "error=permanent_policy", *_QUICK)
        shell.submit("--metadata", tag, *_QUICK)
        shell.run("jobs", "watch", refused)

        (line,) = shell.run("jobs", "ls", "--metadata", tag, "--code", "content_refused").out.splitlines()

        assert line.split("\t")[:3] == [refused, "error", "content_refused"]
        assert shell.run("jobs", "ls", "--metadata", tag, "--code", "timeout").out == ""

    @pytest.mark.parametrize("command", ["cancel", "retry"])
    def test_either_one_job_or_a_filter_is_named(self, shell: Shell, command: str) -> None:
        neither = shell.run("jobs", command)
        both = shell.run("jobs", command, "01920000-0000-7000-8000-000000000001", "--status", "error")

        assert (neither.code, both.code) == (2, 2)
        assert "needs the id of a job, or a filter" in neither.err
        assert "not both" in both.err

    def test_all_of_a_job_is_shown(self, shell: Shell) -> None:
        job_id = shell.submit("--metadata", "order=1", *_QUICK)
        shell.run("jobs", "watch", job_id)

        facts = dict(line.split("\t", 1) for line in shell.run("jobs", "get", job_id).out.splitlines())
        document = shell.run_json("jobs", "get", job_id)

        assert (facts["id"], facts["status"], facts["metadata"]) == (job_id, "completed", '{"order": "1"}')
        assert facts["media 1"].startswith("image/png 64x64 ")
        assert facts["attempt 1"].endswith(", completed")
        assert isinstance(document, dict)
        assert document["id"] == job_id

    def test_an_unknown_job_is_exit_2(self, shell: Shell) -> None:
        said = shell.run("jobs", "get", "01920000-0000-7000-8000-000000000001")

        assert (said.code, said.err) == (2, "error: No such job\n")


class TestModels:
    """What can generate."""

    def test_the_built_in_model_is_listed_and_shown(self, shell: Shell) -> None:
        listed = shell.run("models", "ls")
        shown = shell.run("models", "show", "demo")
        document = shell.run_json("models", "ls")

        assert listed.out.split("\t")[:3] == ["demo", "demo", "yes"]
        assert "\ninput delay_seconds\tnumber from 0 to 600, default 1" in shown.out
        assert isinstance(document, dict)
        assert [model["name"] for model in document["items"]] == ["demo"]

    def test_an_unknown_model_is_exit_2(self, shell: Shell) -> None:
        assert shell.run("models", "show", "owner/none").err == "error: No such model\n"

    def test_a_paused_model_lets_its_jobs_wait(self, shell: Shell) -> None:
        paused = shell.run("models", "pause", "demo", "--for", "1h", "--reason", "paint is drying")
        shown = shell.run("models", "ls").out
        job_id = shell.submit(*_QUICK)
        waiting = shell.run("jobs", "watch", job_id, "--timeout", "1.5")
        resumed = shell.run("models", "resume", "demo")
        ended = shell.run("jobs", "watch", job_id)

        assert paused.out.startswith("demo\tuntil 20")
        assert "paint is drying" in shown
        assert waiting.code == 124
        assert (resumed.code, resumed.out) == (0, "demo\tnot paused\n")
        assert ended.code == 0

    def test_what_cannot_be_paused_is_said(self, shell: Shell) -> None:
        unknown = shell.run("models", "pause", "nope")
        endless = shell.run("models", "pause", "demo", "--for", "ever")

        assert (unknown.code, endless.code) == (2, 2)
        assert "--for 'ever' is not a time" in endless.err


class TestOther:
    """The rest of the command."""

    def test_doctor_finds_a_running_fleek_healthy(self, shell: Shell) -> None:
        said = shell.run("doctor")

        assert said.code == 0, said.out
        assert "fail" not in said.out

    def test_without_a_running_fleek_it_says_how_to_start_one(self, shell: Shell) -> None:
        elsewhere = Shell(shell.folder, clean_environment({"FLEEK_HOME": str(shell.folder / "none")}))

        said = elsewhere.run("generate", "boats")

        assert said.code == 3
        assert said.err.startswith(
            f"error: No Fleek is running on {shell.folder}/none\nhint: start one with script/up"
        )

    def test_a_url_is_used_instead_of_the_home(self, shell: Shell, up: Up) -> None:
        elsewhere = clean_environment({"FLEEK_HOME": str(shell.folder / "none")})

        by_flag = Shell(shell.folder, elsewhere).run("models", "ls", "--url", f"{up.url}/")
        by_variable = Shell(shell.folder, {**elsewhere, "FLEEK_URL": up.url}).run("models", "ls")

        assert by_flag.code == by_variable.code == 0

    def test_a_reader_that_leaves_ends_it_quietly(self, shell: Shell) -> None:
        pipe = f"{FLEEK} jobs get {shell.submit(*_QUICK)} | head -1"
        result = subprocess.run(
            ["sh", "-c", pipe], capture_output=True, text=True, check=False, env=shell.environment
        )

        assert "Traceback" not in result.stderr
        assert result.stdout.startswith("id\t")

    def test_it_starts_without_the_servers_code(self, shell: Shell) -> None:
        """What `--help` and `generate` import is what they cost: server code would take another second."""
        heavy = "fastapi sqlalchemy celery pydantic_settings PIL httpx2 rich.progress"
        program = (
            "import sys; from fleek.cli.main import execute; execute(sys.argv[1:]); "
            f"print([name for name in '{heavy}'.split() if name in sys.modules], file=sys.stderr)"
        )
        for arguments in (["--help"], ["generate", "x", "--no-wait", *_QUICK]):
            command = [sys.executable, "-c", program, *arguments]
            result = subprocess.run(
                command, capture_output=True, text=True, check=True, env=shell.environment
            )

            assert result.stderr.splitlines()[-1] == "[]"
