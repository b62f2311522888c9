"""The program that orders one picture from the real Replicate, run against the fake one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.live_replicate import main
from tests.replicate_server import ReplicateServer

from fleek.core.media import PNG, sniff


def test_without_a_token_nothing_is_ordered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--yes"], {}) == 2
    assert "REPLICATE_API_TOKEN is not set: nothing was ordered" in capsys.readouterr().err


async def test_it_orders_one_picture_and_finds_the_order_again(
    vendor: ReplicateServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--yes", "--output", str(tmp_path), "--base-url", vendor.url]

    code = await asyncio.to_thread(main, arguments, {"REPLICATE_API_TOKEN": vendor.token})

    said = capsys.readouterr()
    assert code == 0
    assert "costs about 0.003 US dollars" in said.err
    assert "found again by its model, time and input: yes" in said.out
    assert vendor.token not in said.out + said.err
    assert sniff((tmp_path / "live-replicate.png").read_bytes()) == PNG
    assert len(vendor.accepted) == 1


async def test_it_says_why_an_order_failed(
    vendor: ReplicateServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--yes", "--output", str(tmp_path), "--base-url", vendor.url]

    code = await asyncio.to_thread(main, arguments, {"REPLICATE_API_TOKEN": "wrong"})

    assert code == 1
    assert "refuses the token" in capsys.readouterr().err
    assert vendor.accepted == []
