import pytest
import trio
from structlog.testing import capture_logs

from protocol.errors import Code, RemoteProtocolError, leaves
from protocol.ids import PeerId
from protocol.keys import SigningKey
from protocol.net.errors import NetTimeout, StreamReset
from protocol.net.serve import Boundary, describe, guarded

PEER = SigningKey(bytes(32)).peer_id


async def serve(error: BaseException | None) -> None:
    await trio.lowlevel.checkpoint()
    if error is not None:
        raise error


async def test_what_returns_is_no_failure() -> None:
    boundary = Boundary(serve, "test")
    assert await boundary.run(None) is None
    assert boundary.failures == 0


async def test_a_crash_is_logged_with_its_traceback_and_counted() -> None:
    boundary = Boundary(serve, "test")
    with capture_logs() as logs:
        error = await boundary.run(ValueError("a bug"))
    assert isinstance(error, ValueError)
    assert boundary.failures == 1
    assert logs[0]["event"] == "handler_crashed"
    assert logs[0]["exc_info"] is error


@pytest.mark.parametrize(
    "error",
    [
        NetTimeout("slow"),
        RemoteProtocolError("bad bytes", code=Code.MALFORMED),
        ExceptionGroup("tasks", [NetTimeout("slow"), ExceptionGroup("more", [StreamReset("x")])]),
    ],
)
async def test_what_peers_do_every_day_is_one_quiet_line(error: Exception) -> None:
    boundary = Boundary(serve, "test")
    with capture_logs() as logs:
        await boundary.run(error)
    assert [entry["event"] for entry in logs] == ["conversation_failed"]
    assert boundary.failures == 1


async def test_peer_that_leaves_is_no_failure() -> None:
    boundary = Boundary(serve, "test")
    with capture_logs() as logs:
        await boundary.run(StreamReset("gone"))
    assert [entry["log_level"] for entry in logs] == ["debug"]
    assert boundary.failures == 0


async def test_cancellation_passes() -> None:
    boundary = Boundary(serve, "test")
    with trio.CancelScope() as scope:
        scope.cancel()
        await boundary.run(None)
    assert scope.cancelled_caught
    assert boundary.failures == 0


async def test_failure_beside_a_cancellation_is_kept_and_the_cancellation_passes() -> None:
    async def fail_when_cancelled(_: None) -> None:
        async def spoil() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("while leaving")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(spoil)
            nursery.start_soon(trio.sleep_forever)
            await trio.lowlevel.checkpoint()
            scope.cancel()

    boundary = Boundary(fail_when_cancelled, "test")
    with capture_logs() as logs, trio.CancelScope() as scope:
        await boundary.run(None)
    assert scope.cancelled_caught
    assert [entry["event"] for entry in logs] == ["handler_crashed"]


def test_a_validator_that_raises_refuses() -> None:
    def judge(data: bytes, via: PeerId) -> bool:
        if data == b"remote":
            raise RemoteProtocolError("no", code=Code.MALFORMED)
        if data == b"bug":
            raise KeyError("bug")
        return data == b"good"

    judge_safely = guarded(judge, "topic")
    with capture_logs() as logs:
        assert [judge_safely(d, PEER) for d in (b"good", b"bad", b"remote", b"bug")] == [
            True,
            False,
            False,
            False,
        ]
    assert [entry["event"] for entry in logs] == ["validator_crashed"]


def test_leaves_are_what_a_group_is_made_of() -> None:
    one, two = ValueError("one"), KeyError("two")
    group = ExceptionGroup("g", [one, ExceptionGroup("h", [two])])
    assert leaves(group) == [one, two]
    assert describe(group) == "ValueError: one; KeyError: 'two'"
