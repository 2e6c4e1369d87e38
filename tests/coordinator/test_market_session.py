"""Where a command looks for its coordinator, and for the nodes of that."""

from pathlib import Path

import pytest

from coordinator.cli.market_session import find_coordinator
from coordinator.cli.options import CommandError
from coordinator.endpoint import Endpoint, write_endpoint
from coordinator.settings import CoordinatorConfig
from tests.protocol.makers import COORDINATOR

PUBLIC = f"/ip4/203.0.113.7/tcp/4100/p2p/{COORDINATOR.peer_id}"


@pytest.fixture
def config(tmp_path: Path) -> CoordinatorConfig:
    return CoordinatorConfig.resolve(flags={"data_dir": tmp_path})


def test_a_command_dials_what_the_coordinator_beside_it_dials(config: CoordinatorConfig) -> None:
    running = Endpoint(COORDINATOR.peer_id, (PUBLIC,), "http://127.0.0.1:8080", ("loopback",))
    write_endpoint(config.endpoint_path, running)
    address, policy = find_coordinator(config, None)
    assert address == PUBLIC
    assert policy.allows("127.0.0.1")
    assert not policy.allows("192.168.0.1")


def test_a_coordinator_elsewhere_does_not_lead_to_this_machine(config: CoordinatorConfig) -> None:
    address, policy = find_coordinator(config, PUBLIC)
    assert address == PUBLIC
    assert policy.allows_place(PUBLIC.partition("/p2p/")[0])
    assert not policy.allows("127.0.0.1")


def test_a_coordinator_on_loopback_leads_to_nodes_on_loopback(config: CoordinatorConfig) -> None:
    here = f"/ip4/127.0.0.1/tcp/4100/p2p/{COORDINATOR.peer_id}"
    _, policy = find_coordinator(config, here)
    assert policy.allows("127.0.0.1")


def test_without_a_coordinator_the_data_directory_is_named(config: CoordinatorConfig) -> None:
    with pytest.raises(CommandError, match=r"no coordinator runs with data directory .*--coord"):
        find_coordinator(config, None)
