"""A stream of records on real processes, while those that keep its window are killed."""

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from wsproto.events import AcceptConnection

from capanode.engines.tensor import TensorEngine
from capanode.models.catalog import load_catalog
from capanode.models.library import pull
from capanode.models.store import ModelStore
from protocol.codec import decode
from protocol.tensors import Datatype, NamedTensor, TensorInput, TensorOutput
from tests.capanode.engines.tiny_models import run
from tests.capanode.sandbox_makers import working_sandboxes
from tests.examples import example
from tests.integration.frail_market import SOON_S, FrailMarket, open_frail_market
from tests.integration.stream_client import StreamClient

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not working_sandboxes(), reason="no isolation works here"),
]

MODEL = "pump"
RECORDS = 60
NODE_DIES_AT, WORKER_DIES_AT = 20, 40


@pytest.fixture(scope="module")
def pump(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelStore, Path]:
    folder = tmp_path_factory.mktemp("pump")
    example("sensors").train(folder / MODEL, epochs=2)
    store = ModelStore(folder / "store")
    stored = pull(store, load_catalog(), f"file:{folder / MODEL}", name=MODEL)
    return store, stored.path


@pytest.fixture(scope="module")
def pumps(
    pump: tuple[ModelStore, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FrailMarket]:
    folder = tmp_path_factory.mktemp("streams")
    with open_frail_market(folder, pump[0].root, model=MODEL) as market:
        yield market


def unbroken(model_dir: Path, series: Any) -> Any:
    """The answers of one engine to all records at once."""
    engine = TensorEngine.load(model_dir, slots=1, threads=1)
    tensor = NamedTensor("record", Datatype.FP32, series.shape, series.tobytes())
    engine.submit("job", TensorInput((tensor,)))
    data = b"".join(getattr(event, "data", b"") for event in run(engine).of("job"))
    (output,) = decode(TensorOutput, data).outputs
    return np.frombuffer(output.data, "<f4")


def test_a_stream_whose_window_is_lost_with_its_keepers_answers_as_the_unbroken_one(
    pumps: FrailMarket, pump: tuple[ModelStore, Path]
) -> None:
    series = example("sensors").records(RECORDS)
    address = urlsplit(pumps.market.http)
    found: list[float] = []
    with closing(
        socket.create_connection((address.hostname, address.port), timeout=SOON_S)
    ) as connection:
        client = StreamClient(connection, "/v1/stream", pumps.market.api_key)
        assert isinstance(client.next(), AcceptConnection)
        client.say({"type": "open", "model": MODEL})
        assert client.hear()["window_rows"] == 16
        node = ""
        for number, row in enumerate(series):
            keeper = next((n for n in pumps.nodes if n.peer_id == node), pumps.nodes[0])
            if number == NODE_DIES_AT:
                pumps.kill(keeper)
            elif number == WORKER_DIES_AT:
                pumps.worker_of(keeper).kill()
                # A job that is there when its worker ends is held for the cause.
                pumps.wait(lambda: "worker_ended" in pumps.log_of(keeper))  # noqa: B023 - at once
            data = [float(value) for value in row]
            tensor = {"name": "record", "datatype": "FP32", "shape": [1, 3], "data": data}
            client.say({"type": "record", "inputs": [tensor]})
            told = client.hear()
            assert (told["type"], told["sequence"]) == ("prediction", number), told
            assert told["elements"] == 3
            node = told["node"]
            found += told["outputs"][0]["data"]
        client.say({"type": "close"})
        closed = client.hear()
    assert found == pytest.approx(unbroken(pump[1], series), rel=1e-4)
    assert (closed["records"], closed["elements"]) == (RECORDS, 3 * RECORDS)
    # Whoever was asked to go on from rows that it did not have said so, and was sent them.
    assert "state_missing" in pumps.log_of()
