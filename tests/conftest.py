"""Fixtures that tests of several packages share."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

# Before anything loads torch: its threads would spin where two test processes share two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from capanode.models.catalog import load_catalog
from capanode.models.library import ensure
from capanode.models.store import ModelStore
from protocol.programs.process_memory import settle_garbage_collection
from tests.markets import start_rank

_REPOSITORY = Path(__file__).parent.parent
_LOGGING = structlog.get_config()


# Until the tests are collected: millions of objects are made, few of which are dropped, and to look
# for those takes a quarter of the time.
gc.disable()

# Tests with these marks run only when they are asked for, with `-m MARK`.
ON_REQUEST = ("bench", "exhaustive")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes longest begins first, and what is quick fills the gaps at the end."""
    left_out = [mark for mark in ON_REQUEST if mark not in config.option.markexpr]
    costly = [item for item in items if any(map(item.get_closest_marker, left_out))]
    if costly:
        config.hook.pytest_deselected(items=costly)
        items[:] = [item for item in items if item not in costly]
    items.sort(key=lambda item: start_rank(item.path))


def pytest_collection_finish() -> None:
    """The modules of all tests and of torch live to the end of the run. Left to the collector, they
    would take an eighth of the time of a simulated world."""
    settle_garbage_collection()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Several processes: a file's tests stay in one of them, and so do all that share a market."""
    from tests.scheduling import SchedulingByMarket  # noqa: PLC0415 - it needs the plugin

    return SchedulingByMarket(config, log)


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """A program that runs in a test's own process sets logging up for good, and loggers keep the
    configuration that they were first used with."""
    yield
    if structlog.get_config() != _LOGGING:
        from sim.trace import forget_cached_loggers  # noqa: PLC0415 - few tests need it

        structlog.configure(**_LOGGING)
        forget_cached_loggers()


@pytest.fixture(scope="session")
def demo_model_store() -> ModelStore:
    """The store that tests and the demo share: models are read-only and costly to fetch."""
    default = _REPOSITORY / ".capacloud" / "models"
    return ModelStore(Path(os.environ.get("CAPACLOUD_MODEL_STORE", default)))


@pytest.fixture(scope="session")
def demo_models(demo_model_store: ModelStore) -> Callable[[str], Path]:
    """`demo_models("smollm2-135m-instruct")` is that model's folder, fetched if it is not here."""
    catalog = load_catalog()
    return lambda name: ensure(demo_model_store, catalog, name).path
