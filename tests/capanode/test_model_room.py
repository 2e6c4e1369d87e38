"""Which models may leave, who uses them, and whether there is room for another."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capanode.models.errors import ModelInUseError, StoreFullError
from capanode.models.eviction import KeptModel, plan_eviction
from capanode.models.library import list_models, remove
from capanode.models.room import Quota, local_bytes, make_room
from capanode.models.sources import FileSource
from capanode.models.store import ModelStore
from protocol.ids import Digest, sha256_digest
from tests.capanode.model_makers import add_model, layout_files, write_files

WANTED = {sha256_digest(b"new"): 40}


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


def kept(name: str, used_s: float, blobs: dict[str, int], keep: str = "") -> KeptModel:
    digests = {sha256_digest(blob.encode()): size for blob, size in blobs.items()}
    return KeptModel(name, sha256_digest(name.encode()), digests, used_s, keep)


def leaving(models: list[KeptModel], bytes_max: int) -> list[str]:
    return [model.name for model in plan_eviction(models, wanted=WANTED, bytes_max=bytes_max)]


def test_the_models_unused_for_longest_leave_first() -> None:
    models = [kept("new", 3, {"a": 30}), kept("old", 1, {"b": 30}), kept("mid", 2, {"c": 30})]
    assert leaving(models, 130) == []
    assert leaving(models, 129) == ["old"]
    assert leaving(models, 99) == ["old", "mid"]


def test_what_is_served_or_promised_stays_and_is_named() -> None:
    models = [kept("old", 1, {"a": 30}, "served"), kept("new", 2, {"b": 30})]
    assert leaving(models, 70) == ["new"]
    with pytest.raises(StoreFullError, match=r"old \(served\).*store_max_gib"):
        leaving(models, 69)


def test_a_file_that_two_models_share_is_counted_once_and_leaves_with_the_last() -> None:
    models = [kept("a", 1, {"shared": 30, "a": 5}), kept("b", 2, {"shared": 30, "b": 5})]
    assert leaving(models, 80) == []
    assert leaving(models, 79) == ["a"]
    assert leaving(models, 74) == ["a", "b"]


def test_files_that_are_here_already_need_no_room() -> None:
    models = [kept("variant", 1, {"new": 40})]
    assert leaving(models, 40) == []


@given(
    st.lists(
        st.tuples(
            st.floats(0, 9), st.dictionaries(st.sampled_from("abcde"), st.just(10)), st.booleans()
        ),
        max_size=6,
    ),
    st.integers(0, 120),
)
def test_whatever_leaves_the_rest_fits_and_what_is_kept_stays(
    drawn: list[tuple[float, dict[str, int], bool]], bytes_max: int
) -> None:
    models = [
        kept(str(number), used_s, blobs, "served" if stays else "")
        for number, (used_s, blobs, stays) in enumerate(drawn)
    ]
    try:
        gone = plan_eviction(models, wanted=WANTED, bytes_max=bytes_max)
    except StoreFullError:
        gone = [model for model in models if not model.keep]
        is_full = True
    else:
        is_full = False
    assert not any(model.keep for model in gone)
    rest: dict[Digest, int] = dict(WANTED)
    for model in models:
        if model not in gone:
            rest.update(model.blobs)
    assert (sum(rest.values()) > bytes_max) is is_full


def test_a_pull_removes_what_no_node_serves_and_no_configuration_lists(store: ModelStore) -> None:
    for name in ("served", "listed", "idle"):
        add_model(store, {"config.json": name.encode() * 100}, name)
    served = store.find("served").digest
    with store.use.hold([served]):
        quota = Quota(1_700, frozenset({"listed"}))
        make_room(store, WANTED, "new", work_bytes=40, quota=quota)
        assert sorted(store.names()) == ["idle", "listed", "served"]
        with pytest.raises(StoreFullError):
            make_room(store, {sha256_digest(b"x"): 900}, "new", work_bytes=40, quota=quota)
        make_room(store, {sha256_digest(b"x"): 200}, "new", work_bytes=40, quota=quota)
    assert sorted(store.names()) == ["listed", "served"]


def test_where_none_is_listed_all_are_promised(store: ModelStore) -> None:
    add_model(store)
    with pytest.raises(StoreFullError, match="lists no models"):
        make_room(store, WANTED, "new", work_bytes=40, quota=Quota(50, None))


def test_the_disk_is_looked_at_for_all_that_a_pull_needs(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(store.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    make_room(store, WANTED, "new", work_bytes=7 * 10**8, quota=Quota())
    with pytest.raises(StoreFullError, match=r"new needs 1168 MB .*1000 MB are free"):
        make_room(store, WANTED, "new", work_bytes=9 * 10**8, quota=Quota())


def test_a_local_gguf_may_grow_when_it_is_converted(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"x" * 100)
    write_files(tmp_path / "folder", layout_files())
    assert sum(local_bytes(FileSource(tmp_path / "x.gguf")).values()) == 500
    folder = local_bytes(FileSource(tmp_path / "folder"))
    assert sum(folder.values()) == sum(map(len, layout_files().values()))


# Who uses what


def test_a_served_model_is_removed_only_by_force(store: ModelStore) -> None:
    digest = add_model(store).digest
    with store.use.hold([digest]):
        with pytest.raises(ModelInUseError, match="--force"):
            remove(store, "tiny")
        assert list_models(store)[0].is_served
        # A second program that opens the same store sees the same.
        assert ModelStore(store.root).use.is_held(digest)
    assert remove(store, "tiny") > 0
    digest = add_model(store).digest
    with store.use.hold([digest]):
        assert remove(store, "tiny", force=True) > 0
    assert store.digests() == []


def test_a_store_that_may_only_be_read_is_served_from_unmarked(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = add_model(store).digest
    store.use.forget(digest)

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with store.use.hold([digest]):
        store.use.touch(digest)
        assert not store.use.is_held(digest)
        assert store.find("tiny").digest == digest


def test_a_promised_model_is_removed_only_by_force(store: ModelStore) -> None:
    digest = add_model(store).digest
    for promised in ({"tiny"}, {digest}):
        with pytest.raises(ModelInUseError, match=r"\[models\]"):
            remove(store, "tiny", promised=promised)
    assert list_models(store, promised={"tiny"})[0].is_promised
    assert remove(store, "tiny", promised={"tiny"}, force=True) > 0


def test_one_of_two_names_of_a_served_model_may_go(store: ModelStore) -> None:
    digest = add_model(store).digest
    store.set_name("other", digest)
    with store.use.hold([digest]):
        assert remove(store, "other") == 0
    assert store.names() == {"tiny": digest}


def test_garbage_is_never_what_a_node_serves(store: ModelStore) -> None:
    digest = add_model(store).digest
    with store.use.hold([digest]):
        (store.root / "names.json").unlink()
        assert store.collect_garbage() == 0
        assert store.digests() == [digest]
    assert store.collect_garbage() > 0


def test_a_model_was_used_last_when_its_node_ended(store: ModelStore) -> None:
    digest = add_model(store).digest
    added_s = store.use.last_used_s(digest)
    with store.use.hold([digest]):
        pass
    released_s = store.use.last_used_s(digest)
    assert added_s is not None
    assert released_s is not None
    assert released_s >= added_s
