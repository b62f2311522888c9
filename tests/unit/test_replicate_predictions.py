"""Reading predictions: progress from logs, outputs of any shape, reasons of failures."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from fleek.core.errors import OutputInvalid, ProviderError, ProviderErrorKind as Kind
from fleek.providers.replicate_predictions import (
    MAX_OUTPUTS,
    decode_inline,
    failure_of,
    read_metrics,
    read_outputs,
    read_progress,
)

A, B, C = "https://replicate.delivery/a.png", "http://127.0.0.1/b.png", "data:image/png;base64,iVBORw0KGgo="


@pytest.mark.parametrize(
    ("logs", "progress"),
    [
        (" 45%|####     | 9/20", 0.45),
        ("Using seed: 7\n  0%|          | 0/4 [00:00<?, ?it/s]", 0.0),
        ("  0%|  | 0/4\r 25%|█  | 1/4 [00:00<00:00]\r 50%|██  | 2/4 [00:00<00:00,  6.3it/s]", 0.5),
        ("100%|██████████| 28/28 [00:03<00:00,  8.8it/s]\nDone", 1.0),
        ("100%|####| 8/8\nrefining\n 10%|#   | 1/10", 0.1),
        ("40%|####|  8 / 20", None),
        ("300%|####| 60/20", 1.0),
        ("50%|##  | 0/0", 0.5),
        ("x" * 20_000 + " 45%|####     | 9/20", 0.45),
        (" 45%|####     | 9/20" + "x" * 20_000, None),
        ("Loading pipeline components...: 43 of 100", None),
        ("", None),
        (None, None),
        (7, None),
    ],
)
def test_progress_is_what_the_last_bar_shows(logs: object, progress: float | None) -> None:
    assert read_progress(logs) == (pytest.approx(progress) if progress is not None else None)


@given(st.text(alphabet="0123456789%|/# \r\n"))
def test_no_log_breaks_it(logs: str) -> None:
    progress = read_progress(logs)

    assert progress is None or 0 <= progress <= 1


@pytest.mark.parametrize(
    ("output", "urls"),
    [
        (A, [A]),
        ([A, B, C], [A, B, C]),
        ([A, A], [A, A]),
        ({"image": A, "mask": B}, [A, B]),
        ({"b": [A, {"x": B}], "a": {"y": {"z": [C]}}}, [A, B, C]),
        ({"text": "see https://example.com", "file": A, "n": 3, "none": None}, [A]),
        (["HTTPS://EXAMPLE.COM/x", "Data:,x"], ["HTTPS://EXAMPLE.COM/x", "Data:,x"]),
    ],
)
def test_outputs_are_the_urls_in_the_order_of_the_answer(output: object, urls: list[str]) -> None:
    assert read_outputs({"output": output, "data_removed": False}) == urls


@pytest.mark.parametrize(
    "output", [None, "", "hello Alice", [], {}, 7, True, ["a", "b"], "ftp://x/y", "https:x"]
)
def test_an_output_without_a_file_is_invalid(output: object) -> None:
    with pytest.raises(OutputInvalid, match="holds no file"):
        read_outputs({"output": output})


def test_an_output_of_too_many_files_is_invalid() -> None:
    with pytest.raises(OutputInvalid, match="more than 64 files"):
        read_outputs({"output": [A] * (MAX_OUTPUTS + 1)})


def test_an_output_that_nests_without_end_is_read_all_the_same() -> None:
    output: Any = A
    for _ in range(50_000):
        output = [output]

    assert read_outputs({"output": output}) == [A]


def test_outputs_that_were_removed_are_gone_and_never_ordered_again() -> None:
    with pytest.raises(ProviderError, match="result_expired") as caught:
        read_outputs({"output": None, "data_removed": True})

    assert caught.value.kind is Kind.RESULT_EXPIRED


@pytest.mark.parametrize(
    ("uri", "content"),
    [
        ("data:image/png;base64,iVBORw0KGgo=", b"\x89PNG\r\n\x1a\n"),
        ("data:image/png;base64,iVBORw0KGgo%3D", b"\x89PNG\r\n\x1a\n"),
        ("data:;base64,", b""),
        ("data:text/plain;charset=utf-8;BASE64,aGk=", b"hi"),
        ("DATA:,a%20b,c", b"a b,c"),
    ],
)
def test_a_data_uri_is_its_content(uri: str, content: bytes) -> None:
    assert decode_inline(uri) == content


@pytest.mark.parametrize(
    "uri",
    [
        "data:",
        "data:image/png;base64",
        "data:;base64,iVBORw0KGg",
        "data:;base64,%%%%",
        "data:;base64,ü\ud800",
    ],
)
def test_a_broken_data_uri_is_invalid(uri: str) -> None:
    with pytest.raises(OutputInvalid, match="broken data URI"):
        decode_inline(uri)


def test_metrics_keep_the_id_the_times_and_the_end_of_the_log() -> None:
    prediction = {
        "id": "gm3q",
        "metrics": {"predict_time": 1.25, "total_time": 3, "tokens": 5},
        "logs": "x" * 5000 + "\0\ud800end",
    }

    metrics = read_metrics(prediction)

    assert metrics.keys() == {"prediction", "predict_time", "total_time", "logs"}
    assert (metrics["prediction"], metrics["predict_time"], metrics["total_time"]) == ("gm3q", 1.25, 3)
    assert len(metrics["logs"]) <= 2000
    assert metrics["logs"].endswith("x?end")


@pytest.mark.parametrize(
    "prediction",
    [
        {"id": "a"},
        {"id": "a", "metrics": None, "logs": None},
        {"id": "a", "metrics": [1], "logs": "  \n"},
        {"id": "a", "metrics": {"predict_time": "1", "total_time": float("nan")}, "logs": 3},
    ],
)
def test_metrics_that_say_nothing_are_left_out(prediction: dict[str, Any]) -> None:
    assert read_metrics(prediction) == {"prediction": "a"}


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        ("failed", "CUDA out of memory", Kind.PROVIDER_BUG),
        ("failed", "Prediction interrupted; please retry (code: PA)", Kind.PROVIDER_BUG),
        ("failed", "Service is temporarily unavailable. Please try again later. (E004)", Kind.PROVIDER_BUG),
        ("failed", None, Kind.PROVIDER_BUG),
        ("failed", {"not": "a text"}, Kind.PROVIDER_BUG),
        ("failed", "NSFW content detected. Try running it again.", Kind.PERMANENT_POLICY),
        ("failed", "All generated images contained NSFW content", Kind.PERMANENT_POLICY),
        ("failed", "The input or output was flagged as sensitive. (E005)", Kind.PERMANENT_POLICY),
        ("failed", "Your request was rejected by our safety system", Kind.PERMANENT_POLICY),
        ("failed", "Violates our content policy", Kind.PERMANENT_POLICY),
        ("failed", "The input was invalid. (E006)", Kind.PERMANENT_INPUT),
        ("failed", "Input validation error: image is not reachable", Kind.PERMANENT_INPUT),
        ("canceled", None, Kind.TIMEOUT),
        ("aborted", "NSFW", Kind.TIMEOUT),
    ],
)
def test_a_failure_is_a_bug_unless_the_content_or_the_input_is_blamed(
    status: str, error: object, kind: Kind
) -> None:
    assert failure_of({"status": status, "error": error}).kind is kind


def test_a_failures_message_says_what_replicate_said_without_what_the_client_sent() -> None:
    prompt, image = "a secret lighthouse", "https://example.com/private.png?sig=abc"
    said = f"Bad\x1b[31m input {image}\n for '{prompt}' with Bearer r8_topsecret and r8_other; sorry"

    message = failure_of(
        {"status": "failed", "error": said, "input": {"prompt": prompt, "images": [{"url": image}]}}
    ).message

    assert message == "The prediction failed: Bad [31m input … for '…' with … and …; sorry"


def test_a_long_text_is_cut() -> None:
    assert len(failure_of({"status": "failed", "error": "word " * 10_000}).message) < 350


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(["id", "status", "error", "input", "metrics", "logs", "output"]), values)
)
def test_no_prediction_breaks_it(prediction: dict[str, Any]) -> None:
    json.dumps(read_metrics(prediction), allow_nan=False).encode()
    read_progress(prediction.get("logs"))

    assert failure_of(prediction).message
