"""A small internet in network namespaces: a relay in the middle, and lines to it through routers.

Needs no rights beyond a user namespace: `unshare -Urnm python -m sim.reach.lab` builds it, and it
is gone with that process. Addresses are of the public internet, which the namespaces do not reach,
so that parties judge them as they would outside.
"""

import shutil
import subprocess
from dataclasses import dataclass
from enum import StrEnum

RELAY_HOST = "5.0.0.1"
# What all addresses of IPv6 here begin with.
PUBLIC_6 = "2a00:"
RELAY_HOST_6 = f"{PUBLIC_6}1000::1"
# How long one command of `ip` or `nft` may take on a busy machine.
COMMAND_WITHIN_S = 20


class RouterKind(StrEnum):
    """What stands between a party and the internet."""

    NONE = "none"  # a public address
    PORTS_KEPT = "ports_kept"  # one place outside for all destinations; lets in only answers
    SYMMETRIC = "symmetric"  # another place outside for each destination
    DOUBLE = "double"  # a router that keeps ports behind a carrier's that does, too
    BLOCKED = "blocked"  # passes nothing but connections to the relay
    IPV6_ONLY = "ipv6_only"  # a public address of IPv6, and no other


@dataclass(frozen=True, slots=True)
class Line:
    """A party's namespace, and where it stands in the numbering of addresses."""

    name: str
    router: RouterKind
    number: int


def missing() -> str:
    """Why namespaces cannot be built here; empty if they can."""
    for program in ("unshare", "ip", "nft"):
        if shutil.which(program) is None:
            return f"{program} is not installed: .ci/system-packages does that"
    check = "mount -t tmpfs tmpfs /run && mkdir /run/netns && ip netns add a && "
    check += (
        "ip netns exec a nft add table ip a && ip link add cable type veth peer name other netns a"
    )
    done = subprocess.run(
        [program_path("unshare"), "-Urnm", "sh", "-c", check],
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_WITHIN_S,
    )
    return f"namespaces: {done.stderr.strip()}" if done.returncode else ""


def build_internet() -> None:
    """In the namespace that we are in. Raises CalledProcessError, as all here."""
    _run("mount -t tmpfs tmpfs /run")
    _run("mkdir /run/netns")
    _run("ip link set lo up")
    _run(f"ip addr add {RELAY_HOST}/32 dev lo")
    _run(f"ip addr add {RELAY_HOST_6}/128 dev lo")
    _run("tee /proc/sys/net/ipv6/conf/all/forwarding", stdin="1")
    _forward("")


def build_line(line: Line) -> None:
    """A party's namespace, connected through its router."""
    public = f"5.1.{line.number}"
    if line.router is RouterKind.NONE:
        _add(line.name)
        _connect("", f"{public}.1", line.name, f"{public}.2", "lan")
        return
    if line.router is RouterKind.IPV6_ONLY:
        public = f"{PUBLIC_6}1001:{line.number:x}:"
        _add(line.name)
        _connect("", f"{public}:1", line.name, f"{public}:2", "lan")
        return
    outer = f"{line.name}-router"
    _add(outer)
    _connect("", f"{public}.1", outer, f"{public}.2", "wan")
    _make_router(outer, line.router)
    inner, net = outer, f"192.168.{line.number}"
    if line.router is RouterKind.DOUBLE:
        inner = f"{line.name}-home"
        _add(inner)
        _connect(outer, f"100.64.{line.number}.1", inner, f"100.64.{line.number}.2", "wan")
        _make_router(inner, line.router)
    _add(line.name)
    _connect(inner, f"{net}.1", line.name, f"{net}.2", "lan")


def renumber(line: Line) -> None:
    """The party's own address changes, as when a laptop moves to another network at home."""
    _move(line.name, "lan", f"192.168.{line.number}")


def renumber_router(line: Line) -> None:
    """The router's outside changes, as a provider does at night: nothing tells the party."""
    _move(f"{line.name}-router", "wan", f"5.1.{line.number}")


def _move(name: str, device: str, net: str) -> None:
    _run(f"ip addr flush dev {device}", name)
    _run(f"ip addr add {net}.130/24 dev {device}", name)
    _run(f"ip route add default via {net}.1", name)


def in_namespace(name: str, command: list[str]) -> list[str]:
    """The command as it runs there; an empty name is the internet itself."""
    return ["ip", "netns", "exec", name, *command] if name else command


def _add(name: str) -> None:
    _run(f"ip netns add {name}")
    _run("ip link set lo up", name)


def _connect(upper: str, upper_host: str, lower: str, lower_host: str, device: str) -> None:
    """A cable from a namespace down to another, whose way out it is."""
    cable = f"to-{lower}"[:15]
    # An address of IPv6 is used after a second of asking whether another host has it, else.
    bits = "64" if ":" in upper_host else "24"
    more = " nodad" if ":" in upper_host else ""
    _run(f"ip link add {cable} type veth peer name {device} netns {lower}", upper)
    _run(f"ip addr add {upper_host}/{bits} dev {cable}{more}", upper)
    _run(f"ip link set {cable} up", upper)
    _run(f"ip addr add {lower_host}/{bits} dev {device}{more}", lower)
    _run(f"ip link set {device} up", lower)
    _run(f"ip route add default via {upper_host}", lower)


def _make_router(name: str, router: RouterKind) -> None:
    """It lets in only what answers, as home routers do."""
    _forward(name)
    kept = (
        ""
        if router in (RouterKind.PORTS_KEPT, RouterKind.DOUBLE, RouterKind.BLOCKED)
        else " random,fully-random"
    )
    rules = [
        "table ip nat {",
        "chain out { type nat hook postrouting priority 100; policy accept;",
        f'oifname "wan" masquerade{kept};',
        "}",
        "}",
        "table ip filter {",
        "chain in { type filter hook input priority 0; policy accept;",
        'iifname "wan" ct state established,related accept;',
        'iifname "wan" drop;',
        "}",
        "chain through { type filter hook forward priority 0; policy accept;",
        'iifname "wan" ct state new drop;',
        f'oifname "wan" ip daddr != {RELAY_HOST} drop;' if router is RouterKind.BLOCKED else "",
        "}",
        "}",
    ]
    _run("nft -f -", name, stdin="\n".join(rules) + "\n")


def _forward(name: str) -> None:
    _run("tee /proc/sys/net/ipv4/ip_forward", name, stdin="1")


def program_path(name: str) -> str:
    """Raises FileNotFoundError."""
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed")
    return found


def _run(command: str, name: str = "", *, stdin: str = "") -> None:
    subprocess.run(
        in_namespace(name, command.split()),
        input=stdin,
        text=True,
        check=True,
        capture_output=True,
        timeout=COMMAND_WITHIN_S,
    )
