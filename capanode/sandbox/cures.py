"""Why this machine forbids user namespaces, and what its owner can do about that machine's own way
of forbidding them. Read from /proc and /etc; nothing is tried here.
"""

import re
from dataclasses import dataclass
from pathlib import Path

# Ubuntu ships the profile that lets /usr/bin/bwrap use namespaces loaded since then.
_PROFILE_LOADED_SINCE = (25, 4)
_CONTAINERS = re.compile(r"docker|containerd|kubepods|lxc|libpod")


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What a cure depends on. `distribution` is such as ("ubuntu", (24, 4)); `container` the kind
    of container that we are in, empty outside; the switches are None where the kernel has none."""

    distribution: str = ""
    version: tuple[int, int] = (0, 0)
    container: str = ""
    is_wsl: bool = False
    apparmor_restricts: bool = False
    unprivileged_clone: int | None = None
    namespaces_max: int | None = None


def read_host(root: Path = Path("/")) -> HostFacts:
    release = _read(root / "etc/os-release")
    kernel = _read(root / "proc/sys/kernel/osrelease").lower()
    return HostFacts(
        distribution=_value(release, "ID"),
        version=_version(_value(release, "VERSION_ID")),
        container=_container(root),
        is_wsl="microsoft" in kernel,
        apparmor_restricts=_number(root / "proc/sys/kernel/apparmor_restrict_unprivileged_userns")
        == 1,
        unprivileged_clone=_number(root / "proc/sys/kernel/unprivileged_userns_clone"),
        namespaces_max=_number(root / "proc/sys/user/max_user_namespaces"),
    )


def cure_of(host: HostFacts) -> str:
    """What allows user namespaces here. A container's own rules come before those of its host."""
    if host.container == "lxc":
        return "allow user namespaces in this container: set security.nesting=true (LXD, Incus)"
    if host.container:
        return (
            "allow user namespaces in this container: start it with --security-opt "
            "seccomp=unconfined --security-opt apparmor=unconfined --security-opt "
            "systempaths=unconfined"
        )
    if host.is_wsl:
        return (
            "allow user namespaces: WSL 1 has none, so run `wsl --set-version NAME 2` in Windows; "
            "in WSL 2 run `wsl --update` and start the distribution again"
        )
    if host.unprivileged_clone == 0:
        return "allow user namespaces: run `sysctl -w kernel.unprivileged_userns_clone=1` as root"
    if host.namespaces_max == 0:
        return "allow user namespaces: run `sysctl -w user.max_user_namespaces=15000` as root"
    if host.apparmor_restricts:
        return _apparmor_cure(host)
    return (
        "allow user namespaces for the full sandbox: kernel.unprivileged_userns_clone=1, "
        "user.max_user_namespaces above 0, and no AppArmor or SELinux rule against them"
    )


def _apparmor_cure(host: HostFacts) -> str:
    """The profile is for the system's own bwrap: the one in our Python package stays forbidden."""
    if host.distribution == "ubuntu" and host.version >= _PROFILE_LOADED_SINCE:
        return (
            "allow user namespaces: run `apt install bubblewrap` as root; its AppArmor profile is "
            "loaded already"
        )
    return (
        "allow user namespaces: as root run `apt install bubblewrap apparmor-profiles`, `cp "
        "/usr/share/apparmor/extra-profiles/bwrap-userns-restrict /etc/apparmor.d/` and "
        "`apparmor_parser -r /etc/apparmor.d/bwrap-userns-restrict`; the package alone does not "
        "help"
    )


def _container(root: Path) -> str:
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run/.containerenv").exists():
        return "podman"
    manager = _read(root / "run/systemd/container").strip()
    found = _CONTAINERS.search(manager or _read(root / "proc/1/cgroup"))
    return found[0] if found else manager


def _read(path: Path) -> str:
    """Empty for what cannot be read: a fact that is not known makes no cure."""
    try:
        return path.read_text(errors="replace")[:8_192]
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdecimal() else None


def _value(release: str, key: str) -> str:
    found = re.search(rf'^{key}="?([^"\n]*)"?$', release, re.MULTILINE)
    return found[1] if found else ""


def _version(text: str) -> tuple[int, int]:
    found = re.match(r"(\d+)(?:\.(\d+))?", text)
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)
