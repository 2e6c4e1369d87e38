import contextlib
import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from capanode.models.errors import (
    CorruptModelError,
    DigestMismatchError,
    StorageDeniedError,
    StoreBusyError,
    StoreFullError,
    UnknownModelError,
    UnsafeModelError,
)
from capanode.models.files import file_lock, write_durably
from capanode.models.progress import Progress
from capanode.models.store import ModelStore
from protocol.ids import Digest
from protocol.manifest import decode_manifest, manifest_digest
from tests.capanode.model_makers import SMALL_FILES, add_model, manifest_of, write_files

NESTED_FILES = {**SMALL_FILES, "1_Pooling/config.json": b"{}"}


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


def spoil(path: Path, content: bytes) -> None:
    """Change a read-only file in place, as a failing disk would."""
    path.chmod(0o644)
    path.write_bytes(content)


def test_a_model_is_found_by_name_and_by_digest(store: ModelStore) -> None:
    model = add_model(store, NESTED_FILES)
    assert store.find("tiny") == store.find(model.digest) == model
    assert store.names() == {"tiny": model.digest}
    assert store.digests() == [model.digest]
    assert {name: (model.path / name).read_bytes() for name in NESTED_FILES} == NESTED_FILES
    assert model.digest == manifest_digest(manifest_of(NESTED_FILES))
    assert decode_manifest((model.path / "manifest.json").read_bytes()) == model.manifest


def test_every_uid_may_read_a_model_and_nobody_may_write_it(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        model = add_model(ModelStore(tmp_path / "store"), NESTED_FILES)
    finally:
        os.umask(before)
    folder = model.path
    while folder != tmp_path:
        assert folder.stat().st_mode & 0o777 == 0o755
        folder = folder.parent
    assert (model.path / "1_Pooling").stat().st_mode & 0o777 == 0o755
    files = [path for path in model.path.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o444}


def test_work_in_progress_is_private_and_gone_afterwards(store: ModelStore) -> None:
    with store.scratch() as scratch:
        assert scratch.stat().st_mode & 0o777 == 0o700
        write_files(scratch, NESTED_FILES)
    assert not scratch.exists()


def test_models_share_the_files_that_they_have_in_common(store: ModelStore) -> None:
    first = add_model(store, SMALL_FILES, "first")
    second = add_model(store, {**SMALL_FILES, "config.json": b"{}"}, "second")
    assert first.digest != second.digest
    assert (first.path / "model.safetensors").samefile(second.path / "model.safetensors")


def test_two_paths_with_one_content_are_one_blob(store: ModelStore) -> None:
    model = add_model(store, {"a.json": b"{}", "b.json": b"{}"})
    assert (model.path / "a.json").samefile(model.path / "b.json")


def test_adding_again_leaves_a_model_in_use_alone(store: ModelStore) -> None:
    before = add_model(store).path.stat().st_ino
    assert add_model(store).path.stat().st_ino == before


@pytest.mark.parametrize("damage", ["other content", "other size", "missing", "link"])
def test_files_that_are_not_the_manifests_change_nothing(
    store: ModelStore, tmp_path: Path, damage: str
) -> None:
    with store.scratch() as scratch:
        write_files(scratch, SMALL_FILES)
        weights = scratch / "model.safetensors"
        if damage == "other content":
            weights.write_bytes(b"Weights" * 100)
        elif damage == "other size":
            weights.write_bytes(b"w")
        else:
            weights.unlink()
        if damage == "link":
            (tmp_path / "secret").write_bytes(SMALL_FILES["model.safetensors"])
            weights.symlink_to(tmp_path / "secret")
        expected = UnsafeModelError if damage == "link" else DigestMismatchError
        with pytest.raises(expected, match=r"model\.safetensors"):
            store.add(scratch, manifest_of(SMALL_FILES), name="tiny")
    assert store.digests() == []
    assert store.collect_garbage() == 0


def test_damage_is_found_by_verifying_and_repaired_by_adding_again(store: ModelStore) -> None:
    model = add_model(store)
    store.verify(model.digest)
    spoil(model.path / "model.safetensors", b"Weights" * 100)
    with pytest.raises(CorruptModelError, match=r"model\.safetensors.*pull"):
        store.verify(model.digest)
    add_model(store)
    store.verify(model.digest)


def test_a_repaired_blob_repairs_only_models_that_are_added_again(store: ModelStore) -> None:
    first = add_model(store, SMALL_FILES, "first")
    spoil(first.path / "model.safetensors", b"Weights" * 100)
    second = add_model(store, {**SMALL_FILES, "config.json": b"{}"}, "second")
    store.verify(second.digest)
    with pytest.raises(CorruptModelError):
        store.verify(first.digest)


@pytest.mark.parametrize("damage", ["truncated", "missing file", "no manifest", "bad manifest"])
def test_an_incomplete_model_is_not_ready(store: ModelStore, damage: str) -> None:
    model = add_model(store)
    if damage == "truncated":
        spoil(model.path / "model.safetensors", b"w")
    elif damage == "bad manifest":
        spoil(model.path / "manifest.json", b"{}")
    else:
        name = "manifest.json" if damage == "no manifest" else "config.json"
        (model.path / name).unlink()
    assert not store.is_complete(model.digest)
    with pytest.raises(CorruptModelError, match="pull"):
        store.find("tiny")
    add_model(store)
    assert store.find("tiny") == model


def test_removing_a_model_frees_what_no_other_model_needs(store: ModelStore) -> None:
    first = add_model(store, SMALL_FILES, "first")
    second = add_model(store, {**SMALL_FILES, "config.json": b"{}"}, "second")
    assert store.remove("first") == len(SMALL_FILES["config.json"])
    store.verify(second.digest)
    with pytest.raises(UnknownModelError):
        store.find(first.digest)
    assert store.remove(second.digest) == len(SMALL_FILES["model.safetensors"]) + 2
    assert store.names() == {}


def test_removing_one_of_two_names_keeps_the_model(store: ModelStore) -> None:
    model = add_model(store)
    store.set_name("alias", model.digest)
    assert store.remove("tiny") == 0
    assert store.find("alias") == model


def test_a_damaged_model_can_be_removed(store: ModelStore) -> None:
    model = add_model(store)
    (model.path / "config.json").unlink()
    assert store.remove("tiny") > 0
    assert store.digests() == []


@pytest.mark.parametrize("name", ["missing", "0" * 64, "../models", ""])
def test_what_is_not_here_is_named_with_the_way_to_get_it(store: ModelStore, name: str) -> None:
    with pytest.raises(UnknownModelError, match="models list"):
        store.find(name)
    with pytest.raises(UnknownModelError, match="models list"):
        store.remove(name)


@pytest.mark.parametrize("name", ["", "-rf", "a b", "x" * 129, "0" * 64, "a\n"])
def test_names_are_plain_words(store: ModelStore, name: str) -> None:
    with pytest.raises(UnknownModelError):
        store.set_name(name, add_model(store).digest)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": 1}', b'{"a": "b"}', b"\xff"])
def test_a_damaged_list_of_names_says_what_to_do(store: ModelStore, content: bytes) -> None:
    (store.root / "names.json").write_bytes(content)
    with pytest.raises(CorruptModelError, match="pull the models again"):
        store.names()


def leave_half_finished(store: ModelStore, source: str) -> Path:
    """A download that was stopped; returns its folder."""
    with contextlib.suppress(InterruptedError), store.partial(source) as folder:
        (folder / "part").write_bytes(b"half")
        raise InterruptedError
    return folder


def test_garbage_is_what_no_model_and_no_living_process_holds(store: ModelStore) -> None:
    add_model(store, SMALL_FILES, "renamed")
    other = add_model(store, {"other.json": b"{}"}, "renamed")
    dead = store.root / "scratch" / "dead"
    write_files(dead, NESTED_FILES)
    stopped = leave_half_finished(store, "hf:given/up@main")
    with store.scratch() as living, store.partial("hf:being/downloaded@main") as downloading:
        assert stopped.exists()
        assert store.collect_garbage() == sum(map(len, SMALL_FILES.values()))
        assert living.exists()
        assert downloading.exists()
        assert not dead.exists()
        assert not stopped.exists()
    assert store.digests() == [other.digest]


def test_a_half_finished_download_waits_until_it_succeeds(store: ModelStore) -> None:
    leave_half_finished(store, "hf:a/b@c")
    with store.partial("hf:a/b@c") as folder:
        assert (folder / "part").read_bytes() == b"half"
    assert not folder.exists()


def test_many_may_add_the_same_models_at_once(store: ModelStore) -> None:
    variants = [{**SMALL_FILES, "config.json": b"%d" % number} for number in range(3)]

    def add(number: int) -> Digest:
        own_view = ModelStore(store.root)
        return add_model(own_view, variants[number % 3], f"model-{number % 3}").digest

    with ThreadPoolExecutor(8) as threads:
        digests = set(threads.map(add, range(24)))
    assert digests == set(store.digests()) == set(store.names().values())
    for digest in digests:
        store.verify(digest)
    assert list((store.root / "scratch").iterdir()) == []


def failing(error_number: int) -> Callable[..., None]:
    def fail(*arguments: object, **settings: object) -> None:
        raise OSError(error_number, os.strerror(error_number))

    return fail


def test_a_full_disk_is_named_and_leaves_no_half_model(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", failing(errno.ENOSPC))
        with pytest.raises(StoreFullError, match="models rm"):
            add_model(store)
    assert store.digests() == []
    assert list((store.root / "scratch").iterdir()) == []
    add_model(store)


class Stopped(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("damaged", [False, True])
def test_wherever_adding_stops_the_store_holds_only_whole_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    steps_left = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **settings: Any) -> Any:
            nonlocal steps_left
            steps_left -= 1
            if steps_left < 0:
                raise Stopped
            return function(*arguments, **settings)

        return call

    for owner, name in ((os, "fsync"), (os, "link"), (Path, "rename"), (Path, "replace")):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    for steps in range(100):
        steps_left = 1_000
        store = ModelStore(tmp_path / str(steps))
        other = add_model(store, {"config.json": SMALL_FILES["config.json"]}, "other")
        if damaged:
            spoil(add_model(store).path / "model.safetensors", b"w")
        steps_left = steps
        with contextlib.suppress(Stopped):
            add_model(store)
        stopped, steps_left = steps_left < 0, 1_000
        store.verify(other.digest)
        digest = manifest_digest(manifest_of(SMALL_FILES))
        if store.is_complete(digest):
            store.verify(digest)
        add_model(store)
        store.verify(digest)
        if not stopped:
            break
    assert 10 < steps < 99


def test_a_store_that_may_not_be_written_says_so(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "replace", failing(errno.EACCES))
    with pytest.raises(StorageDeniedError, match="--model-store"):
        add_model(store)


def test_without_hard_links_files_are_copied(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", failing(errno.EPERM))
    model = add_model(store, NESTED_FILES)
    store.verify(model.digest)
    assert (model.path / "config.json").stat().st_mode & 0o777 == 0o444


def test_a_write_that_fails_keeps_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "names.json"
    write_durably(path, b"old")
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(StoreFullError):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_that_another_holds_is_given_up_on(tmp_path: Path) -> None:
    with (
        file_lock(tmp_path / "lock", timeout_s=1.0),
        pytest.raises(StoreBusyError, match="another process"),
        file_lock(tmp_path / "lock", timeout_s=0.0),
    ):
        pytest.fail("two hold one lock")


def test_verifying_shows_how_far_it_is(store: ModelStore) -> None:
    model = add_model(store)
    seen: list[Progress] = []
    store.verify(model.digest, progress=seen.append)
    assert seen[-1] == Progress("verify model.safetensors", 700, 700)
