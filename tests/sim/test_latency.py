import trio

from sim.latency import DelayProxy, LatencyClass


async def echo(stream: trio.SocketStream) -> None:
    async with stream:
        async for data in stream:
            await stream.send_all(data)


async def start(nursery: trio.Nursery, rtt_ms: float) -> int:
    listeners = await nursery.start(trio.serve_tcp, echo, 0)
    target_port = listeners[0].socket.getsockname()[1]
    proxy = DelayProxy(target_port, LatencyClass("test", rtt_ms))
    port: int = await nursery.start(proxy.run)
    return port


async def test_bytes_arrive_whole_in_order_and_not_before_their_time() -> None:
    async with trio.open_nursery() as nursery:
        port = await start(nursery, rtt_ms=40)
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        began_at = trio.current_time()
        sent = bytes(range(256)) * 2_000
        async with trio.open_nursery() as both_ways:
            both_ways.start_soon(stream.send_all, sent)
            received = b""
            while len(received) < len(sent):
                received += await stream.receive_some()
        assert received == sent
        assert trio.current_time() - began_at >= 0.040
        await stream.send_eof()
        assert await stream.receive_some() == b""
        await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_a_dead_target_drops_the_connection() -> None:
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        dead_port = listener.socket.getsockname()[1]
        await listener.aclose()
        proxy = DelayProxy(dead_port, LatencyClass("test", 1))
        port: int = await nursery.start(proxy.run)
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        with trio.fail_after(30):
            assert await stream.receive_some() == b""
        await stream.aclose()
        nursery.cancel_scope.cancel()
