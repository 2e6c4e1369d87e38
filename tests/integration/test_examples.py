"""The examples of docs/examples that buy from a market, run as their readers run them."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples import FOLDER
from tests.integration.conftest import RunningMarket
from tests.integration.test_market import grace_hopper

pytestmark = [pytest.mark.models, pytest.mark.slow]

WITHIN_S = 60


def run(market: RunningMarket, name: str, *arguments: str, stdin: str = "") -> str:
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=WITHIN_S,
        input=stdin,
        env=os.environ | {"OPENAI_BASE_URL": f"{market.http}/v1", "OPENAI_API_KEY": market.api_key},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_chatbot_calls_its_tool_and_answers(market: RunningMarket) -> None:
    call, *answer = run(market, "chatbot_with_tools").splitlines()
    assert call.startswith("[weather {'city': ")
    assert "It is sunny" in call
    assert "".join(answer).strip()


def test_a_text_becomes_a_record(market: RunningMarket) -> None:
    told = run(market, "extract_fields", stdin="Order 4411: three lamps for Ada Lovelace")
    record = json.loads(told)
    assert list(record) == ["order", "item", "customer"]
    assert isinstance(record["order"], int)
    assert len(record["customer"]) <= 40


def test_lines_are_translated_in_their_order(market: RunningMarket) -> None:
    told = run(market, "translate", "French", stdin="Good morning.\n\nThank you.\n")
    assert len(told.strip().splitlines()) == 2


def test_a_folder_of_images_becomes_a_table(market: RunningMarket, tmp_path: Path) -> None:
    (tmp_path / "grace.jpg").write_bytes(grace_hopper())
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("not looked at")
    rows = list(csv.DictReader(io.StringIO(run(market, "classify_folder", str(tmp_path)))))
    assert [row["file"] for row in rows] == ["broken.png", "grace.jpg"]
    assert rows[0]["error"]
    assert (rows[1]["label"], rows[1]["error"]) == ("military uniform", "")


def test_what_is_near_is_recommended(market: RunningMarket) -> None:
    lines = run(market, "recommend", "A story about whales and the sea").splitlines()
    assert len(lines) == 3
    assert "whale" in lines[0]
