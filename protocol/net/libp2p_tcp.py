"""TCP below libp2p: where we listen, how we dial, and reads that do not cost two system calls."""

import errno
import ipaddress
import os
import socket
from collections.abc import Callable

import psutil
import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream

from protocol.net.addresses import check_tcp
from protocol.net.dial_policy import DialPolicy
from protocol.net.errors import AddressInUse, AddressInvalid, ConnectFailed

# A TCP read takes what is there up to this: usually one message with its length prefix, which
# py-libp2p would otherwise fetch in two system calls.
READ_BYTES = 64 * 1024
# A name may have many addresses; a stranger's name gets so many dials at most.
DIALS_PER_NAME_MAX = 4
# One party is expected; others that happen to come are refused by their handshake.
PUNCHED_BACKLOG = 4


def _nothing() -> None:
    """No caller needs it."""


class BufferedTcp(TrioTCPStream):
    """A TCP stream whose small reads are served from memory.

    One task reads and one writes, as the handshake and our Yamux do; so there are no locks, which
    cost the library's stream a turn of the scheduler on every call.
    """

    def __init__(self, stream: trio.SocketStream, on_read: Callable[[], None] = _nothing) -> None:
        super().__init__(stream)
        self._buffer = b""
        self._on_read = on_read
        self._remote = remote_place_of(stream)

    def get_remote_address(self) -> tuple[str, int] | None:
        """Also when the connection is gone. The library's own knows no address of IPv6, for which a
        socket gives four numbers instead of two."""
        return self._remote

    async def wait_first(self) -> None:
        """Until the peer has sent something or has left."""
        if not self._buffer:
            await self._fill()

    async def read(self, n: int | None = None) -> bytes:
        if n == 0:
            return b""
        if not self._buffer:
            await self._fill()
        if n is None or n >= len(self._buffer):
            data, self._buffer = self._buffer, b""
        else:
            data, self._buffer = self._buffer[:n], self._buffer[n:]
        return data

    async def _fill(self) -> None:
        try:
            self._buffer = await self.stream.receive_some(READ_BYTES)
        except trio.BrokenResourceError as error:
            raise ConnectionClosedError(f"the peer broke the connection: {error}") from error
        except trio.ClosedResourceError:
            return
        self._on_read()

    async def abort(self) -> None:
        """Close it in the middle of a handshake."""
        await trio.aclose_forcefully(self.stream)

    async def write(self, data: bytes) -> None:
        taken = self._write_nowait(data)
        if taken == len(data):
            return
        try:
            await self.stream.send_all(memoryview(data)[taken:])
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionClosedError(f"the connection is gone: {error}") from error

    def _write_nowait(self, data: bytes) -> int:
        """How many bytes the kernel takes at once. trio's own send takes a turn of the loop after
        each write, as much work again; it is left to say what is wrong with a connection."""
        try:
            return os.write(self.stream.socket.fileno(), data)
        except OSError:
            return 0


async def dial(
    place: str, policy: DialPolicy, own_port: "OwnPort", *, must_be_from_port: bool = False
) -> trio.SocketStream:
    """A connection to what `place` resolves to, as far as `policy` allows, from our own port if it
    is free for that.

    Names are resolved here and the connection goes to the addresses that were judged: a name that
    resolves to something else a moment later leads nowhere. Raises ConnectFailed, AddressForbidden.
    """
    host, remote_port = _host_and_port(place)
    failure: OSError | None = None
    try:
        hosts = await _resolve(place, host, remote_port)
    except (OSError, UnicodeError) as error:
        # A name that no resolver takes is refused by its encoding already.
        raise ConnectFailed(f"{place} cannot be resolved: {error}") from error
    for allowed in policy.check_hosts(place, hosts)[:DIALS_PER_NAME_MAX]:
        try:
            return await own_port.connect(allowed, remote_port, must_be=must_be_from_port)
        except OSError as error:
            failure = error
    raise ConnectFailed(f"{place} cannot be reached: {failure}") from failure


class OwnPort:
    """The port that we dial from: the one that we listen at, or one that stays the same.

    A router then gives all our connections one place outside, at which a peer can meet us.
    """

    def __init__(self) -> None:
        self._ports: dict[socket.AddressFamily, int] = {}
        self._listens = False

    def listen(self, listener: trio.SocketListener) -> None:
        """Dial from where `listener` listens. The first one of each family counts."""
        # Only now: while it was being bound, another program of ours had to be refused the port.
        listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._listens = True
        family = socket.AddressFamily(listener.socket.family)
        self._ports.setdefault(family, listener.socket.getsockname()[1])

    def forget(self) -> None:
        """Nothing listens any more."""
        self._ports.clear()
        self._listens = False

    async def listen_too(self) -> list[trio.SocketListener]:
        """Listen where we dial from, for a moment; nowhere if we do so anyway or never dialled."""
        listeners = []
        for family, port in () if self._listens else tuple(self._ports.items()):
            sock = _reusable_socket(family)
            try:
                await sock.bind(("", port))
                sock.listen(PUNCHED_BACKLOG)
            except OSError:
                sock.close()
            else:
                listeners.append(trio.SocketListener(sock))
        return listeners

    async def connect(self, host: str, port: int, *, must_be: bool) -> trio.SocketStream:
        """Connect to an IP address; from another port if ours cannot be used, unless it `must_be`.
        Raises OSError."""
        is_v6 = ipaddress.ip_address(host.partition("%")[0]).version == 6
        family = socket.AF_INET6 if is_v6 else socket.AF_INET
        try:
            return await self._connect(family, host, port)
        except OSError as error:
            # Another connection from this port to that place is there, or was a moment ago.
            if must_be or error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                raise
        return await trio.open_tcp_stream(host, port)

    async def _connect(
        self, family: socket.AddressFamily, host: str, port: int
    ) -> trio.SocketStream:
        sock = _reusable_socket(family)
        try:
            await sock.bind(("", self._ports.get(family, 0)))
            self._ports.setdefault(family, sock.getsockname()[1])
            await sock.connect((host, port))
        except BaseException:
            # Failed or cancelled: the socket is ours to close.
            sock.close()
            raise
        return trio.SocketStream(sock)


def _reusable_socket(family: socket.AddressFamily) -> trio.socket.SocketType:
    """One that may be bound to a port of ours that is in use."""
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    if family is socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return sock


async def _resolve(place: str, host: str, port: int) -> list[str]:
    """The IP addresses of a multiaddr's host."""
    kind = place.split("/")[1]
    if kind in ("ip4", "ip6"):
        return [host]
    family = {"dns4": socket.AF_INET, "dns6": socket.AF_INET6}.get(kind, socket.AF_UNSPEC)
    found = await trio.socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


async def listen_at(place: str) -> list[trio.SocketListener]:
    """Sockets that listen at /ip4|ip6/HOST/tcp/PORT, never shared with another process.

    py-libp2p listens with SO_REUSEPORT: two nodes on one port would each get half of the dials.

    Raises AddressInvalid, AddressInUse.
    """
    check_tcp(place)
    host, port = _host_and_port(place)
    try:
        return await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        if _errno(error) == errno.EADDRINUSE:
            raise AddressInUse(
                f"{place} is taken: stop the program that listens there or choose another port"
            ) from error
        raise AddressInvalid(f"cannot listen at {place}: {error}") from error


def places_of(listener: trio.SocketListener) -> list[str]:
    """Where a listening socket can be dialled; for one on all interfaces, one place for each."""
    host, port = listener.socket.getsockname()[:2]
    address = ipaddress.ip_address(host)
    hosts = _interface_addresses(address.version) if address.is_unspecified else [str(address)]
    return [place_at(each, port) for each in hosts]


def place_at(host: str, port: int) -> str:
    """The multiaddr, without /p2p/, of an IP address and a TCP port."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return f"/ip{address.version}/{address}/tcp/{port}"


def _host_and_port(place: str) -> tuple[str, int]:
    _, _, host, _, port = place.split("/")
    return host, int(port)


def remote_place_of(stream: trio.SocketStream) -> tuple[str, int] | None:
    """Host and port of the other end; None if the socket is gone."""
    try:
        host, port = stream.socket.getpeername()[:2]
    except OSError:
        return None
    return str(host), int(port)


def local_host_of(stream: trio.SocketStream) -> str:
    """The address of our own end; empty if the socket is gone."""
    try:
        return str(stream.socket.getsockname()[0]).partition("%")[0]
    except OSError:
        return ""


def interface_hosts() -> list[str]:
    """All addresses of this machine."""
    return [*_interface_addresses(4), *_interface_addresses(6)]


def _interface_addresses(version: int) -> list[str]:
    """This machine's addresses, those that others can use first. Link-local ones need a zone that
    an address cannot carry."""
    found = []
    for interface in psutil.net_if_addrs().values():
        for entry in interface:
            try:
                address = ipaddress.ip_address(entry.address.partition("%")[0])
            except ValueError:
                continue  # A hardware address.
            if address.version == version and not address.is_link_local:
                found.append(address)
    return [str(address) for address in sorted(found, key=lambda a: (a.is_loopback, int(a)))]


def _errno(error: OSError) -> int | None:
    """trio raises one error for several sockets with the first socket's error as its cause."""
    cause = error.__cause__
    if error.errno is None and isinstance(cause, OSError):
        return cause.errno
    return error.errno
