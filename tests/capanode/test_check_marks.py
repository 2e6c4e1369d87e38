"""A model is hashed whole once, and again when it may have changed."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from capanode.milestones import Milestone
from capanode.models.check_marks import BELIEVED_S
from capanode.models.errors import CorruptModelError
from capanode.models.store import ModelStore
from capanode.start_plan import intact_plans
from capanode.workers import ModelPlan, plan_models
from protocol.ids import Digest
from protocol.programs.sharing.model_folder import StoredModel
from tests.capanode.model_makers import SMALL_FILES, add_model
from tests.capanode.test_workers import MACHINE

WEIGHTS = "model.safetensors"


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


def flip_a_bit(model: StoredModel, *, tells_time: bool = True) -> None:
    """With the time of the change, or as a disk does it by itself."""
    path = model.path / WEIGHTS
    before = path.stat()
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    if not tells_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def mark_of(store: ModelStore, digest: Digest) -> Path:
    return store.root / "checked" / digest


def test_a_model_that_was_added_is_not_read_again(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = add_model(store)
    assert store.is_checked(model.digest)
    monkeypatch.setattr(store, "verify", None)
    store.check(model.digest)


def test_a_flipped_bit_is_found(store: ModelStore) -> None:
    model = add_model(store)
    flip_a_bit(model)
    assert not store.is_checked(model.digest)
    for _ in range(2):
        with pytest.raises(CorruptModelError, match=f"{WEIGHTS} of tiny changed on disk"):
            store.check(model.digest)


def test_a_bit_that_a_disk_lost_is_found_within_a_month(store: ModelStore) -> None:
    model = add_model(store)
    flip_a_bit(model, tells_time=False)
    store.check(model.digest)
    month_ago = time.time() - BELIEVED_S - 1
    os.utime(mark_of(store, model.digest), (month_ago, month_ago))
    with pytest.raises(CorruptModelError):
        store.check(model.digest)


@pytest.mark.parametrize("spoil", [lambda mark: mark.write_bytes(b"\xff"), Path.unlink])
def test_without_a_sound_mark_a_model_is_read_and_marked(
    store: ModelStore, spoil: Callable[[Path], object]
) -> None:
    model = add_model(store)
    mark = mark_of(store, model.digest)
    mark.chmod(0o644)
    spoil(mark)
    assert not store.is_checked(model.digest)
    store.check(model.digest)
    assert store.is_checked(model.digest)


def test_where_no_mark_can_be_kept_a_model_is_checked_all_the_same(store: ModelStore) -> None:
    model = add_model(store)
    mark = mark_of(store, model.digest)
    mark.unlink()
    mark.parent.rmdir()
    mark.parent.write_text("in the way")
    store.check(model.digest)
    flip_a_bit(model)
    with pytest.raises(CorruptModelError):
        store.check(model.digest)


def test_a_removed_model_leaves_no_mark(store: ModelStore) -> None:
    model = add_model(store)
    store.remove("tiny")
    assert not mark_of(store, model.digest).exists()


def plans_of(store: ModelStore) -> tuple[ModelPlan, ...]:
    return plan_models((), store, MACHINE, gpu=False)


def test_a_damaged_model_is_left_out_and_the_others_are_served(store: ModelStore) -> None:
    damaged = add_model(store, SMALL_FILES, "damaged")
    add_model(store, {**SMALL_FILES, WEIGHTS: b"other weights"}, "sound")
    flip_a_bit(damaged)
    told: list[Milestone] = []
    assert [plan.name for plan in intact_plans(plans_of(store), store, told.append)] == ["sound"]
    assert [step.name for step in told] == ["model_checking", "model_failed"]
    assert "`capanode models pull" in told[-1].words


def test_a_node_whose_only_model_is_damaged_does_not_start(store: ModelStore) -> None:
    flip_a_bit(add_model(store))
    with pytest.raises(CorruptModelError, match="changed on disk"):
        intact_plans(plans_of(store), store, lambda _: None)
