"""The cure for a machine that forbids user namespaces is that machine's own."""

from pathlib import Path

import pytest

from capanode.sandbox.cures import HostFacts, cure_of, read_host

UBUNTU = 'PRETTY_NAME="Ubuntu 24.04.3 LTS"\nVERSION_ID="24.04"\nID=ubuntu\nID_LIKE=debian\n'


def make_host(root: Path, files: dict[str, str]) -> HostFacts:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return read_host(root)


def test_a_host_is_read_from_its_files(tmp_path: Path) -> None:
    host = make_host(
        tmp_path,
        {
            "etc/os-release": UBUNTU,
            "proc/sys/kernel/osrelease": "6.8.0-45-generic\n",
            "proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n",
            "proc/sys/user/max_user_namespaces": "63000\n",
            "proc/1/cgroup": "0::/init.scope\n",
        },
    )
    assert host == HostFacts("ubuntu", (24, 4), apparmor_restricts=True, namespaces_max=63_000)
    assert read_host(tmp_path / "nothing") == HostFacts()


@pytest.mark.parametrize(
    ("files", "container"),
    [
        ({".dockerenv": ""}, "docker"),
        ({"run/.containerenv": ""}, "podman"),
        ({"run/systemd/container": "lxc\n"}, "lxc"),
        ({"proc/1/cgroup": "0::/kubepods/burstable/pod1\n"}, "kubepods"),
        ({"proc/1/cgroup": "0::/init.scope\n"}, ""),
    ],
)
def test_a_container_is_known_by_what_made_it(
    tmp_path: Path, files: dict[str, str], container: str
) -> None:
    assert make_host(tmp_path, files).container == container


@pytest.mark.parametrize(
    ("host", "said"),
    [
        # Case E1: the package alone is not enough on 24.04, and 25.04 has the profile loaded.
        (HostFacts("ubuntu", (24, 4), apparmor_restricts=True), "apparmor_parser -r"),
        (HostFacts("ubuntu", (25, 4), apparmor_restricts=True), "loaded already"),
        (HostFacts("linuxmint", (22, 0), apparmor_restricts=True), "apparmor_parser -r"),
        # Case E8: a refusal with the flag to add.
        (HostFacts("ubuntu", (24, 4), "docker", apparmor_restricts=True), "systempaths=unconfined"),
        (HostFacts(container="lxc"), "security.nesting"),
        (HostFacts(is_wsl=True), "wsl --update"),
        (HostFacts("debian", (12, 0), unprivileged_clone=0), "unprivileged_userns_clone=1"),
        (HostFacts("rhel", (9, 0), namespaces_max=0), "max_user_namespaces"),
        (HostFacts(), "user namespaces"),
    ],
)
def test_the_cure_is_that_of_the_machine(host: HostFacts, said: str) -> None:
    assert said in cure_of(host)
    assert "user namespaces" in cure_of(host)
