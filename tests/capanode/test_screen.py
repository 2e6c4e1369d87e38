"""What `capanode start` and `capanode status` print, and to whom."""

import errno
import io
import json
import os
import sys
from dataclasses import asdict, replace

import pytest
from structlog.testing import capture_logs

from capanode.cli.live_screen import LiveScreen, Terminal
from capanode.cli.screen import JsonLines, Screen, status_line
from capanode.cli.status_view import facts_of, tables_of
from capanode.device_status import DeviceStatus, devices_of
from capanode.measurements import Speed
from capanode.milestones import draining
from capanode.outbox import PaidTotals
from capanode.outbox_store import Earning
from capanode.status import CoordinatorStatus, FailureStatus, ModelStatus, NodeStatus
from capanode.workers import ModelPlan
from protocol.pricing import PriceSheet
from tests.capanode.fakes import HARDWARE
from tests.capanode.test_node import make_plan
from tests.protocol.makers import COORDINATOR, MODEL, NODE

MARKET = COORDINATOR.peer_id
STATUS = NodeStatus(
    peer_id=NODE.peer_id,
    software="capanode/test",
    started_at_ms=0,
    draining=False,
    paused="",
    tasks=40,
    uploading=0,
    listen=("/ip4/0.0.0.0/tcp/4101",),
    addresses=("/ip4/203.0.113.7/tcp/4101",),
    region="eu",
    isolation="bwrap",
    hardware=HARDWARE,
    devices=(DeviceStatus("GPU-1", "a card", 24 * 10**9, 9 * 10**9, ("[red]a-model",)),),
    models=(
        ModelStatus(
            name="[red]a-model",
            digest=MODEL,
            state="ready",
            last_ending="",
            running=1,
            queued=2,
            slots=4,
            jobs_done=7,
            output_tokens_done=70,
            tokens_per_s=41.5,
            speed=Speed(1, 2, 3),
            price=PriceSheet(output_nano_per_mtok=60_000_000),
        ),
    ),
    coordinators=(CoordinatorStatus(MARKET, "attached", "", 7),),
    earnings=(
        Earning(COORDINATOR.peer_id, "settled", 6, 1_000_000_000),
        Earning(COORDINATOR.peer_id, "waiting", 1, 500),
    ),
    paid=PaidTotals(today_nano=190_000_000, all_nano=950_000_000),
    failures=(FailureStatus(0, "", "out_of_memory", "too much\x1b[2J"),),
    warnings=("look here",),
)


class Broken(io.StringIO):
    def flush(self) -> None:
        raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))


@pytest.mark.parametrize("screen", [Screen(), JsonLines()])
def test_a_reader_that_goes_away_does_not_end_the_node(
    screen: Screen | JsonLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", Broken())
    with capture_logs() as logs:
        screen.milestone(draining(2))
        screen.milestone(draining(1))
        screen.close()
    assert [entry["event"] for entry in logs] == ["output_closed"]


def draw(status: NodeStatus, *, width: int = 120) -> str:
    terminal = io.StringIO()
    screen = LiveScreen(Terminal(file=terminal, force_terminal=True, width=width, height=60))
    screen.milestone(draining(2))
    screen.status(status)
    screen.close()
    screen.release()
    return terminal.getvalue()


def test_a_terminal_shows_the_whole_node() -> None:
    shown = draw(STATUS)
    for told in ("finishing 2 jobs", "serving", "1/4 running", "42 tokens/s", "a card", "24.0 GB"):
        assert told in shown
    assert "0.19 credits today (UTC), 0.95 in all, after the fee" in shown
    assert "! look here" in shown
    # What strangers name is neither markup nor a command to the terminal.
    assert "[red]a-model" in shown
    assert "\x1b[2J" not in shown
    assert shown.rstrip().endswith("\x1b[?25h"), "the cursor is given back"


def test_a_narrow_terminal_gets_it_too() -> None:
    assert "serving" in draw(STATUS, width=30)


class Lost(io.StringIO):
    """A terminal that is there at first."""

    error = 0

    def flush(self) -> None:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))


@pytest.mark.parametrize("error", [errno.EPIPE, errno.EIO])
def test_a_terminal_that_goes_away_does_not_end_the_node(
    error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The test's own output stays.
    monkeypatch.setattr("capanode.cli.live_screen.drop_stdout", lambda: None)
    file = Lost()
    screen = LiveScreen(Terminal(file=file, force_terminal=True, width=80))
    with capture_logs() as logs:
        file.error = error
        screen.status(STATUS)
        screen.status(STATUS)
        screen.close()
        screen.release()
    assert [entry["event"] for entry in logs] == ["output_closed"]


def test_the_state_says_what_the_node_does_now() -> None:
    def state(status: NodeStatus) -> str:
        return facts_of(asdict(status))["state"]

    assert state(STATUS) == "serving"
    assert state(replace(STATUS, paused="too hot")) == "paused: too hot"
    assert state(replace(STATUS, paused="too hot", draining=True)).startswith("draining")
    assert "paused: too hot" in status_line(replace(STATUS, paused="too hot"))


def test_what_was_paid_is_told_once_and_what_waits_by_coordinator() -> None:
    tables = {table.headings[0]: table.rows for table in tables_of(asdict(STATUS))}
    ((_, state, jobs, _),) = tables["receipts not paid yet, at"]
    assert (state, jobs) == ("waiting", "1")
    assert "0.95 in all" in status_line(STATUS)
    idle = replace(STATUS, earnings=STATUS.earnings[:1], failures=(), coordinators=())
    assert {table.headings[0] for table in tables_of(asdict(idle))} == {"device", "model"}


def test_a_script_reads_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    screen = JsonLines()
    screen.close()
    assert json.loads(capsys.readouterr().out) == {"event": "stopped"}
    assert json.loads(json.dumps(asdict(STATUS)))["paid"]["all_nano"] == 950_000_000


def test_models_share_the_device_that_they_run_on() -> None:
    plans: list[ModelPlan] = [make_plan("a-model"), make_plan("b-model")]
    (device,) = devices_of(plans, HARDWARE)
    assert (device.device, device.models) == ("processor", ("a-model", "b-model"))
    assert device.promised_bytes == sum(plan.bytes for plan in plans)


def test_an_owner_sees_how_markets_reach_and_judge_the_node() -> None:
    """Case G1: why a healthy node gets nothing."""
    plain = asdict(STATUS)
    plain["reach"] = {
        "state": "unreachable",
        "tried": [
            {"coordinator": MARKET, "address": "/ip4/203.0.113.7/tcp/4101", "outcome": "timed_out"}
        ],
        "observed_hosts": ["203.0.113.7"],
        "relays": [],
        "failed_buyers": 3,
    }
    plain["coordinators"][0]["standing"] = {
        "is_known": True,
        "health": "closed",
        "models": [
            {
                "manifest_digest": MODEL,
                "jobs": 20,
                "chosen": 2,
                "reasons": [
                    {"reason": "busy", "count": 3},
                    {"reason": "price_above_max", "count": 8},
                ],
                "outbid": 7,
                "dearer_percent": 12,
                "slower_percent": 0,
            }
        ],
    }
    told = facts_of(plain)["reachable"]
    assert told == "NO: nothing can dial it; seen at 203.0.113.7; 3 buyers could not dial it lately"
    tables = {table.headings[0]: table.rows for table in tables_of(plain)}
    assert tables["dialled by"][0][1:] == ("/ip4/203.0.113.7/tcp/4101", "no answer in time")
    _, health, model, jobs, came, why = tables["market"][0]
    assert (health, model, jobs, came) == ("healthy", "[red]a-model", "20", "2")
    assert why == (
        "dearer than the buyer's most (8); it was full (3); others were better (7): 12 % dearer"
    )
    plain["coordinators"][0]["standing"]["is_known"] = False
    (table,) = (table for table in tables_of(plain) if table.headings[0] == "market")
    assert table.rows[0][1] == "does not know it"


def test_a_node_of_an_older_version_is_shown_without_what_it_does_not_say() -> None:
    plain = asdict(STATUS)
    plain.pop("reach", None)
    assert "reachable" not in facts_of(plain)
    assert "market" not in {table.headings[0] for table in tables_of(plain)}
