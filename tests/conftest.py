"""Fixtures that tests of several packages share."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Before anything loads torch: its threads would spin where two test processes share two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from capanode.models.catalog import load_catalog
from capanode.models.library import ensure
from capanode.models.store import ModelStore

_REPOSITORY = Path(__file__).parent.parent
# Markets of real processes that tests share; the longest work, so it goes first.
_MARKETS = ("market", "frail")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What goes to one process of several: all tests that share a market, else those of a file."""
    items.sort(key=_duration_rank)
    for item in items:
        shared = next(filter(None, (_market_of(item), item.path.name)))
        item.add_marker(pytest.mark.xdist_group(shared))


def _market_of(item: pytest.Item) -> str | None:
    return next((name for name in _MARKETS if name in getattr(item, "fixturenames", ())), None)


def _duration_rank(item: pytest.Item) -> int:
    market = _market_of(item)
    if market is not None:
        return _MARKETS.index(market)
    slow_first = ("integration", "sim")
    folders = [folder for folder in slow_first if folder in item.path.parts]
    return len(_MARKETS) + (slow_first.index(folders[0]) if folders else len(slow_first))


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
