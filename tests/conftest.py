"""Fixtures that tests of several packages share."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from capanode.models.catalog import load_catalog
from capanode.models.library import ensure
from capanode.models.store import ModelStore

_REPOSITORY = Path(__file__).parent.parent


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
