"""Every number that docs/protocol.md gives is the one in the code."""

import re

import pytest

import capanode.announce
import capanode.control
import capanode.jobs.closing
import capanode.jobs.served_job
import capanode.jobs.server
import capanode.jobs.upload
import capanode.outbox
import coordinator.buyer.purchase
import coordinator.leasing.clients
import coordinator.leasing.control
import coordinator.leasing.dial_back
import coordinator.leasing.granting
import coordinator.leasing.leased_jobs
import coordinator.leasing.open_lease
import coordinator.leasing.openings
import coordinator.market.market
import coordinator.market.matching.explain
import coordinator.market.offers.book
import coordinator.market.offers.pool
import coordinator.settling.receipt_service
from coordinator.market.offers.intake import OFFERS
from protocol import (
    blobs,
    client_session,
    fields,
    generation,
    job_frames,
    limits,
    manifest,
    messages,
    money,
    offers,
    output_window,
    payload,
    pricing,
    reach,
    services,
)
from protocol.framing import FrameType
from protocol.net import (
    buffers,
    channels,
    frames,
    libp2p_admission,
    libp2p_gossip,
    libp2p_yamux,
    libp2p_yamux_queue,
    libp2p_yamux_reader,
    libp2p_yamux_stream,
    link,
    reservations,
    rpc,
    transport,
)
from tests.protocol.page import constants_of, number_of, page_text, rows_under

# Where the numbers come from that are not in `limits`.
NUMBER_PLACES = (
    messages,
    offers,
    fields,
    blobs,
    generation,
    services,
    reach,
    payload,
    pricing,
    manifest,
    money,
    client_session,
    job_frames,
    buffers,
    output_window,
    channels,
    link,
    frames,
    reservations,
    rpc,
    transport,
    libp2p_admission,
    libp2p_gossip,
    libp2p_yamux,
    libp2p_yamux_queue,
    libp2p_yamux_reader,
    libp2p_yamux_stream,
    capanode.announce,
    capanode.control,
    capanode.jobs.closing,
    capanode.jobs.server,
    capanode.jobs.served_job,
    capanode.jobs.upload,
    capanode.outbox,
    coordinator.buyer.purchase,
    coordinator.leasing.control,
    coordinator.leasing.dial_back,
    coordinator.leasing.clients,
    coordinator.leasing.granting,
    coordinator.leasing.openings,
    coordinator.leasing.leased_jobs,
    coordinator.leasing.open_lease,
    coordinator.market.market,
    coordinator.market.matching.explain,
    coordinator.market.offers.book,
    coordinator.market.offers.pool,
    coordinator.settling.receipt_service,
)


def numbers_on_page() -> dict[str, str]:
    rows = rows_under("name", "value", "of what")
    assert len({name for name, *_ in rows}) == len(rows), "a number is listed twice"
    return {name: value for name, value, _ in rows}


def test_every_limit_of_the_protocol_is_on_the_page() -> None:
    assert set(constants_of(limits)) - {"KIB", "MIB"} <= set(numbers_on_page())


def test_every_name_in_capitals_has_its_number_on_the_page() -> None:
    named = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", page_text()))
    assert named == set(numbers_on_page()) | {
        frame.name for frame in FrameType if "_" in frame.name
    }


@pytest.mark.parametrize("name", numbers_on_page())
def test_a_number_on_the_page_is_the_one_in_the_code(name: str) -> None:
    in_code = constants_of(limits, *NUMBER_PLACES)
    number, unit = number_of(numbers_on_page()[name])
    if unit == "s" and "_MS" in name:
        number = round(1_000 * number)
    is_time = re.search(r"_(MS|S)\b|_(MS|S)_", name) is not None and "PER_S" not in name
    assert is_time == (unit in ("s", "ms")), "a time has a unit of time"
    assert ("BYTES" in name) == (unit == "bytes"), "a size has a unit of size"
    assert in_code[name] == {number}


def test_offers_may_come_as_often_as_the_page_says() -> None:
    burst, every_s = OFFERS.burst, 1 / OFFERS.per_s
    assert (
        f"more than {burst:g} of a node at once, and one every {every_s:g} s after" in page_text()
    )
