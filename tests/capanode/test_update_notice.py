"""An owner hears of a newer version, and a node waits for nobody's index."""

import json
from collections.abc import Callable

import httpx
import pytest
import trio
from trio.testing import MockClock

from capanode.update_notice import EVERY_S, FIRST_AFTER_S, UpdateWatch, newer_version

Answer = Callable[[httpx.Request], httpx.Response]


def serve(monkeypatch: pytest.MonkeyPatch, answer: Answer) -> list[httpx.Request]:
    """A local index in place of the network; what it was asked."""
    asked: list[httpx.Request] = []
    client = httpx.AsyncClient

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return answer(request)

    monkeypatch.setattr(httpx, "AsyncClient", lambda: client(transport=httpx.MockTransport(handle)))
    return asked


def index(version: object) -> Answer:
    return lambda _: httpx.Response(200, json={"info": {"version": version}})


@pytest.mark.parametrize(
    ("ours", "theirs", "is_newer"),
    [
        ("0.1.0", "0.2.0", True),
        ("0.9", "0.10", True),
        ("1.0.0", "1.0", False),
        ("1.0.1", "1.0.0", False),
        ("1.0.0", "2.0.0rc1", False),
        ("1.0.0", "", False),
        ("unknown", "1.0.0", False),
    ],
)
def test_a_finished_release_with_a_higher_number_is_newer(
    ours: str, theirs: str, is_newer: bool
) -> None:
    assert newer_version(ours, theirs) == is_newer


async def test_the_owner_is_told_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, index("0.2.0"))
    told: list[str] = []
    await UpdateWatch("0.1.0", is_wanted=lambda: True, on_newer=told.append).look()
    (words,) = told
    assert "0.2.0" in words
    assert "pip install --upgrade" in words


def broken(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("no network here")


@pytest.mark.parametrize(
    "answer",
    [
        broken,
        lambda _: httpx.Response(404),
        lambda _: httpx.Response(200, content=b"{"),
        lambda _: httpx.Response(200, content=b"[]"),
        lambda _: httpx.Response(200, content=b" " * 9_000_000),
        lambda _: httpx.Response(200, content=json.dumps({"info": None}).encode()),
        index(3),
    ],
)
async def test_no_answer_is_an_answer(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, answer)
    told: list[str] = []
    await UpdateWatch("0.1.0", is_wanted=lambda: True, on_newer=told.append).look()
    assert told == []


@pytest.mark.parametrize("is_wanted", [True, False])
async def test_the_index_is_asked_once_a_day_or_not_at_all(
    is_wanted: bool, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    asked = serve(monkeypatch, index("0.1.0"))
    watch = UpdateWatch("0.1.0", is_wanted=lambda: is_wanted, on_newer=lambda _: None)
    with trio.move_on_after(FIRST_AFTER_S - 1):
        await watch.run()
    assert not asked, "not while a node starts"
    with trio.move_on_after(FIRST_AFTER_S + 2.5 * EVERY_S):
        await watch.run()
    assert len(asked) == (3 if is_wanted else 0)
